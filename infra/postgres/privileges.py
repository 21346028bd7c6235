"""Which login may do what, as data: tables, columns, rows, functions. `infra.postgres.roles` applies it.

What is not listed is refused; a test walks each role's own login through what it may and may not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """One login: table or view to privileges (a tuple for several), functions it may call, session settings."""

    tables: Mapping[str, str | tuple[str, ...]]
    functions: tuple[str, ...] = ()
    """Names in schema `control`; they run with their owner's rights."""
    locks: tuple[str, ...] = ()
    """Functions of `pg_catalog` that take advisory locks; by default only the owner may."""
    sequences: tuple[str, ...] = ()
    settings: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RowRule:
    """Which rows of `control.outbox` a role reaches, and for what; what no rule names, it does not see."""

    name: str
    role: str
    command: str = "ALL"
    rows: str


APPEND = "SELECT, INSERT"
KEEP = "SELECT, INSERT, UPDATE"
FULL = "SELECT, INSERT, UPDATE, DELETE"

ROLES: dict[str, Role] = {
    "remit_approval": Role(
        tables={
            "control.stop": KEEP,
            "control.stop_log": "SELECT",
            "control.remit": KEEP,
            # Calls are counted by the claim alone.
            "control.budget": APPEND,
            # A revocation takes the row of an action nobody claimed; a finding ends a doubt.
            "control.execution": (
                "SELECT",
                "INSERT (action_id, remit_id, state, reason, finished_at, request)",
                "UPDATE (state, finished_at, draft)",
            ),
            "control.outbox": "SELECT, INSERT, DELETE",
            "control.pending": FULL,
            "control.block": FULL,
            "control.heartbeat": "SELECT",
        },
        # It queues behind claims before it reads what it stops; who may engage every switch gains nothing by holding one up.
        locks=("pg_advisory_xact_lock(bigint)", "pg_advisory_xact_lock_shared(bigint)"),
        sequences=("control.outbox_id_seq",),
    ),
    "remit_executor": Role(
        tables={
            # Rows are made, and claims changed, by the functions below.
            "control.execution": ("SELECT", "UPDATE (state, finished_at, draft, deadline)"),
            "control.outbox": "SELECT, INSERT, DELETE",
            "control.heartbeat": "SELECT",
        },
        functions=("claim", "may_send", "take_over", "refuse"),
        sequences=("control.outbox_id_seq",),
    ),
    "remit_audit": Role(
        tables={
            "audit.audit_event": APPEND,
            "audit.checkpoint": APPEND,
            "audit.rejected": APPEND,
            "audit.advisory": APPEND,
            "audit.progress": "SELECT, UPDATE",
            "audit.actions_all": KEEP,
            "audit.actions": "SELECT",
            "audit.remits": KEEP,
            "audit.grants": KEEP,
            "audit.agents": KEEP,
            "audit.tools": FULL,
            "audit.grant_width": FULL,
            "audit.events": "SELECT",
            "audit.cursor": "SELECT",
            "control.heartbeat": KEEP,
        },
        # The one active projector holds a lock of its own.
        locks=("pg_try_advisory_lock(bigint)",),
    ),
    "remit_dashboard": Role(
        tables={
            **dict.fromkeys(
                (
                    "audit.actions_all",
                    "audit.actions",
                    "audit.events",
                    "audit.remits",
                    "audit.grants",
                    "audit.grant_width",
                    "audit.tools",
                    "audit.agents",
                    "audit.switches",
                    "audit.cursor",
                    "audit.progress",
                    "audit.checkpoint",
                    "audit.advisory",
                ),
                "SELECT",
            ),
            # Dead letters hold bodies; people see only what was wrong with them.
            "audit.rejected": "SELECT (seq, at, service, code, detail, source_stream, source_seq, source_subject, agent)",
        },
        settings={"default_transaction_read_only": "on", "statement_timeout": "3s"},
    ),
    # For `remit audit verify` and `show`, and for whoever must look without being able to touch.
    "remit_auditor": Role(
        tables=dict.fromkeys(
            (
                "audit.audit_event",
                "audit.checkpoint",
                "audit.rejected",
                "audit.advisory",
                "audit.progress",
                "audit.actions_all",
                "audit.actions",
                "audit.remits",
                "audit.grants",
                "audit.agents",
                "audit.tools",
                "audit.grant_width",
                "audit.events",
                "audit.cursor",
                "audit.switches",
                "control.execution",
                "control.outbox",
                "control.heartbeat",
                "control.stop_log",
            ),
            "SELECT",
        ),
        settings={"default_transaction_read_only": "on"},
    ),
}

OUTBOX_RULES = (
    RowRule(name="own_rows", role="remit_executor", rows="service = 'executor'"),
    RowRule(name="own_rows_of_approval", role="remit_approval", rows="service = 'approval'"),
    # A person's finding is the executor's event; its relay compares each row with the execution before it signs.
    RowRule(
        name="findings",
        role="remit_approval",
        command="INSERT",
        rows="service = 'executor' AND event_type = 'executed'",
    ),
    RowRule(name="all_for_reading", role="remit_auditor", command="SELECT", rows="true"),
)

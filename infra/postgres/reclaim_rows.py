"""Writes what the ledger implies into schema `control`, and never against what stands there for certain."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import asyncpg

    from infra.postgres.reclaim_rules import Block, Execution, Pending, Remit

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"

# An outcome in the ledger ends a row that does not know one; a row that knows one stays, whatever the ledger lacks.
_EXECUTION = """
INSERT INTO control.execution AS e (action_id, jti, remit_id, grant_no, attempt, args_digest, claim_id, executor, state, reason,
                                    claimed_at, finished_at, deadline, request, draft)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, CASE $9 WHEN 'in_flight' THEN clock_timestamp() END, $13::jsonb,
        $14::jsonb)
ON CONFLICT (action_id) DO UPDATE SET state = excluded.state, reason = excluded.reason, finished_at = excluded.finished_at,
    deadline = excluded.deadline, draft = excluded.draft, request = coalesce(e.request, '{}') || excluded.request,
    claim_id = CASE excluded.state WHEN 'in_flight' THEN e.claim_id ELSE excluded.claim_id END
WHERE (e.state = 'in_flight' AND NOT (excluded.state = 'in_flight' AND coalesce(e.request, '{}') ? 'repeated'))
   OR (e.state = 'unknown' AND excluded.state IN ('succeeded', 'failed'))
RETURNING xmax = 0 AS is_new
"""
_CONTRADICTS = "SELECT state FROM control.execution WHERE action_id = $1 AND state <> 'unknown' AND state <> $2"
_REQUEUE = """
INSERT INTO control.outbox (service, subject_id, event_type, discriminator, draft)
SELECT 'executor', e.action_id, 'executed', e.attempt::text, e.draft FROM control.execution AS e
WHERE e.action_id = $1 AND e.state IN ('succeeded', 'failed', 'unknown') AND e.draft IS NOT NULL
  AND NOT e.draft -> 'data' ? 'finding'
  AND NOT EXISTS (SELECT FROM control.outbox AS o WHERE o.service = 'executor' AND o.subject_id = e.action_id)
RETURNING id
"""
_PENDING = """
INSERT INTO control.pending (action_id, remit_id, expires_at, approvers, quorum, round, requested_seq)
VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (action_id) DO UPDATE SET round = excluded.round, requested_seq = excluded.requested_seq
WHERE pending.round < excluded.round
RETURNING action_id
"""
_BLOCK = """
INSERT INTO control.block (remit_id, session, class, reason, by_iss, by_sub, created_at, expires_at)
SELECT $1, $2, $3, $4, $5, $6, $7::timestamptz, $8::timestamptz WHERE $8::timestamptz > clock_timestamp()
ON CONFLICT (remit_id, session, class) DO UPDATE SET expires_at = excluded.expires_at
WHERE block.expires_at < excluded.expires_at
RETURNING remit_id
"""
_REMIT = """
INSERT INTO control.remit AS r (remit_id, human_iss, human_sub, agent_id, digest, granted_seq, not_before, expires_at, max_calls,
                                document, ended_at, ended_reason)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10::jsonb, $11, $12)
ON CONFLICT (remit_id) DO UPDATE SET granted_seq = excluded.granted_seq, digest = excluded.digest, document = excluded.document,
    ended_at = coalesce(r.ended_at, excluded.ended_at), ended_reason = coalesce(r.ended_reason, excluded.ended_reason)
WHERE r.granted_seq = 0 OR r.digest <> excluded.digest OR (r.ended_at IS NULL AND excluded.ended_at IS NOT NULL)
RETURNING remit_id
"""
_BUDGET = "INSERT INTO control.budget (remit_id, grant_no, max_calls) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING"
_STOP = "INSERT INTO control.stop (kind, target) VALUES ($1, $2) ON CONFLICT DO NOTHING"
_REVOKE = """
UPDATE control.stop SET engaged_at = clock_timestamp(), reason = $2, by_iss = $3, by_sub = $4
WHERE kind = 'remit' AND target = $1 AND engaged_at IS NULL
"""
# As the claim counts: row 0 all calls of the remit, row k those under its k-th grant. A count never falls.
_RECOUNT = """
WITH counted AS (
    SELECT b.remit_id, b.grant_no, count(e.action_id) AS used FROM control.budget AS b JOIN control.execution AS e
      ON e.remit_id = b.remit_id AND e.state <> 'refused' AND (b.grant_no = 0 OR e.grant_no = b.grant_no)
    GROUP BY b.remit_id, b.grant_no
)
UPDATE control.budget AS b SET used = c.used FROM counted AS c
WHERE b.remit_id = c.remit_id AND b.grant_no = c.grant_no AND b.used < c.used
"""


@dataclass(slots=True)
class Report:
    """How many rows were put right, by kind, and what contradicts the ledger."""

    claims: int = 0
    doubts: int = 0
    outcomes: int = 0
    queued: int = 0
    asked: int = 0
    blocked: int = 0
    remits: int = 0
    budgets: int = 0
    contradictions: list[str] = field(default_factory=list[str])

    def lines(self) -> list[str]:
        """Return the report for people."""
        return [
            f"claims: {self.claims} missing were made again, {self.outcomes} learned their outcome",
            f"doubts: {self.doubts} calls were announced and have no outcome; they become unknown, for a person to settle",
            f"outcomes: {self.queued} that the ledger lacks are queued for it",
            f"approval: {self.asked} open questions, {self.blocked} blocks",
            f"remits: {self.remits} remits, {self.budgets} budgets",
            *(f"CONTRADICTION {each}" for each in self.contradictions),
        ]


async def write_execution(connection: Connection, row: Execution, report: Report) -> None:
    """Make or complete one claim."""
    found = await connection.fetchrow(
        _EXECUTION, row.action_id, row.jti, row.remit_id, row.grant_no, row.attempt, row.args_digest, row.claim_id,
        row.executor, row.state, row.reason, row.claimed_at, row.finished_at, json.dumps(row.request),
        None if row.draft is None else json.dumps(row.draft),
    )  # fmt: skip
    if found is not None:
        report.claims += found["is_new"]
        report.outcomes += not found["is_new"] and row.state != "in_flight"
        report.doubts += row.state == "in_flight"
    elif row.state == "in_flight":
        report.queued += await connection.fetchval(_REQUEUE, row.action_id) is not None
    else:
        held = await connection.fetchval(_CONTRADICTS, row.action_id, row.state)
        if held is not None:
            report.contradictions.append(f"{row.action_id} is {held} in its claim, {row.state} in the ledger")


async def write_pending(connection: Connection, row: Pending, report: Report) -> None:
    """Note one open question."""
    made = await connection.fetchval(
        _PENDING, row.action_id, row.remit_id, row.expires_at, row.approvers, row.quorum, row.round, row.requested_seq
    )
    report.asked += made is not None


async def write_block(connection: Connection, row: Block, report: Report) -> None:
    """Block the like of a denied action again, unless its time is over."""
    made = await connection.fetchval(
        _BLOCK, row.remit_id, row.session, row.block_class, row.reason, *row.by, row.created_at, row.expires_at
    )
    report.blocked += made is not None


async def write_remit(connection: Connection, row: Remit, report: Report) -> None:
    """Make a remit with its budgets and switches, or end one; the e-mail address of its human is in no event."""
    document = row.document
    made = await connection.fetchval(
        _REMIT, row.remit_id, document["human"]["iss"], document["human"]["sub"], document["agent_id"], row.digest,
        row.granted_seq, datetime.fromisoformat(document["not_before"]), datetime.fromisoformat(document["expires_at"]),
        document["max_calls"], json.dumps(document), row.ended_at, row.ended,
    )  # fmt: skip
    await connection.executemany(_BUDGET, [(row.remit_id, *budget) for budget in row.budgets])
    await connection.executemany(_STOP, row.stops)
    if row.revoked is not None:
        await connection.execute(_REVOKE, row.remit_id, *row.revoked)
    report.remits += made is not None


async def recount(connection: Connection, report: Report) -> None:
    """Count the calls of every remit anew."""
    report.budgets = int((await connection.execute(_RECOUNT)).rpartition(" ")[2])

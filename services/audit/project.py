"""Folds a batch of stored messages into what one transaction writes. Pure: memory in, rows out.

An event that cannot be believed, or may not follow, is chained and kept, and changes no action. Source: design, bus section 5.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from remit.envelope import Recorded, Signed, event_class, parse
from remit.events import ActionEvent, ActionProposed, RemitEvent
from remit.fold import ActionState, RemitState
from remit.ledger_chain import VALID, Evidence, judge_action, judge_remit, link
from remit.projection.action_columns import action_row
from remit.projection.event_columns import addressed_to, event_columns
from remit.projection.fields import instant
from remit.projection.remit_columns import grant_rows, remit_row
from remit.projection.tracking import Row, Tracked, first_effect, remember, touches_approval

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from datetime import datetime


@dataclass(frozen=True, slots=True)
class Admitted:
    """One message after the checks that need no history: believed (`recorded`), or the `code` of what is wrong with it."""

    evidence: Evidence
    recorded: Recorded | None
    code: str


@dataclass(frozen=True, slots=True)
class KeptRow:
    """One ledger row read back to rebuild an action; `verify_status` was decided when it was written."""

    evidence: Evidence
    verify_status: str
    chain_hash: bytes


@dataclass(slots=True)
class Batch:
    """What one transaction writes for one stream."""

    first_seq: int
    last_seq: int
    head: bytes
    events: list[Row] = field(default_factory=list[Row])
    statuses: list[str] = field(default_factory=list[str])


@dataclass(slots=True)
class ActionBatch(Batch):
    """The same for ACTIONS.

    `uses` counts (remit id, grant number) of first outcomes, `seen` holds (agent id, agent name, remit id, time) of proposals.
    """

    touched: dict[str, Tracked] = field(default_factory=dict[str, Tracked])
    uses: list[tuple[str, int, datetime]] = field(default_factory=list[tuple[str, int, "datetime"]])
    seen: list[tuple[str, str, str, datetime]] = field(default_factory=list[tuple[str, str, str, "datetime"]])
    approvals_changed: bool = False

    @property
    def rows(self) -> list[Row]:
        """Rows of `actions_all`, one per action that changed."""
        return [action_row(tracked) for tracked in self.touched.values() if tracked.state.chain]


@dataclass(slots=True)
class RemitBatch(Batch):
    """The same for REMITS: (remit row, its grant rows) in stream order."""

    changes: list[tuple[Row, list[Row]]] = field(default_factory=list[tuple[Row, list[Row]]])


def restore(action_id: str, rows: Iterable[KeptRow], sensitive: Callable[[str], Collection[str] | None]) -> Tracked:
    """Rebuild an action's memory from its ledger rows, in stream order."""
    tracked = Tracked(state=ActionState(action_id))
    for row in rows:
        recorded = _believed_before(row.evidence) if row.verify_status == VALID else None
        tracked.state, status = judge_action(tracked.state, recorded, row.evidence.seq, row.verify_status)
        remember(tracked, recorded, status, link=row.chain_hash, sensitive=sensitive)
    return tracked


def _believed_before(held: Evidence) -> Recorded:
    signed = Signed(held.subject, held.body, held.kid or "", held.signature or b"")
    return Recorded(parse(signed, event_class(held.subject)), signed, held.seq, held.at)


def fold_actions(
    admitted: list[Admitted],
    *,
    head: bytes,
    memory: dict[str, Tracked],
    sensitive: Callable[[str], Collection[str] | None],
) -> ActionBatch:
    """Fold contiguous messages of ACTIONS; `memory` must hold every action that has rows already, and is changed in place."""
    batch = ActionBatch(admitted[0].evidence.seq, admitted[-1].evidence.seq, head)
    for item in admitted:
        batch.head = link(batch.head, item.evidence.seq, item.evidence.record)
        action_id = addressed_to("ACTIONS", item.evidence.subject, item.recorded)
        status = item.code
        if action_id is not None:
            tracked = memory.setdefault(action_id, Tracked(state=ActionState(action_id)))
            tracked.state, status = judge_action(tracked.state, item.recorded, item.evidence.seq, item.code)
            remember(tracked, item.recorded, status, link=batch.head, sensitive=sensitive)
            batch.touched[action_id] = tracked
            if item.recorded is not None and status == VALID:
                _count(batch, tracked, cast("ActionEvent", item.recorded.event), item.evidence.at)
        _keep(batch, "ACTIONS", item, status)
    return batch


def _count(batch: ActionBatch, tracked: Tracked, event: ActionEvent, at: datetime) -> None:
    batch.approvals_changed = batch.approvals_changed or touches_approval(event)
    said_at = instant(event.time) or at
    used = first_effect(tracked, event)
    if used is not None:
        batch.uses.append((*used, said_at))
    if isinstance(event, ActionProposed):
        row = tracked.opening
        batch.seen.append((row["agent_id"], row["agent_name"], row["remit_id"], said_at))


def fold_remits(admitted: list[Admitted], *, head: bytes, memory: dict[str, RemitState]) -> RemitBatch:
    """Fold contiguous messages of REMITS; `memory` must hold every remit that has rows already, and is changed in place."""
    batch = RemitBatch(admitted[0].evidence.seq, admitted[-1].evidence.seq, head)
    for item in admitted:
        batch.head = link(batch.head, item.evidence.seq, item.evidence.record)
        remit_id = addressed_to("REMITS", item.evidence.subject, item.recorded)
        status = item.code
        if remit_id is not None:
            state = memory.setdefault(remit_id, RemitState(remit_id))
            memory[remit_id], status = judge_remit(state, item.recorded, item.evidence.seq, item.code)
            if item.recorded is not None and status == VALID:
                event = cast("RemitEvent", item.recorded.event)
                batch.changes.append((remit_row(event, item.evidence.seq), grant_rows(event)))
        _keep(batch, "REMITS", item, status)
    return batch


def restore_remit(remit_id: str, rows: Iterable[KeptRow]) -> RemitState:
    """Rebuild a remit's state from its ledger rows, in stream order."""
    state = RemitState(remit_id)
    for row in rows:
        if row.verify_status == VALID:
            state, _ = judge_remit(state, _believed_before(row.evidence), row.evidence.seq)
    return state


def _keep(batch: Batch, stream: str, item: Admitted, status: str) -> None:
    held = item.evidence
    ledger: dict[str, Any] = {
        "stream": stream,
        "stream_seq": held.seq,
        "subject": held.subject,
        "body": held.body,
        "kid": held.kid,
        "sig": held.signature,
        "verify_status": status,
        "chain_hash": batch.head,
        "recorded_at": held.at,
    }
    batch.events.append(ledger | event_columns(stream, held.subject, item.recorded))
    batch.statuses.append(status)

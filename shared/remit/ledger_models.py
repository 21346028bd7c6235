"""What the tables that people read must say, folded a second time while the ledger's rows pass by. Pure.

Where a column hides a value of an argument, the registry of that day decided it, which the ledger does not hold: shown as the
events say, or hidden as the registry can ask for it, and nothing else. Source: design, README section 3 (audit is a fold).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from remit.events import ActionEvaluated, ActionExecuted, ActionStarted, RemitRevokedEvent
from remit.fold import ActionState
from remit.ledger_chain import VALID
from remit.ledger_uses import Uses
from remit.projection.action_columns import action_row, opening
from remit.projection.encoding import to_json
from remit.projection.event_columns import event_columns
from remit.projection.fields import stamp
from remit.projection.remit_columns import grant_rows, remit_row
from remit.projection.tracking import Tracked, is_closed, remember

if TYPE_CHECKING:
    from collections.abc import Mapping

    from remit.envelope import Recorded
    from remit.events import ActionProposed, RemitEvent
    from remit.projection.tracking import Row

EVENT_COLUMNS = (
    "event_id", "type", "action_id", "remit_id", "n", "occurred_at", "human", "agent_id", "tool", "action", "detail",
)  # fmt: skip
"""Columns of `audit.audit_event` that repeat what the signed body says."""
FROM_REMIT = ("human", "human_iss", "human_sub", "task", "task_shape")
"""Columns of an action that its remit fills where no event of the action names them."""


def differing_columns(stream: str, subject: str, recorded: Recorded | None, stored: Mapping[str, Any]) -> list[str]:
    """Return which derived columns of a ledger row say something else than its message."""
    expected = event_columns(stream, subject, recorded)
    if "detail" in expected:
        expected["detail"] = json.loads(to_json(expected["detail"]))
    return [name for name in EVENT_COLUMNS if expected.get(name) != stored.get(name)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedAction:
    """One row of `audit.actions_all` as its events give it, `flags` aside; `hidden` is how a registry may have had it hidden.

    `effect` is what `control.execution` must say about it; None while no outcome is known.
    """

    seq: int
    row: Row
    hidden: Row
    effect: Row | None


def nothing_marked(_: str) -> tuple[str, ...]:
    """Return that the registry hides nothing, so that a fold shows what may be shown at most."""
    return ()


@dataclass(slots=True)
class ActionFold:
    """Every action's row; a finished one is handed out with its receipt and only its flags are remembered.

    `flags` and `settled` are what is expected of the table, complete once `finish` was called.
    """

    open: dict[str, Tracked] = field(default_factory=dict[str, Tracked])
    flags: dict[str, frozenset[str]] = field(default_factory=dict[str, frozenset[str]])
    settled: list[ExpectedAction] = field(default_factory=list[ExpectedAction])
    uses: Uses = field(default_factory=Uses)

    def tracked(self, action_id: str) -> Tracked:
        """Return what is known of an action that has no receipt."""
        return self.open.setdefault(action_id, Tracked(state=ActionState(action_id)))

    def add(self, tracked: Tracked, recorded: Recorded | None, status: str, link: bytes) -> None:
        """Keep what a judged record leaves behind."""
        remember(tracked, recorded, status, link=link, sensitive=nothing_marked)
        if recorded is not None and status == VALID:
            self.uses.add(tracked, recorded)
        if is_closed(tracked):
            self._settle(self.open.pop(tracked.state.action_id))

    def add_late(self, action_id: str, status: str) -> None:
        """Keep evidence that came after the receipt."""
        self.flags[action_id] |= {f"evidence_{status}"}

    def finish(self) -> None:
        """Settle the actions that are not finished."""
        for tracked in self.open.values():
            if tracked.state.chain:
                self._settle(tracked)

    def _settle(self, tracked: Tracked) -> None:
        row = action_row(tracked)
        self.flags[row["action_id"]] = frozenset(row.pop("flags"))
        concealed = opening(cast("ActionProposed", tracked.state.chain[0].event), None)
        hidden = {name: concealed[name] for name in ("args", "resource_id")}
        effect = _effect(tracked.state)
        self.settled.append(ExpectedAction(seq=row["last_seq"], row=row, hidden=hidden, effect=effect))


def _effect(state: ActionState) -> Row | None:
    """Return the columns of `control.execution` that events repeat; the claim is that of whoever made the call."""
    executed, started, evaluated = state.find(ActionExecuted), state.find(ActionStarted), state.find(ActionEvaluated)
    if executed is None or started is None or evaluated is None:
        return None
    return {
        "action_id": executed.subject,
        "jti": started.data.jti,
        "remit_id": executed.data.remit_id,
        "grant_no": evaluated.data.grant_no,
        "attempt": executed.data.attempt,
        "args_digest": executed.data.action.args_digest,
        "claim_id": executed.data.claim_id,
        "state": executed.data.outcome.value,
    }


@dataclass(slots=True)
class RemitFold:
    """Every remit's row and its grants' rows."""

    remits: dict[str, Row] = field(default_factory=dict[str, "Row"])
    grants: dict[tuple[str, int], Row] = field(default_factory=dict[tuple[str, int], "Row"])

    def add(self, event: RemitEvent, seq: int) -> None:
        """Keep what a valid event changes; a grant keeps the day it was first given."""
        self.remits[event.subject] = self.remits.get(event.subject, {}) | remit_row(event, seq)
        rows = grant_rows(event)
        for row in rows:
            key = (row["remit_id"], row["grant_no"])
            first = self.grants.get(key, row)
            self.grants[key] = row | {"granted_at": first["granted_at"], "revoked_at": None}
        if rows:
            self._end(event.subject, rows[0]["granted_at"], after=len(rows))
        elif isinstance(event, RemitRevokedEvent):
            self._end(event.subject, stamp(event.time))

    def _end(self, remit_id: str, at: str | None, *, after: int = 0) -> None:
        """End the grants of a remit that new terms leave out, or all; one that has ended keeps its day."""
        for (of_remit, number), row in self.grants.items():
            if of_remit == remit_id and number > after and row["revoked_at"] is None:
                row["revoked_at"] = at

    def complete(self, action: Row) -> Row:
        """Return an action's row with what its remit fills in: only the remit's own agent is shown with human and task."""
        remit = self.remits.get(action["remit_id"], {})
        if remit.get("agent_id") != action["agent_id"]:
            return action
        return action | {name: action.get(name) if action.get(name) is not None else remit[name] for name in FROM_REMIT}


def is_shown(column: str, stored: Any, expected: ExpectedAction) -> bool:  # noqa: ANN401  (a column value)
    """Return whether a column that may hide values shows what the proposal says, or its mark, argument by argument."""
    shown, hidden = expected.row[column], expected.hidden[column]
    if column != "args":
        return stored in (shown, hidden)
    if not isinstance(stored, dict) or stored.keys() != shown.keys():
        return False
    return all(value in (shown[name], hidden[name]) for name, value in stored.items())

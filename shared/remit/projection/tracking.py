"""One action while its events arrive: the fold, and what the projector must remember beside it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from remit.events import (
    ActionApprovalRequested,
    ActionApproved,
    ActionAudited,
    ActionEvaluated,
    ActionEvent,
    ActionExecuted,
    ActionProposed,
    ActionRefused,
    ActionRevoked,
)
from remit.fold import ActionState, is_terminal
from remit.ledger_chain import VALID
from remit.projection.action_columns import opening
from remit.projection.event_columns import missing_content
from remit.projection.fields import clean, small
from remit.reasons import Outcome, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from datetime import datetime

    from remit.envelope import Recorded

Row = dict[str, Any]
"""Column name to JSON value; times are RFC 3339 text."""


@dataclass(slots=True, kw_only=True)
class Tracked:
    """One unfinished action in the projector's memory; everything in it can be rebuilt from its rows.

    `link` is the chain hash at its newest valid event, `recorded_at` that event's server time, `flags` what its evidence
    shows beside the valid chain, `opening` the columns that its proposal fixes.
    """

    state: ActionState
    link: bytes = b""
    recorded_at: datetime | None = None
    flags: set[str] = field(default_factory=set[str])
    opening: Row = field(default_factory=dict[str, Any])

    @property
    def terminal(self) -> ActionEvent | None:
        """The event that ended the action, the receipt aside."""
        chain = self.state.chain
        events = [cast("ActionEvent", r.event) for r in chain[-2:] if not isinstance(r.event, ActionAudited)]
        return events[-1] if events and is_terminal(events[-1]) else None


def remember(
    tracked: Tracked,
    recorded: Recorded | None,
    status: str,
    *,
    link: bytes,
    sensitive: Callable[[str], Collection[str] | None],
) -> None:
    """Keep what one record leaves behind beside the fold: its link and time when it is valid, a flag when it is not."""
    if recorded is None or status != VALID:
        tracked.flags.add(f"evidence_{status}")
        return
    event = cast("ActionEvent", recorded.event)
    tracked.link, tracked.recorded_at = link, recorded.stored_at
    tracked.flags.update(missing_content(event))
    if isinstance(event, ActionProposed):
        tracked.opening = opening(event, sensitive(event.data.action.name))


def is_closed(tracked: Tracked) -> bool:
    """Return whether an action has its receipt: only flags can still change."""
    return isinstance(tracked.state.last, ActionAudited)


def is_unresolved(tracked: Tracked) -> bool:
    """Return whether an action ended in doubt: its receipt waits for a resolution (design, bus section 5)."""
    event = tracked.terminal
    return isinstance(event, ActionExecuted) and event.data.outcome is Outcome.UNKNOWN


def touches_approval(event: ActionEvent) -> bool:
    """Return whether an event changes what approvers see waiting."""
    match event:
        case ActionApprovalRequested() | ActionRevoked():
            return True
        case ActionApproved():
            return event.data.by == "human"
        case ActionRefused():
            return event.data.stage is Stage.APPROVAL
        case _:
            return False


def first_effect(tracked: Tracked, event: ActionEvent) -> tuple[str, int] | None:
    """Return (remit id, grant number) when this event is the first outcome of a call that spent a grant."""
    outcomes = [r for r in tracked.state.chain if isinstance(r.event, ActionExecuted)]
    evaluated = tracked.state.find(ActionEvaluated)
    if (
        not isinstance(event, ActionExecuted)
        or len(outcomes) != 1
        or evaluated is None
        or evaluated.data.grant_no is None
    ):
        return None
    return clean(event.data.remit_id, 64), small(evaluated.data.grant_no)

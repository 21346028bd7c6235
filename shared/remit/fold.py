"""The fold: what an action's events add up to. Pure; the one place that knows which type may follow which.

An event that may not follow is kept as evidence and not folded; its sequence still counts. Source: design, bus section 5.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeVar, cast

from remit.envelope import Recorded, source_of
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
    ActionStarted,
    ActionTokenized,
    Event,
    RemitAmendedEvent,
    RemitExhaustedEvent,
    RemitGrantedEvent,
    RemitRevokedEvent,
)
from remit.reasons import Outcome, Stage, Verdict

if TYPE_CHECKING:
    from remit.remits import RemitDocument

MAX_ATTEMPTS = 3
"""Tokens minted for one action while nothing has started (design, bus section 5)."""

Finding = Literal["duplicate", "order", "chain", "illegal", "closed"]
"""Why an event was not folded: already there, wrong n, wrong prev, type may not follow, action already audited."""

AnyActionEvent = TypeVar("AnyActionEvent", bound=ActionEvent)


@dataclass(frozen=True, slots=True)
class ActionState:
    """Everything known of one action: its valid events in order, and the last sequence seen on its subjects.

    `last_seq` is 0 while nothing is stored: exactly what a compare-and-set append of `proposed` expects.
    """

    action_id: str
    chain: tuple[Recorded, ...] = ()
    last_seq: int = 0

    @property
    def last(self) -> ActionEvent | None:
        """The newest valid event."""
        return cast("ActionEvent", self.chain[-1].event) if self.chain else None

    @property
    def head(self) -> str | None:
        """Digest of the newest valid body: the next event's `prev`."""
        return self.chain[-1].signed.digest if self.chain else None

    def find(self, kind: type[AnyActionEvent]) -> AnyActionEvent | None:
        """Return the newest event of a class, or None."""
        return next((r.event for r in reversed(self.chain) if isinstance(r.event, kind)), None)

    def must(self, kind: type[AnyActionEvent]) -> AnyActionEvent:
        """Return the newest event of a class that the fold rules guarantee to be there.

        Raises:
            LookupError: the caller asked for something this state does not imply.

        """
        found = self.find(kind)
        if found is None:
            raise LookupError(f"action {self.action_id} holds no {kind.short} event")
        return found

    @property
    def is_terminal(self) -> bool:
        """Whether no effect can follow any more."""
        return is_terminal(self.last)


def is_terminal(event: ActionEvent | None) -> bool:
    """Return whether an event ends its action (a deny, a refusal, a revocation, an outcome, or the receipt)."""
    if isinstance(event, ActionEvaluated):
        return event.data.decision.verdict is Verdict.DENY
    return isinstance(event, ActionRefused | ActionExecuted | ActionRevoked | ActionAudited)


def may_follow(last: ActionEvent | None, event: ActionEvent) -> bool:  # noqa: C901, PLR0911  (one arm per row of the design's table)
    """Return whether the writer may emit this event after the last valid one (design, bus section 5, table)."""
    match event:
        case ActionProposed():
            return last is None
        case ActionEvaluated():
            return isinstance(last, ActionProposed)
        case ActionApprovalRequested():
            return _requestable(last, event)
        case ActionApproved():
            return _approvable(last, event)
        case ActionRefused():
            return _refusable(last, event)
        case ActionTokenized():
            return _tokenizable(last, event)
        case ActionStarted():
            return isinstance(last, ActionTokenized) and last.data.jti == event.data.jti
        case ActionExecuted():
            return _executable(last, event)
        case ActionRevoked():
            return last is not None and not is_terminal(last)
        case ActionAudited():
            return is_terminal(last) and not isinstance(last, ActionAudited)


_SUCCEEDS: dict[type[Event], tuple[type[ActionEvent], ...]] = {
    ActionEvaluated: (ActionProposed,),
    ActionApprovalRequested: (ActionEvaluated, ActionApprovalRequested),
    ActionApproved: (ActionEvaluated, ActionApprovalRequested),
    ActionTokenized: (ActionApproved, ActionTokenized),
    ActionStarted: (ActionTokenized,),
    ActionExecuted: (ActionStarted, ActionExecuted),
}


def could_follow(last: ActionEvent | None, kind: type[Event], writer: str | None = None) -> bool:
    """Return whether an event of a class might follow, when it cannot be read; where this is false it is junk anyway.

    A known `writer` may refuse at its own step only, so that nobody holds up the steps of others.
    """
    if kind is ActionProposed:
        return last is None
    if kind is ActionAudited:
        return is_terminal(last) and not isinstance(last, ActionAudited)
    if kind is ActionRefused and writer is not None:
        return isinstance(last, _REFUSABLE_AFTER.get(Stage(writer), ())) and not is_terminal(last)
    if kind in {ActionRefused, ActionRevoked}:
        return last is not None and not is_terminal(last)
    return isinstance(last, _SUCCEEDS[kind])


def _verdict_is(event: ActionEvent | None, verdict: Verdict) -> bool:
    return isinstance(event, ActionEvaluated) and event.data.decision.verdict is verdict


def _requestable(last: ActionEvent | None, event: ActionApprovalRequested) -> bool:
    if isinstance(last, ActionApprovalRequested):
        return event.data.round == last.data.round + 1
    return _verdict_is(last, Verdict.ASK) and event.data.round == 1


def _approvable(last: ActionEvent | None, event: ActionApproved) -> bool:
    if event.data.by == "policy":
        return _verdict_is(last, Verdict.ALLOW)
    return isinstance(last, ActionApprovalRequested)


_REFUSABLE_AFTER: dict[Stage, tuple[type[ActionEvent], ...]] = {
    Stage.APPROVAL: (ActionEvaluated, ActionApprovalRequested),
    Stage.TOKENS: (ActionApproved, ActionTokenized),
    Stage.EXECUTOR: (ActionTokenized, ActionStarted),
}


def _refusable(last: ActionEvent | None, event: ActionRefused) -> bool:
    if event.source != source_of(event.data.stage) or is_terminal(last):
        return False
    return isinstance(last, _REFUSABLE_AFTER.get(event.data.stage, ()))


def _tokenizable(last: ActionEvent | None, event: ActionTokenized) -> bool:
    if isinstance(last, ActionTokenized):
        return event.data.attempt == last.data.attempt + 1 <= MAX_ATTEMPTS
    return isinstance(last, ActionApproved) and event.data.attempt == 1


def _executable(last: ActionEvent | None, event: ActionExecuted) -> bool:
    if isinstance(last, ActionStarted):
        return event.data.attempt == last.data.attempt
    # An unknown outcome may be resolved once, by the same attempt, before the receipt.
    if not isinstance(last, ActionExecuted) or last.data.outcome is not Outcome.UNKNOWN:
        return False
    return event.data.attempt == last.data.attempt and event.data.outcome is not Outcome.UNKNOWN


def step(state: ActionState, recorded: Recorded, seq: int) -> tuple[ActionState, Finding | None]:
    """Fold one verified event; the sequence counts whether or not the event does.

    `recorded` must come out of `envelope.verify`. Returns the new state and None, or the old chain and why not.
    """
    seen = replace(state, last_seq=max(seq, state.last_seq))
    finding = _finding(state, recorded)
    if finding is not None:
        return seen, finding
    return replace(seen, chain=(*state.chain, replace(recorded, seq=seq))), None


def _finding(state: ActionState, recorded: Recorded) -> Finding | None:
    event = cast("ActionEvent", recorded.event)
    if any(r.event.id == event.id and r.event.type == event.type for r in state.chain):
        return "duplicate"
    if isinstance(state.last, ActionAudited):
        return "closed"
    if event.n != len(state.chain) + 1:
        return "order"
    if event.prev != state.head:
        return "chain"
    if not may_follow(state.last, event):
        return "illegal"
    return None


def junk(state: ActionState, seq: int) -> ActionState:
    """Count a sequence whose event could not be believed, so that junk never blocks an action."""
    return replace(state, last_seq=max(seq, state.last_seq))


@dataclass(frozen=True, slots=True)
class RemitState:
    """A remit as its last valid event leaves it; `seq` is that event's stream sequence and names the version judged.

    `none` means nobody ever granted it. `document` is absent only then.
    """

    remit_id: str
    status: Literal["none", "active", "revoked", "exhausted"] = "none"
    document: RemitDocument | None = None
    digest: str | None = None
    n: int = 0
    head: str | None = None
    seq: int = 0
    last_seq: int = 0


def fold_remit(state: RemitState, recorded: Recorded, seq: int) -> RemitState:
    """Fold one verified remit event; nothing follows a revocation."""
    event = recorded.event
    seen = replace(state, last_seq=max(seq, state.last_seq))
    if event.n != state.n + 1 or event.prev != state.head or state.status == "revoked":
        return seen
    grown = replace(seen, n=event.n, head=recorded.signed.digest, seq=seq)
    match event:
        case RemitGrantedEvent() if state.status == "none":
            return replace(grown, status="active", document=event.data.remit, digest=event.data.remit_digest)
        case RemitAmendedEvent() if state.status == "active":
            return replace(grown, document=event.data.remit, digest=event.data.remit_digest)
        case RemitRevokedEvent() if state.status in {"active", "exhausted"}:
            return replace(grown, status="revoked")
        case RemitExhaustedEvent() if state.status == "active":
            return replace(grown, status="exhausted")
        case _:
            return seen

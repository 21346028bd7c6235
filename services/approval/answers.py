"""Answers that name what was found, so that a person knows what to do next. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remit.commands import Reply
from remit.events import ActionApproved, ActionEvaluated, ActionProposed, ActionRefused, ActionRevoked
from remit.reasons import Verdict
from remit.remits import Human

if TYPE_CHECKING:
    from remit.fold import ActionState


def stale(detail: str) -> Reply:
    """Answer that something changed since it was shown."""
    return Reply(status="stale", detail=detail)


def forbidden(detail: str) -> Reply:
    """Answer why this person may not, and who may."""
    return Reply(status="forbidden", detail=detail)


def invalid(field: str, detail: str) -> Reply:
    """Answer which field cannot be accepted."""
    return Reply(status="invalid", field=field, detail=detail)


def other_body() -> Reply:
    """Answer that an idempotency key was used for another question: its answer is no answer to this one."""
    return invalid("idempotency_key", "this key was used for another command; send a new one")


def unavailable(detail: str, *, retry_after_ms: int = 1000) -> Reply:
    """Answer that nothing was decided; the same key may be sent again."""
    return Reply(status="unavailable", detail=detail, retry_after_ms=retry_after_ms)


def not_waiting(state: ActionState) -> Reply:
    """Answer why an action cannot be voted on: unknown, not asked yet, or decided."""
    last = state.last
    if last is None:
        return invalid("action_id", f"there is no action {state.action_id}")
    waiting = isinstance(last, ActionProposed) or (
        isinstance(last, ActionEvaluated) and last.data.decision.verdict is Verdict.ASK
    )
    return unavailable("the action is still being judged; ask again") if waiting else decided(state)


def decided(state: ActionState) -> Reply:
    """Answer who decided an action and when."""
    for recorded in state.chain:
        event = recorded.event
        if isinstance(event, ActionApproved):
            vote = event.data.votes[-1] if event.data.votes else None
            by = Human(iss=vote.iss, sub=vote.sub) if vote else None
        elif isinstance(event, ActionRefused | ActionRevoked):
            by = event.data.by
        else:
            continue
        who = by.sub if by else event.source.removeprefix("/remit/")
        detail = f"{event.short} by {who} at {event.time.isoformat(timespec='seconds')}"
        return Reply(status="decided", decision=event.short, decided_by=by, decided_at=event.time, detail=detail)
    last = state.last
    return Reply(
        status="decided",
        decision=last.short if last else None,
        decided_at=last.time if last else None,
        detail="policy decided this action" if last else f"there is no action {state.action_id}",
    )

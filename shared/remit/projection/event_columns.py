"""One stored message as the columns of `audit.audit_event` that timelines read, and what its evidence lacks. Pure.

Source: design, standards section 3.4 (minimum content); dashboard section 3 (events).
"""

from __future__ import annotations

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
    ActionStarted,
    ActionTokenized,
    RemitAmendedEvent,
    RemitEvent,
    RemitExhaustedEvent,
    RemitGrantedEvent,
    RemitRevokedEvent,
)
from remit.ids import ACTION_ID, REMIT_ID
from remit.projection.fields import MAX_REMIT_ID, clean, instant, person, small
from remit.reasons import Reason

if TYPE_CHECKING:
    from remit.envelope import Recorded
    from remit.projection.tracking import Row

MAX_DETAIL = 200
"""Characters of each value in `detail`: a line of a timeline, not a copy of the event."""


def event_columns(stream: str, subject: str, recorded: Recorded | None) -> Row:
    """Return what an event says about itself; of an unbelieved message only which action or remit it was sent to."""
    if recorded is None:
        return _addressed(stream, subject)
    event = recorded.event
    row: Row = {
        "event_id": clean(event.id),
        "type": event.short,
        "n": small(event.n),
        "occurred_at": instant(event.time),
    }
    if stream == "REMITS":
        return row | _about_remit(cast("RemitEvent", event)) | {"detail": _remit_detail(cast("RemitEvent", event))}
    return row | _about_action(cast("ActionEvent", event)) | {"detail": _detail(cast("ActionEvent", event))}


def addressed_to(stream: str, subject: str, recorded: Recorded | None) -> str | None:
    """Return the action or remit a message belongs to, as far as that can be said."""
    if recorded is not None:
        return recorded.event.subject
    return next(iter(_addressed(stream, subject).values()), None)


def _addressed(stream: str, subject: str) -> Row:
    tokens = subject.split(".")
    target = tokens[1] if len(tokens) == 3 else ""
    if stream == "ACTIONS":
        return {"action_id": target} if ACTION_ID.fullmatch(target) else {}
    return {"remit_id": target} if REMIT_ID.fullmatch(target) else {}


def _about_remit(event: RemitEvent) -> Row:
    row: Row = {"remit_id": event.subject}
    if isinstance(event, RemitGrantedEvent | RemitAmendedEvent):
        remit = event.data.remit
        row |= {"human": person(remit.human), "agent_id": clean(remit.agent_id)}
    elif isinstance(event, RemitRevokedEvent):
        row["human"] = person(event.data.by)
    return row


def _about_action(event: ActionEvent) -> Row:
    principal, tool = event.data.principal, event.data.principal.tool.name
    return {
        "action_id": event.subject,
        "remit_id": clean(event.data.remit_id, MAX_REMIT_ID),
        "human": person(principal.human),
        "agent_id": clean(principal.agent.id),
        "tool": clean(tool),
        "action": clean(event.data.action.name.removeprefix(f"{tool}.")),
    }


def _remit_detail(event: RemitEvent) -> dict[str, Any]:
    match event:
        case RemitGrantedEvent() | RemitAmendedEvent():
            return {"by": person(event.data.by), "grants": len(event.data.remit.grants)}
        case RemitRevokedEvent():
            return {"by": person(event.data.by), "reason": _brief(event.data.cause)}
        case RemitExhaustedEvent():
            return {"used": small(event.data.used)}


def _detail(event: ActionEvent) -> dict[str, Any]:  # noqa: C901, PLR0911  (one arm per type of the closed list)
    match event:
        case ActionProposed():
            return {"args_digest": event.data.action.args_digest, "risk": event.data.action.risk}
        case ActionEvaluated():
            return _evaluation_detail(event)
        case ActionApprovalRequested():
            said = event.data
            return {"round": small(said.round), "quorum": small(said.quorum), "approvers": _briefly(said.approvers)}
        case ActionApproved():
            voters = [f"{vote.iss}|{vote.sub}" for vote in event.data.votes]
            return {"by": event.data.by, "voters": _briefly(voters), "narrowed": event.data.narrowing is not None}
        case ActionRefused():
            said = event.data
            return {"stage": said.stage.value, "reason": said.reason.value, "by": person(said.by)}
        case ActionTokenized():
            return {"jti": _brief(event.data.jti), "attempt": small(event.data.attempt), "exp": event.data.exp}
        case ActionStarted():
            return {"executor": _brief(event.data.executor), "attempt": small(event.data.attempt)}
        case ActionExecuted():
            return {"outcome": event.data.outcome.value, "executed_digest": event.data.executed_digest}
        case ActionRevoked():
            return {"by": person(event.data.by), "reason": _brief(event.data.cause)}
        case ActionAudited():
            return {"ledger_head": event.data.ledger_head, "flags": _briefly(event.data.flags)}


def _evaluation_detail(event: ActionEvaluated) -> dict[str, Any]:
    decision, said = event.data.decision, event.data
    return {
        "verdict": decision.verdict.value,
        "reason": decision.reason.value,
        "policies": _briefly(said.matched_policies),
        "policy_version": decision.policy_version,
        "grant_no": None if said.grant_no is None else small(said.grant_no),
    }


def _brief(value: str) -> str:
    return clean(value, MAX_DETAIL)


def _briefly(values: list[str]) -> list[str]:
    return [_brief(value) for value in values[:20]]


def missing_content(event: ActionEvent) -> list[str]:
    """Return which parts of the minimum content an event lacks though they apply to it, as flags `missing_<part>`.

    Of the seven parts of AIMS the event schema requires time, decision and risk; what can be missing is an empty text, an id
    that contradicts the subject, or the human that policy should have known.
    """
    principal, said = event.data.principal, event.data
    parts = {
        "agent": bool(principal.agent.id),
        "subject": principal.human is not None or not _human_is_known(event),
        "tool": bool(principal.tool.name and principal.tool.resource),
        "action": said.action.name.startswith(f"{principal.tool.name}."),
        "correlation": event.correlationid == event.subject == said.txn,
        "cause": bool(event.data.cause) if isinstance(event, ActionRevoked) else True,
    }
    return [f"missing_{part}" for part, present in parts.items() if not present]


def _human_is_known(event: ActionEvent) -> bool:
    if isinstance(event, ActionProposed):
        return False  # Intake reads no remits.
    if isinstance(event, ActionEvaluated):
        # Without a remit nobody delegated anything, and the reason says so.
        return event.data.decision.reason not in {Reason.UNKNOWN_REMIT, Reason.UNPROCESSABLE, Reason.STALE_BUNDLE}
    return not isinstance(event, ActionAudited | ActionRefused)

"""What an agent is told about its action: pure translation of events into notices.

An agent sees its own call, the verdict and the redacted result; never a token, an approver's name or a policy's text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from remit.canonical import digest_bytes
from remit.events import (
    ActionApprovalRequested,
    ActionAudited,
    ActionEvaluated,
    ActionEvent,
    ActionExecuted,
    ActionProposed,
    ActionRefused,
    ActionRevoked,
)
from remit.ids import event_id
from remit.proposal import Notice
from remit.reasons import Reason, Stage, Verdict

if TYPE_CHECKING:
    from remit.fold import ActionState
    from services.intake.decide import Rejected


def notice_of(event: ActionEvent) -> Notice | None:
    """Return the notice of one event, or None when it tells an agent nothing it waits for."""
    match event:
        case ActionEvaluated() if event.data.decision.verdict is Verdict.DENY:
            return _denied(event)
        case ActionApprovalRequested():
            return Notice(
                status="pending", event_id=event.id, action_id=event.subject, expires_at=event.expirytime,
                reason=Reason.APPROVAL_REQUIRED,
            )  # fmt: skip
        case ActionRefused():
            return Notice(
                status="refused", event_id=event.id, action_id=event.subject, stage=event.data.stage,
                reason=event.data.reason, detail=event.data.detail, alternatives=event.data.alternatives,
            )  # fmt: skip
        case ActionExecuted():
            return _executed(event)
        case ActionRevoked():
            return Notice(
                status="refused", event_id=event.id, action_id=event.subject, stage=Stage.APPROVAL,
                reason=Reason.REVOKED, detail=event.data.cause,
            )  # fmt: skip
        case _:
            return None


def _denied(event: ActionEvaluated) -> Notice:
    return Notice(
        status="refused",
        event_id=event.id,
        action_id=event.subject,
        stage=Stage.POLICY,
        reason=event.data.decision.reason,
        detail=event.data.detail,
        alternatives=event.data.scopes_grantable,
    )


def _executed(event: ActionExecuted) -> Notice:
    return Notice(
        status=event.data.outcome.value,
        event_id=event.id,
        action_id=event.subject,
        outcome=event.data.outcome,
        detail=event.data.error,
        result=event.data.result,
        result_omitted=event.data.result_omitted,
        redacted_paths=event.data.redacted_paths,
    )


def notice_for(state: ActionState, *, proposal_digest: str | None = None) -> Notice:
    """Return where an action stands, for the owner of a proposal or the asker of `status`.

    `proposal_digest` names the bytes being answered; without it the bytes the action was made from. Either way the
    agent can tell that this action is the one it asked for.

    Raises:
        LookupError: the state holds no `proposed` event.

    """
    proposed = state.must(ActionProposed)
    latest = next(r.event for r in reversed(state.chain) if not isinstance(r.event, ActionAudited))
    told = notice_of(latest)  # type: ignore[arg-type]  # the chain of an action holds action events only
    if told is None:
        told = Notice(status="proposed", event_id=latest.id, action_id=state.action_id)
    binding = proposal_digest or digest_bytes(proposed.data.proposal.encode())
    return told.model_copy(update={"proposal_digest": binding, "idempotency_key": proposed.data.idempotency_key})


def rejection(rejected: Rejected, *, proposal_digest: str, seq: int) -> Notice:
    """Return the notice of a refused proposal; redelivery repeats its id, a second try has another one."""
    return Notice(
        status="rejected",
        event_id=event_id(proposal_digest, "proposal.rejected", f"{rejected.reason}:{seq}"),
        proposal_digest=proposal_digest,
        idempotency_key=rejected.proposal.idempotency_key if rejected.proposal else None,
        stage=Stage.INTAKE,
        reason=rejected.reason,
        detail=rejected.detail,
        alternatives=list(rejected.alternatives),
    )


def no_such_action(agent: str, action: str) -> Notice:
    """Return the answer about an action that is not there or not this agent's: the two look alike on purpose."""
    return Notice(
        status="rejected",
        event_id=event_id(action, "status.absent", agent),
        stage=Stage.INTAKE,
        detail="this agent has no such action; it may still wait to be taken in",
    )

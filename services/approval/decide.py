"""Rules of approval, pure: what follows an evaluation, a deadline, a revocation; votes stand in `voting`.

Every decision is the event to append (`Draft`) or the answer that explains why there is none (`Reply`).
Approval is never a permit: tokens and executor judge again. Source: design, section 7; bus section 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from remit.canonical import digest, digest_bytes
from remit.commands import Reply
from remit.events import (
    ActionApprovalRequested,
    ActionApproved,
    ActionEvaluated,
    ActionProposed,
    ActionRefused,
    ActionRevoked,
    ApprovalRequested,
    Approved,
    Evaluated,
    Refused,
    Revoked,
)
from remit.ids import derive, event_id
from remit.reasons import Reason, Stage, Verdict
from remit.runtime.ledger import Draft
from services.approval.answers import decided, other_body

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from remit.events import Common
    from remit.fold import ActionState
    from remit.remits import Human


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long people have, how long their word holds, and how many must agree to what is critical."""

    ask_for: timedelta
    approved_for_policy: timedelta
    approved_for_human: timedelta
    t4_quorum: int = 2
    """Least votes at T4, whatever policy says; a policy may ask for more (design, dashboard section 2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What Postgres said about an evaluated action; advisory, the claim decides strictly."""

    stopped_by: str | None = None
    exhausted: bool = False
    blocked: str | None = None


def approval_id(action_id: str, by: str) -> str:
    """Return the id of an approval: the same for the same decision, however often it is computed."""
    return "apr_" + derive("approval", action_id, by).hex


def shown_digest(evaluated: Evaluated, proposed_bytes: str) -> str:
    """Return the digest of what approvers are shown: the whole evaluation and the agent's bytes."""
    shown = {
        "evaluated": evaluated.model_dump(mode="json", exclude_none=True),
        "proposal": digest_bytes(proposed_bytes.encode()),
    }
    return digest(shown)


def decide_evaluated(state: ActionState, facts: Facts, limits: Limits, now: datetime) -> Draft | None:
    """Return what follows an evaluation; None when policy denied or the action has moved on."""
    last = state.last
    if not isinstance(last, ActionEvaluated) or last.data.decision.verdict is Verdict.DENY:
        return None
    said = last.data
    if facts.stopped_by == "remit":
        return refuse(said, Reason.REMIT_REVOKED, detail="the remit was revoked; ask its human for a new one")
    if facts.stopped_by is not None:
        return refuse(
            said, Reason.STOPPED, detail=f"a {facts.stopped_by} switch is engaged; propose again once it is lifted"
        )
    if said.decision.verdict is Verdict.ASK:
        return _ask(state, said, facts, limits, now)
    if facts.blocked is not None:
        return refuse(said, Reason.BLOCKED, detail=facts.blocked)
    return _approved_by_policy(said, limits, now)


def _approved_by_policy(said: Evaluated, limits: Limits, now: datetime) -> Draft:
    data = Approved(
        txn=said.txn,
        remit_id=said.remit_id,
        principal=said.principal,
        action=said.action,
        by="policy",
        approval_id=approval_id(said.txn, "policy"),
        votes=[],
        approved_at=now,
        approved_until=now + limits.approved_for_policy,
    )
    return Draft(event=ActionApproved, data=data)


def _ask(state: ActionState, said: Evaluated, facts: Facts, limits: Limits, now: datetime) -> Draft:
    if facts.exhausted:
        return refuse(said, Reason.BUDGET_EXHAUSTED, detail="the remit or its grant has no calls left")
    if facts.blocked is not None:
        return refuse(said, Reason.BLOCKED, detail=facts.blocked)
    if not said.approvers or said.quorum < 1 or said.principal.human is None:
        # Without a group nobody could answer, and without the human self-approval could not be excluded.
        return refuse(said, Reason.EVALUATION_ERROR, detail="policy asks for an approval that nobody could give")
    data = ApprovalRequested(
        txn=said.txn,
        remit_id=said.remit_id,
        principal=said.principal,
        action=said.action,
        round=1,
        approvers=said.approvers,
        quorum=max(said.quorum, limits.t4_quorum) if said.action.risk == "T4" else said.quorum,
        votes=[],
        shown_digest=shown_digest(said, state.must(ActionProposed).data.proposal),
    )
    return Draft(event=ActionApprovalRequested, data=data, expirytime=now + limits.ask_for)


def refuse(
    said: Common,
    reason: Reason,
    *,
    detail: str | None = None,
    by: Human | None = None,
    discriminator: str = "1",
) -> Draft:
    """Return the refusal of an action by this stage, with what the remit offers instead."""
    offered = said.scopes_grantable if isinstance(said, Evaluated) else []
    data = Refused(
        txn=said.txn,
        remit_id=said.remit_id,
        principal=said.principal,
        action=said.action,
        stage=Stage.APPROVAL,
        reason=reason,
        detail=detail,
        by=by,
        alternatives=[scope for scope in offered if scope != said.action.name],
    )
    return Draft(event=ActionRefused, data=data, discriminator=discriminator)


def decide_expiry(state: ActionState, now: datetime) -> Draft | None:
    """Return the refusal of an approval whose deadline has passed, or None when there is none."""
    last = state.last
    if isinstance(last, ActionApprovalRequested):
        overdue = last.expirytime is None or last.expirytime <= now
    else:
        # The row was written but never asked for: whoever finds it overdue ends it.
        overdue = isinstance(last, ActionEvaluated) and last.data.decision.verdict is Verdict.ASK
    if not overdue:
        return None
    detail = "nobody decided in time"
    return refuse(state.must(ActionEvaluated).data, Reason.EXPIRED, detail=detail, discriminator="expired")


def decide_withdrawal(state: ActionState, *, by: Human, cause: str) -> Draft | None:
    """Return the refusal of an open approval whose remit was revoked, or None when it is not open."""
    if not isinstance(state.last, ActionApprovalRequested):
        return None
    said = state.must(ActionEvaluated).data
    return refuse(said, Reason.REVOKED, detail=cause, by=by, discriminator="remit_revoked")


def decide_revocation(state: ActionState, *, by: Human, cause: str, discriminator: str) -> Draft | Reply:
    """Return the revocation of an action that has not ended, or the answer that it has.

    The caller must hold the action's execution row as refused: then no claim can follow.
    """
    revoked = state.find(ActionRevoked)
    if revoked is not None and revoked.id == event_id(state.action_id, "action.revoked", discriminator):
        return Reply(status="ok", detail="revoked") if revoked.data.cause == cause else other_body()
    last = state.last
    if last is None or state.is_terminal:
        return decided(state)
    said = last.data
    data = Revoked(
        txn=said.txn, remit_id=said.remit_id, principal=said.principal, action=said.action, by=by, cause=cause
    )
    return Draft(event=ActionRevoked, data=data, discriminator=discriminator)

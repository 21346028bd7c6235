"""Whether a token may exist, and what it says: pure. An approval is a fact in the second evaluation, never a permit.

Source: design, section 3 (rules 2 and 3); standards sections 2.1 and 2.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from remit.canonical import digest
from remit.evaluation import ApprovalFact, Facts, SchemaRefusedError, compile_schema, disowned, evaluate, violation
from remit.events import (
    ActionApprovalRequested,
    ActionApproved,
    ActionEvaluated,
    ActionProposed,
    ActionTokenized,
    Decision,
)
from remit.fold import MAX_ATTEMPTS
from remit.ids import derive, human_subject, jti
from remit.reasons import Reason, Verdict

if TYPE_CHECKING:
    from datetime import datetime

    from remit.evaluation import CompiledAction, CompiledBundle, Evaluation
    from remit.events import Approved, Common, Evaluated
    from remit.fold import ActionState, RemitState
    from remit.proposal import Proposal
    from remit.remits import RemitDocument

SCOPE = "tool:execute"
"""Coarse label of every action token; the authority is its one `tool_call`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What is true right now: bundle in force, remit as just read, time, and the name and limits of this installation."""

    bundle: CompiledBundle
    remit: RemitState
    now: datetime
    tenant: str
    lifetime_s: int = 60


@dataclass(frozen=True, slots=True)
class Nothing:
    """There is nothing to mint: the action is elsewhere, or its last token is still good."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """No token; the action ends."""

    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mint:
    """A token may exist: this attempt, until `expires_at` (NumericDate), owed to this evaluation."""

    attempt: int
    expires_at: int
    reevaluation: Decision
    document: RemitDocument
    action: CompiledAction
    args_digest: str


Minting = Nothing | Refuse | Mint


def next_attempt(state: ActionState, now: datetime) -> int | Nothing | Refuse:
    """Return the number of the token to mint next, if one may be.

    A token that is still good is not replaced, or forged redrives would use up the attempts of an action.
    """
    match state.last:
        case ActionApproved():
            return 1
        case ActionTokenized() as last if now.timestamp() < last.data.exp:
            return Nothing()
        case ActionTokenized() as last if last.data.attempt >= MAX_ATTEMPTS:
            detail = f"{MAX_ATTEMPTS} tokens expired before the call could start; propose again"
            return Refuse(Reason.TOKEN_EXPIRED, detail)
        case ActionTokenized() as last:
            return last.data.attempt + 1
        case _:
            return Nothing()


def decide(state: ActionState, proposal: Proposal, world: World) -> Minting:
    """Return whether a token may exist for this action now."""
    attempt = next_attempt(state, world.now)
    if not isinstance(attempt, int):
        return attempt
    approved, said = state.must(ActionApproved).data, state.must(ActionEvaluated).data
    refusal = (
        _inconsistent(state, proposal)
        or _disowned(state, proposal, world)
        or _not_approved(approved, proposal, world.now)
        or _too_late(state)
    )
    if refusal is not None:
        return refusal
    evaluation = evaluate(world.bundle, _facts(state, proposal, world))
    refusal = _not_permitted(evaluation, approved, said)
    action, document = world.bundle.action(proposal.tool, proposal.action), world.remit.document
    if refusal is not None or action is None or document is None:
        return refusal or Refuse(Reason.EVALUATION_ERROR, "the second evaluation permitted what it does not know")
    expires_at = _expiry(approved, document, evaluation, world)
    if expires_at <= int(world.now.timestamp()):
        return Refuse(Reason.APPROVAL_EXPIRED, "less than a second of the approval or the remit is left")
    return Mint(
        attempt=attempt,
        expires_at=expires_at,
        reevaluation=_decision(state.action_id, attempt, evaluation, world),
        document=document,
        action=action,
        args_digest=approved.action.args_digest,
    )


def _inconsistent(state: ActionState, proposal: Proposal) -> Refuse | None:
    """Compare every event's own words with the proposal: different services signed them, so they must agree."""
    args_digest = digest(proposal.arguments)
    first = state.must(ActionProposed).data.principal
    for recorded in state.chain:
        said: Common = recorded.event.data  # type: ignore[attr-defined]  # every action event has `data`
        if said.action.args_digest != args_digest or said.action.name != f"{proposal.tool}.{proposal.action}":
            return Refuse(Reason.ARGS_MISMATCH, f"event {recorded.event.n} was decided on another call")
        if said.txn != state.action_id or said.remit_id != proposal.remit_id:
            return Refuse(Reason.ARGS_MISMATCH, f"event {recorded.event.n} speaks of another action or remit")
        if said.principal.agent != first.agent:
            return Refuse(Reason.IDENTITY_DRIFT, f"event {recorded.event.n} names another agent")
        if said.principal.tool != first.tool:
            # The evaluation compares the proposed pin with today's registry, so every event is held against both.
            return Refuse(
                Reason.SCHEMA_DRIFT, f"event {recorded.event.n} was decided on another definition of the tool"
            )
    return None


def _disowned(state: ActionState, proposal: Proposal, world: World) -> Refuse | None:
    """Ask the agent's own signature: authority is made here, and intake's word alone must not be enough for it."""
    doubt = disowned(state.must(ActionProposed).data, proposal, world.bundle, tenant=world.tenant)
    return None if doubt is None else Refuse(doubt.reason, doubt.detail)


def _not_approved(approved: Approved, proposal: Proposal, now: datetime) -> Refuse | None:
    if now >= approved.approved_until:
        return Refuse(Reason.APPROVAL_EXPIRED, "the approval ended before a token was minted")
    if approved.narrowing is None:
        return None
    try:
        outside = violation(compile_schema(approved.narrowing), proposal.arguments)
    except SchemaRefusedError:
        outside = "the narrowing cannot be used"
    return None if outside is None else Refuse(Reason.OUT_OF_SCOPE, f"outside what was approved: {outside}")


def _too_late(state: ActionState) -> Refuse | None:
    """Hold people's approval against their deadline, by the broker's clock: the approval's own words could be late or false."""
    request = state.find(ActionApprovalRequested)
    recorded = next(each for each in reversed(state.chain) if isinstance(each.event, ActionApproved))
    if request is None or state.must(ActionApproved).data.by != "human":
        return None
    # A predecessor in the chain header has no storage time; then its service's own time is all there is.
    stored_at = recorded.stored_at or recorded.event.time
    if request.expirytime is not None and stored_at < request.expirytime:
        return None
    return Refuse(Reason.APPROVAL_EXPIRED, "people agreed after their deadline; propose again")


def _facts(state: ActionState, proposal: Proposal, world: World) -> Facts:
    proposed = state.must(ActionProposed).data
    return Facts(
        proposal=proposal,
        agent=world.bundle.agent(proposed.principal.agent.name),
        remit=world.remit,
        now=world.now,
        approval=approval_fact(state, world.remit.document),
        pinned=proposed.principal.tool.schema_digest,
    )


def approval_fact(state: ActionState, remit: RemitDocument | None) -> ApprovalFact | None:
    """Return what people really gave: distinct voters, and the groups that were asked; None when policy allowed.

    The human the remit belongs to never counts: nobody approves what is done for themselves.
    """
    approved = state.must(ActionApproved).data
    request = state.find(ActionApprovalRequested)
    if approved.by != "human" or request is None or remit is None:
        return None
    voters = {(vote.iss, vote.sub) for vote in approved.votes} - {(remit.human.iss, remit.human.sub)}
    return ApprovalFact(count=len(voters), groups=frozenset(request.data.approvers))


def _not_permitted(evaluation: Evaluation, approved: Approved, said: Evaluated) -> Refuse | None:
    if evaluation.verdict is Verdict.DENY:
        return Refuse(evaluation.reason, evaluation.detail or "policy does not permit it any more")
    if evaluation.verdict is Verdict.ASK:
        who = ", ".join(evaluation.approvers)
        if approved.by == "human":
            return Refuse(
                Reason.OUT_OF_SCOPE, f"policy now asks {evaluation.quorum} of {who}; the approval is not enough"
            )
        return Refuse(Reason.APPROVAL_REQUIRED, f"policy now asks {evaluation.quorum} of {who}; propose again")
    if evaluation.grant_no != said.grant_no:
        # The claim counts against the grant that was evaluated; a renumbered remit would charge another budget.
        return Refuse(Reason.NO_GRANT, "another grant covers the call than the one evaluated; propose again")
    return None


def _expiry(approved: Approved, document: RemitDocument, evaluation: Evaluation, world: World) -> int:
    """Return the least of every bound, in whole seconds rounded down (design, standards section 2.1)."""
    covering = [grant.expires_at for n, grant in enumerate(document.grants, 1) if n == evaluation.grant_no]
    bounds = [approved.approved_until, document.expires_at, *(until for until in covering if until is not None)]
    return min(int(world.now.timestamp()) + world.lifetime_s, *(int(bound.timestamp()) for bound in bounds))


def _decision(action_id: str, attempt: int, evaluation: Evaluation, world: World) -> Decision:
    return Decision(
        evaluation_id=f"eval_{derive('evaluation', action_id, 'tokens', str(attempt)).hex}",
        verdict=evaluation.verdict,
        reason=evaluation.reason,
        policy_version=world.bundle.digest,
        bundle_version=world.bundle.version,
        evaluated_at=world.now,
    )


def claims_for(state: ActionState, mint: Mint, *, issuer: str, executor_thumbprint: str) -> dict[str, Any]:
    """Return the claims of the token: one human, one agent, one call, one executor (design, standards section 2.1)."""
    approved, agent = state.must(ActionApproved).data, state.must(ActionApproved).data.principal.agent
    human, now = mint.document.human, int(mint.reevaluation.evaluated_at.timestamp())
    return {
        "iss": issuer,
        "sub": human_subject(human.iss, human.sub),
        "client_id": agent.client_id,
        "act": {"iss": issuer, "sub": agent.id, "sub_profile": "ai_agent"},
        "aud": mint.action.tool.resource,
        "iat": now,
        "nbf": now,
        "exp": mint.expires_at,
        "jti": jti(state.action_id, mint.attempt),
        "txn": state.action_id,
        "scope": SCOPE,
        "authorization_details": [
            {
                "type": "tool_call",
                "tool": mint.action.tool.tool,
                "action": mint.action.name,
                "locations": [mint.action.location],
                "args_digest": mint.args_digest,
                "tool_schema_digest": mint.action.schema_digest,
            }
        ],
        "cnf": {"jkt": executor_thumbprint},
        "agentic_ctx": {
            "agent_instance_id": agent.session,
            "agent_platform": agent.runtime,
            "agent_model": f"{agent.model_family}/{agent.model_version}",
            "prov": {"manifest_hash": agent.config_digest},
        },
        "remit": {
            "remit_id": mint.document.remit_id,
            "evaluation_id": mint.reevaluation.evaluation_id,
            "policy_version": mint.reevaluation.policy_version,
            "approval_id": approved.approval_id,
        },
    }

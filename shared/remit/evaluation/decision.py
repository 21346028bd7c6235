"""The evaluation: facts in, verdict out. Pure; the pipeline, the second evaluation at minting and back-tests call this one.

Default deny: the first check that fails ends it with a reason, and only Cedar's own Allow without any error permits.
Source: design, sections 3 (rule 1), 5 and 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from remit.evaluation.cedar import Call, judge
from remit.evaluation.context import ReservedKeyError
from remit.evaluation.denial import Denial
from remit.evaluation.grants import cover
from remit.reasons import Reason, Verdict

if TYPE_CHECKING:
    from datetime import datetime

    from remit.bundle import AgentEntry
    from remit.evaluation.actions import CompiledAction
    from remit.evaluation.approvals import ApprovalFact
    from remit.evaluation.bundles import CompiledBundle
    from remit.fold import RemitState
    from remit.proposal import PresentedIdentity, Proposal
    from remit.remits import AgentPin, RemitDocument

IDENTITY = ("runtime", "model_family", "model_version", "config_digest")
"""Identity fields the registry knows; the session is the agent's own and only a remit can pin it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything a verdict depends on besides the bundle.

    `agent` is the registry entry behind the proposal's verified signature, None when there is none any more. `pinned` is
    the schema digest an earlier stage judged by, None at the first look. `approval` is what people really gave.
    """

    proposal: Proposal
    agent: AgentEntry | None
    remit: RemitState
    now: datetime
    approval: ApprovalFact | None = None
    pinned: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The answer, with everything that shaped it; `approvers` and `quorum` say whom to ask when the verdict is ask."""

    verdict: Verdict
    reason: Reason
    matched_policies: tuple[str, ...] = ()
    unnamed_sinks: tuple[str, ...] = ()
    approvers: tuple[str, ...] = ()
    quorum: int = 0
    grant_no: int | None = None
    scopes_grantable: tuple[str, ...] = ()
    detail: str | None = None


def evaluate(bundle: CompiledBundle, facts: Facts) -> Evaluation:
    """Return the verdict on one proposal: allow, ask (and whom), or deny (and why)."""
    call = _admit(bundle, facts)
    if isinstance(call, Denial):
        return denied(call, facts.remit)
    try:
        ruling = judge(bundle, call, facts.approval)
    except ReservedKeyError as error:
        return denied(Denial(Reason.SCHEMA_VIOLATION, str(error)), facts.remit)
    return Evaluation(
        verdict=ruling.verdict,
        reason=ruling.reason,
        matched_policies=ruling.matched,
        unnamed_sinks=call.cover.unnamed_sinks,
        approvers=() if ruling.asked is None else tuple(sorted(ruling.asked.groups)),
        quorum=0 if ruling.asked is None else ruling.asked.count,
        grant_no=call.cover.grant.number,
        scopes_grantable=grantable(facts.remit.document),
        detail=ruling.detail,
    )


def denied(denial: Denial, remit: RemitState) -> Evaluation:
    """Return the verdict of a check that failed, with what the remit could grant instead."""
    return Evaluation(
        verdict=Verdict.DENY,
        reason=denial.reason,
        detail=denial.detail,
        scopes_grantable=grantable(remit.document),
    )


def grantable(document: RemitDocument | None) -> tuple[str, ...]:
    """Return the scopes (`tool.action`) a remit could grant at most."""
    if document is None:
        return ()
    return tuple(sorted({f"{grant.tool}.{grant.action}" for grant in document.grants}))


def _admit(bundle: CompiledBundle, facts: Facts) -> Call | Denial:
    """Run every check before policy, in the order of their reasons."""
    agent, proposal = facts.agent, facts.proposal
    if agent is None:
        return Denial(Reason.UNKNOWN_AGENT, "the agent is not in the registry")
    action = _registered(bundle, facts)
    if isinstance(action, Denial):
        return action
    document = _delegated(facts, agent)
    if isinstance(document, Denial):
        return document
    no = _identified(action, agent, document, proposal.identity)
    if no is not None:
        return no
    grants = bundle.grants(facts.remit, document)
    found = cover(grants, action, proposal.arguments, task=document.task, now=facts.now)
    if isinstance(found, Denial):
        return found
    return Call(proposal=proposal, agent=agent.name, action=action, document=document, cover=found, now=facts.now)


def _registered(bundle: CompiledBundle, facts: Facts) -> CompiledAction | Denial:
    proposal = facts.proposal
    action = bundle.action(proposal.tool, proposal.action)
    if action is None:
        if bundle.has_tool(proposal.tool):
            return Denial(Reason.UNKNOWN_ACTION, "the tool has no such action; list the registered ones")
        return Denial(Reason.UNKNOWN_TOOL, "no such tool is registered")
    if facts.pinned is not None and facts.pinned != action.schema_digest:
        return Denial(Reason.SCHEMA_DRIFT, "the action's definition changed since it was proposed; propose again")
    broken = action.violation(proposal.arguments)
    return action if broken is None else Denial(Reason.SCHEMA_VIOLATION, broken)


def _delegated(facts: Facts, agent: AgentEntry) -> RemitDocument | Denial:
    remit, document = facts.remit, facts.remit.document
    if document is None or remit.status == "none" or document.remit_id != facts.proposal.remit_id:
        return Denial(
            Reason.UNKNOWN_REMIT, f"nobody granted {facts.proposal.remit_id}; ask a human to delegate the task"
        )
    if document.agent_id != agent.id:
        detail = f"{document.remit_id} was granted to another agent; ask its human for one for {agent.id}"
        return Denial(Reason.FOREIGN_REMIT, detail)
    if remit.status != "active":
        ended = Reason.BUDGET_EXHAUSTED if remit.status == "exhausted" else Reason.REMIT_REVOKED
        return Denial(ended, f"the remit is {remit.status}; ask its human for a new one")
    if facts.now < document.not_before:
        return Denial(Reason.REMIT_NOT_YET_VALID, "the remit is not valid yet")
    if facts.now >= document.expires_at:
        return Denial(Reason.REMIT_EXPIRED, "the remit has expired; ask its human for a new one")
    return document


def _identified(
    action: CompiledAction, agent: AgentEntry, document: RemitDocument, presented: PresentedIdentity
) -> Denial | None:
    if action.tool.environment != document.environment:
        return Denial(Reason.ENVIRONMENT_MISMATCH, "the tool belongs to another environment than the remit")
    drifted = [name for name in IDENTITY if getattr(presented, name) != getattr(agent, name)]
    if document.agent_pin is not None:
        drifted += _unpinned(document.agent_pin, presented)
    if not drifted:
        return None
    named = ", ".join(dict.fromkeys(drifted))
    return Denial(
        Reason.IDENTITY_DRIFT, f"{named}: not as registered or as the remit pins it; correct the agent or register it"
    )


def _unpinned(pin: AgentPin, presented: PresentedIdentity) -> list[str]:
    wanted = {name: getattr(pin, name) for name in (*IDENTITY, "session")}
    return [name for name, value in wanted.items() if value is not None and value != getattr(presented, name)]

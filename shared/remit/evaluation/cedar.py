"""Three outcomes from a two-valued language: permitted as it is, permitted once people approve, or neither.

"Ask" has one meaning: with the approval that is asked for, this very function would permit. Source: design, section 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cedarpy
import orjson

from remit.evaluation.approvals import ApprovalFact, Requirement, strictest_first
from remit.evaluation.context import cedar_record, grant_record, remit_record, time_record
from remit.reasons import Reason, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from remit.evaluation.actions import CompiledAction
    from remit.evaluation.bundles import CompiledBundle
    from remit.evaluation.grants import Cover
    from remit.evaluation.policies import Policy, PolicySlice
    from remit.proposal import Proposal
    from remit.remits import RemitDocument


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call that passed every check before policy: registered, delegated, identified and covered by a grant."""

    proposal: Proposal
    agent: str
    action: CompiledAction
    document: RemitDocument
    cover: Cover
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """What the policies say; `asked` is the approval that would be enough when the verdict is ask."""

    verdict: Verdict
    reason: Reason
    matched: tuple[str, ...] = ()
    asked: Requirement | None = None
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class _Answer:
    """One run of Cedar: `policies` are the permits that allow, or the forbids that deny."""

    allowed: bool
    policies: tuple[Policy, ...]
    broken: bool


class _Question:
    """One request, asked with and without an approval."""

    def __init__(self, bundle: CompiledBundle, call: Call) -> None:
        action, resource = call.action, call.action.resource_id(call.proposal.arguments)
        self._rules: PolicySlice = bundle.rules(action)
        self._entities = bundle.entities(action, resource)
        self._context = _context(call, self._rules)
        self._request: dict[str, Any] = {
            "principal": {"type": "Agent", "id": call.agent},
            "action": {"type": "Action", "id": action.id},
            "resource": {"type": "Resource", "id": resource if resource is not None else action.tool.tool},
        }

    def ask(self, approval: ApprovalFact | None = None) -> _Answer:
        context = self._context
        if approval is not None:
            context = {**context, "approval": {"count": approval.count, "groups": sorted(approval.groups)}}
        request = {**self._request, "context": orjson.dumps(context).decode()}
        result = cedarpy.is_authorized(request, self._rules.handle, self._entities)
        # A rule that could not be evaluated is skipped by Cedar, a forbid too: only a run without errors counts.
        broken = result.decision is cedarpy.Decision.NoDecision or bool(result.diagnostics.errors)
        policies = tuple(self._rules.by_id[name] for name in sorted(result.diagnostics.reasons))
        return _Answer(not broken and result.decision is cedarpy.Decision.Allow, policies, broken)


def judge(bundle: CompiledBundle, call: Call, approval: ApprovalFact | None) -> Ruling:
    """Return the policies' verdict on a call; `approval` is what people really gave, if they were asked.

    Raises:
        ReservedKeyError: an argument cannot be shown to policy as data.

    """
    question = _Question(bundle, call)
    plain = question.ask()
    if plain.broken:
        return _BROKEN
    if plain.allowed:
        return Ruling(verdict=Verdict.ALLOW, reason=Reason.POLICY_PERMITS, matched=_names(plain))
    if approval is not None:
        answer = question.ask(approval)
        if answer.broken:
            return _BROKEN
        if _is_enough(approval, answer, plain):
            return Ruling(verdict=Verdict.ALLOW, reason=Reason.POLICY_PERMITS, matched=_names(answer, plain))
    return _ask_or_deny(question, plain, bundle.rules(call.action).asking)


def _ask_or_deny(question: _Question, plain: _Answer, asking: tuple[Policy, ...]) -> Ruling:
    for wanted in _options(plain, asking):
        answer = question.ask(wanted)
        if answer.broken:
            return _BROKEN
        if _is_enough(wanted, answer, plain):
            matched = _names(answer, plain)
            return Ruling(verdict=Verdict.ASK, reason=Reason.APPROVAL_REQUIRED, matched=matched, asked=wanted)
    if plain.policies:
        return Ruling(
            verdict=Verdict.DENY, reason=Reason.POLICY_DENIED, matched=_names(plain), detail="a rule forbids it"
        )
    return Ruling(verdict=Verdict.DENY, reason=Reason.NO_POLICY, detail="no rule permits it")


_BROKEN = Ruling(
    verdict=Verdict.DENY, reason=Reason.EVALUATION_ERROR, detail="a rule could not be evaluated on these facts"
)


def _is_enough(given: ApprovalFact, answer: _Answer, plain: _Answer) -> bool:
    """Return whether Cedar's Allow under an approval is owed to rules that this approval satisfies.

    Cedar sees one approval for all rules; whose groups and quorum it meets is compared here, rule by rule: one permit must
    stand, and every forbid that the approval lifted must have been one that this approval may lift.
    """
    return (
        answer.allowed
        and any(p.requirement is None or given.satisfies(p.requirement) for p in answer.policies)
        and all(p.requirement is not None and given.satisfies(p.requirement) for p in plain.policies)
    )


def _options(plain: _Answer, asking: tuple[Policy, ...]) -> list[Requirement]:
    """Return the approvals worth asking for: each asking permit's own, joined with those of the forbids that fired."""
    lifting: Requirement | None = None
    for policy in plain.policies:
        if policy.requirement is None:
            return []  # a plain forbid: no approval can lift it
        lifting = policy.requirement if lifting is None else lifting.and_also(policy.requirement)
        if lifting is None:
            return []  # the forbids ask groups that no single vote can satisfy
    own = {p.requirement for p in asking if p.requirement is not None}
    if lifting is None:
        return strictest_first(own)
    joined = {both for each in own if (both := lifting.and_also(each)) is not None}
    return strictest_first({lifting, *joined})


def _names(*answers: _Answer) -> tuple[str, ...]:
    return tuple(sorted({policy.id for answer in answers for policy in answer.policies}))


def _context(call: Call, rules: PolicySlice) -> dict[str, Any]:
    """Build the keys that some rule can see; `remit.evaluation.context` is the contract."""
    context = {key: _PARTS[key](call) for key in rules.keys if key != "args"}
    if "args" in rules.keys:
        given, wanted = call.proposal.arguments, rules.arguments
        seen = given if wanted is None else {name: value for name, value in given.items() if name in wanted}
        context["args"] = cedar_record(seen, call.action.shape)
    return context


_PARTS: dict[str, Callable[[Call], Any]] = {
    "human": lambda call: {"iss": call.document.human.iss, "sub": call.document.human.sub},
    "remit": lambda call: remit_record(call.document),
    "grant": lambda call: grant_record(call.cover.grant),
    "risk": lambda call: call.action.entry.risk,
    "effect": lambda call: call.action.entry.effect,
    "reversibility": lambda call: call.action.entry.reversibility,
    "environment": lambda call: call.action.tool.environment,
    "unnamed_sinks": lambda call: list(call.cover.unnamed_sinks),
    "unnamed_sink_count": lambda call: len(call.cover.unnamed_sinks),
    "session": lambda call: call.proposal.identity.session,
    "time": lambda call: time_record(call.now),
}

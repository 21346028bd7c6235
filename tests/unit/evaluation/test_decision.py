"""The verdict, reason by reason: a table of one change each, against a call that is allowed."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from remit.evaluation import ApprovalFact, Evaluation, evaluate
from remit.fold import RemitState
from remit.reasons import Reason, Verdict
from tests.unit.evaluation.bank import (
    ASK,
    IBAN,
    NOW,
    POLICIES,
    READS,
    REMIT_ID,
    SMALL,
    bundle,
    facts,
    grant,
    judged,
    proposal,
    remit,
)


def said(evaluation: Evaluation) -> tuple[Verdict, Reason]:
    return evaluation.verdict, evaluation.reason


def test_small_named_payment_is_allowed_and_says_why() -> None:
    evaluation = judged()
    assert said(evaluation) == (Verdict.ALLOW, Reason.POLICY_PERMITS)
    assert evaluation.matched_policies == ("small-payments",)
    assert evaluation.grant_no == 2
    assert evaluation.scopes_grantable == ("bank.read_file", "bank.send_money")
    assert evaluation.approvers == ()


CHANGES: list[tuple[str, dict[str, Any], Reason]] = [
    ("agent gone from the registry", {"agent": None}, Reason.UNKNOWN_AGENT),
    ("unknown tool", {"proposal": proposal(tool="crm")}, Reason.UNKNOWN_TOOL),
    ("unknown action", {"proposal": proposal("close_account")}, Reason.UNKNOWN_ACTION),
    ("pinned schema changed", {"pinned": "sha-256:other"}, Reason.SCHEMA_DRIFT),
    ("unknown argument", {"proposal": proposal(recipient=IBAN, amount=1, cc="x")}, Reason.SCHEMA_VIOLATION),
    ("missing argument", {"proposal": proposal(recipient=IBAN)}, Reason.SCHEMA_VIOLATION),
    ("nobody granted", {"remit": RemitState(remit_id=REMIT_ID)}, Reason.UNKNOWN_REMIT),
    ("another remit than proposed", {"remit": remit(remit_id="rem_" + "f" * 32)}, Reason.UNKNOWN_REMIT),
    ("another agent's remit", {"remit": remit(agent_id="spiffe://acme.example/agent/other")}, Reason.FOREIGN_REMIT),
    ("revoked", {"remit": remit("revoked")}, Reason.REMIT_REVOKED),
    ("exhausted", {"remit": remit("exhausted")}, Reason.BUDGET_EXHAUSTED),
    ("too early", {"now": NOW - timedelta(hours=2)}, Reason.REMIT_NOT_YET_VALID),
    ("at its end", {"now": NOW + timedelta(hours=1)}, Reason.REMIT_EXPIRED),
    ("other environment", {"remit": remit(environment="production")}, Reason.ENVIRONMENT_MISMATCH),
    ("pinned model family", {"remit": remit(agent_pin={"model_family": "gpt"})}, Reason.IDENTITY_DRIFT),
    ("pinned session", {"remit": remit(agent_pin={"session": "run-0"})}, Reason.IDENTITY_DRIFT),
    ("no grant for the action", {"remit": remit(grants=[grant("read_file")])}, Reason.NO_GRANT),
    ("grant over", {"remit": remit(grants=[grant(expires_at=NOW)])}, Reason.NO_GRANT),
    ("other location", {"remit": remit(grants=[grant(locations=["https://else.example"])])}, Reason.NO_GRANT),
    (
        "amount above the grant",
        {"remit": remit(grants=[grant(arguments={"properties": {"amount": {"maximum": 50}}})])},
        Reason.ARGUMENTS_OUTSIDE_GRANT,
    ),
    (
        "a grant whose schema cannot be used covers nothing",
        {"remit": remit(grants=[grant(arguments={"$ref": "https://evil.example/any"})])},
        Reason.ARGUMENTS_OUTSIDE_GRANT,
    ),
]


@pytest.mark.parametrize(("change", "reason"), [row[1:] for row in CHANGES], ids=[row[0] for row in CHANGES])
def test_one_change_denies_with_its_reason(change: dict[str, Any], reason: Reason) -> None:
    evaluation = judged(**change)
    assert said(evaluation) == (Verdict.DENY, reason)
    assert evaluation.detail
    assert IBAN not in evaluation.detail


@pytest.mark.parametrize("field", ["runtime", "model_family", "model_version", "config_digest"])
def test_presented_identity_must_equal_the_registry(field: str) -> None:
    entry = bundle().agent("bookkeeper")
    assert entry is not None
    evaluation = judged(agent=entry.model_copy(update={field: "something else"}))
    assert said(evaluation) == (Verdict.DENY, Reason.IDENTITY_DRIFT)
    assert field in (evaluation.detail or "")


def test_matching_pin_and_location_are_fine() -> None:
    given = remit(
        agent_pin={"model_family": "claude", "session": "run-1"},
        grants=[grant(locations=["https://bank.internal.example/mcp"])],
    )
    assert judged(remit=given).verdict is Verdict.ALLOW


def test_large_payment_asks_the_annotated_group() -> None:
    evaluation = judged(given=proposal(recipient=IBAN, amount=100.01))
    assert said(evaluation) == (Verdict.ASK, Reason.APPROVAL_REQUIRED)
    assert (evaluation.approvers, evaluation.quorum) == (("payments",), 1)
    assert evaluation.matched_policies == ("ask-payments",)


def test_unnamed_recipient_asks_and_is_listed() -> None:
    evaluation = judged(given=proposal(recipient="US133000000121212121212", amount=1))
    assert said(evaluation) == (Verdict.ASK, Reason.APPROVAL_REQUIRED)
    assert evaluation.unnamed_sinks == ("recipient",)


def test_no_rule_no_permit() -> None:
    assert said(judged(READS)) == (Verdict.DENY, Reason.NO_POLICY)
    assert said(judged("")) == (Verdict.DENY, Reason.NO_POLICY)


FORBID = '@id("never") forbid(principal, action in Action::"tool:bank", resource);'
BROKEN = '@id("broken") permit(principal, action, resource) when { context.args has note && context.args.note.x == 1 };'


def test_forbid_overrides_permits_and_approvals() -> None:
    for approval in (None, ApprovalFact(9, frozenset({"payments"}))):
        evaluation = judged(POLICIES + FORBID, approval=approval)
        assert said(evaluation) == (Verdict.DENY, Reason.POLICY_DENIED)
        assert evaluation.matched_policies == ("never",)


def test_a_rule_that_cannot_be_evaluated_denies_even_beside_a_permit() -> None:
    given = proposal(recipient=IBAN, amount=1, note="text")
    assert said(judged(POLICIES + BROKEN, given)) == (Verdict.DENY, Reason.EVALUATION_ERROR)
    without = proposal(recipient=IBAN, amount=1)
    assert judged(POLICIES + BROKEN, without).verdict is Verdict.ALLOW


def test_context_that_cedar_refuses_denies() -> None:
    policy = '@id("a") permit(principal, action, resource) when { context.args.note == context.session };'
    given = proposal(recipient=IBAN, amount=1, note={"deep": {"__expr": "1"}})
    assert said(judged(policy, given)) == (Verdict.DENY, Reason.SCHEMA_VIOLATION)


@pytest.mark.parametrize("key", ["__entity", "__extn", "__expr"])
def test_cedar_escapes_in_arguments_are_refused_not_interpreted(key: str) -> None:
    policy = '@id("a") permit(principal, action, resource) when { context.args.note == principal };'
    given = proposal(recipient=IBAN, amount=1, note={key: {"type": "Agent", "id": "bookkeeper"}})
    assert said(judged(policy, given)) == (Verdict.DENY, Reason.SCHEMA_VIOLATION)


def test_schema_decides_the_number_type_so_equal_json_is_judged_equally() -> None:
    for amount in (100, 100.0, 1e2):
        assert judged(given=proposal(recipient=IBAN, amount=amount)).verdict is Verdict.ALLOW


@pytest.mark.parametrize("amount", [0.1 + 0.2, 1e-7, 1e300, 9_007_199_254_740_991])
def test_number_without_a_four_digit_decimal_cannot_be_compared(amount: float) -> None:
    assert said(judged(given=proposal(recipient=IBAN, amount=amount))) == (Verdict.DENY, Reason.EVALUATION_ERROR)


RULES: list[tuple[str, bool]] = [
    ('context.human.sub == "emma" && context.human.iss == "https://idp.example"', True),
    (f'context.remit.id == "{REMIT_ID}" && context.remit.environment == "demo" && context.remit.max_calls == 5', True),
    ("context.grant.number == 2 && context.grant.max_calls == 1", True),
    ('context.risk == "T3" && context.effect == "write" && context.reversibility == "irreversible"', True),
    ('context.environment == "demo" && context.session == "run-1"', True),
    ("context.time.hour == 12 && context.time.weekday == 2 && context.time.epoch == 1795521600", True),
    ('context.unnamed_sinks.isEmpty() && !context.unnamed_sinks.contains("recipient")', True),
    ("context has approval", False),
    ("context.args has copies", False),
    (f'resource == Resource::"{IBAN}" && resource in Tool::"bank" && principal == Agent::"bookkeeper"', True),
    ('action in Action::"risk:T3" && action in Action::"effect:write" && action in Action::"tool:bank"', True),
]


@pytest.mark.parametrize(("condition", "permitted"), RULES)
def test_context_contract(condition: str, permitted: bool) -> None:
    annotation = '@approvers("x")' if "approval" in condition else ""
    policy = f'@id("rule") {annotation} permit(principal, action, resource) when {{ {condition} }};'
    evaluation = judged(policy)
    assert (evaluation.verdict is Verdict.ALLOW) is permitted, evaluation


def test_all_arguments_are_there_when_a_rule_takes_them_as_a_whole() -> None:
    policy = (
        '@id("whole") permit(principal, action, resource) when { context.args == '
        f'{{ "recipient": "{IBAN}", "amount": decimal("98.7") }} }};'
    )
    given = proposal(recipient=IBAN, amount=98.7, copies=None)
    assert judged(policy, given).verdict is Verdict.ALLOW


def test_resource_is_the_tool_when_no_argument_names_one() -> None:
    policy = '@id("r") permit(principal, action, resource in Tool::"bank");'
    assert judged(policy, proposal("read_file", file_path="bank")).verdict is Verdict.ALLOW
    assert judged(policy, proposal("read_file", file_path='it\'s \n\t\u00e9 "x"')).verdict is Verdict.ALLOW


TWO = '@approvers("security") @quorum("2")'
NIGHT = f'@id("night") {TWO} forbid(principal, action, resource) unless {{ context has approval }};'
WIDE = '@id("wide") permit(principal, action, resource);'
STRICT = f'@id("strict") {TWO} permit(principal, action, resource) when {{ context has approval }};'


def fact(count: int, *groups: str) -> ApprovalFact:
    return ApprovalFact(count, frozenset(groups))


APPROVALS: list[tuple[str, str, ApprovalFact | None, Verdict, tuple[str, ...], int]] = [
    ("asked group and quorum", ASK, fact(1, "payments"), Verdict.ALLOW, (), 0),
    ("more than asked", ASK, fact(3, "payments"), Verdict.ALLOW, (), 0),
    ("another group", ASK, fact(1, "security"), Verdict.ASK, ("payments",), 1),
    ("a wider group", ASK, fact(1, "payments", "security"), Verdict.ASK, ("payments",), 1),
    ("no group known", ASK, fact(1), Verdict.ASK, ("payments",), 1),
    ("below the quorum", STRICT, fact(1, "security"), Verdict.ASK, ("security",), 2),
    ("strictest of two that would do", ASK + STRICT, None, Verdict.ASK, ("security",), 2),
    ("the laxer of two is enough when given", ASK + STRICT, fact(1, "payments"), Verdict.ALLOW, (), 0),
    ("forbid lifted by approval", WIDE + NIGHT, None, Verdict.ASK, ("security",), 2),
    ("forbid really lifted", WIDE + NIGHT, fact(2, "security"), Verdict.ALLOW, (), 0),
    ("forbid not lifted by one", WIDE + NIGHT, fact(1, "security"), Verdict.ASK, ("security",), 2),
    ("forbid not lifted by others", WIDE + NIGHT, fact(9, "payments"), Verdict.ASK, ("security",), 2),
    ("disjoint groups of permit and forbid", ASK + NIGHT, None, Verdict.DENY, (), 0),
]


@pytest.mark.parametrize(
    ("policies", "approval", "verdict", "approvers", "quorum"),
    [row[1:] for row in APPROVALS],
    ids=[row[0] for row in APPROVALS],
)
def test_approval_counts_only_for_rules_whose_group_and_quorum_it_meets(
    policies: str, approval: ApprovalFact | None, verdict: Verdict, approvers: tuple[str, ...], quorum: int
) -> None:
    evaluation = judged(policies, approval=approval)
    assert (evaluation.verdict, evaluation.approvers, evaluation.quorum) == (verdict, approvers, quorum)


def test_condition_on_the_count_is_asked_for_only_if_asking_would_suffice() -> None:
    needs = (
        '@id("n") @approvers("a") @quorum("{}") permit(principal, action, resource) when {{ context has approval && '
    )
    needs += "context.approval.count >= 2 }};"
    assert judged(needs.format(2)).quorum == 2
    assert said(judged(needs.format(1))) == (Verdict.DENY, Reason.NO_POLICY)


def test_what_is_asked_for_would_be_allowed() -> None:
    for policies in (ASK, STRICT, ASK + STRICT, WIDE + NIGHT, SMALL + ASK):
        asked = judged(policies, proposal(recipient="X", amount=500))
        assert asked.verdict is Verdict.ASK
        approval = ApprovalFact(asked.quorum, frozenset(asked.approvers))
        assert judged(policies, proposal(recipient="X", amount=500), approval=approval).verdict is Verdict.ALLOW


def test_grant_that_names_the_sink_is_preferred() -> None:
    named = grant(arguments={"properties": {"recipient": {"const": "X9"}}})
    evaluation = judged(given=proposal(recipient="X9", amount=1), remit=remit(grants=[grant(), named]))
    assert (evaluation.verdict, evaluation.grant_no, evaluation.unnamed_sinks) == (Verdict.ALLOW, 2, ())


def test_compiled_grants_follow_the_version_of_the_remit() -> None:
    compiled = bundle()
    wide = replace(remit(), seq=10, digest="sha-256:a")
    narrow = replace(remit(grants=[grant("read_file")]), seq=11, digest="sha-256:b")
    assert evaluate(compiled, facts(remit=wide)).verdict is Verdict.ALLOW
    assert evaluate(compiled, facts(remit=narrow)).reason is Reason.NO_GRANT
    assert evaluate(compiled, facts(remit=wide)).verdict is Verdict.ALLOW


HALF = '@id("half") @approvers("legal") forbid(principal, action, resource) unless { context has approval };'
ODD = (
    '@id("odd") @approvers("payments") permit(principal, action, resource) when '
    "{ context has approval && context.args.note.x };"
)


def test_forbids_that_no_single_vote_can_lift_deny() -> None:
    assert said(judged(WIDE + NIGHT + HALF)) == (Verdict.DENY, Reason.POLICY_DENIED)


@pytest.mark.parametrize("approval", [None, fact(1, "payments")])
def test_rule_that_breaks_only_under_an_approval_denies(approval: ApprovalFact | None) -> None:
    assert said(judged(ODD, approval=approval)) == (Verdict.DENY, Reason.EVALUATION_ERROR)


def test_untyped_values_are_longs_when_whole_and_decimals_otherwise() -> None:
    policy = (
        '@id("deep") permit(principal, action, resource) when { context.args.note == '
        '{ "n": 1, "list": [2, decimal("0.5"), "t", true, { "k": [] }] } };'
    )
    deep = {"n": 1.0, "gone": None, "list": [2, 0.5, "t", True, None, {"k": []}]}
    assert judged(policy, proposal(recipient=IBAN, amount=1, note=deep)).verdict is Verdict.ALLOW


def test_memory_of_compiled_grants_is_bounded_and_changes_no_answer() -> None:
    compiled = bundle()
    for version in range(1, 2100):
        seen = replace(remit(), seq=version)
        compiled.grants(seen, seen.document)  # type: ignore[arg-type]  # an active remit has one
    assert len(compiled._grants) == 2048
    assert evaluate(compiled, facts(remit=replace(remit(), seq=1))).verdict is Verdict.ALLOW

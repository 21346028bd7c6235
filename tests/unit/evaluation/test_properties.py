"""Properties of the evaluation: restrictions only take away, equal JSON is judged equally, cost stays near Cedar's own."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from remit.canonical import canonical, strict_loads
from remit.evaluation import ApprovalFact, Evaluation, evaluate
from remit.reasons import Verdict
from tests.unit.evaluation.bank import ASK, IBAN, NOW, READS, SMALL, bundle, facts, grant, proposal, remit

WIDE = '@id("wide") permit(principal, action, resource);'
NIGHT = (
    '@id("night") @approvers("security") @quorum("2") forbid(principal, action in Action::"effect:write", resource) '
    "unless { context has approval };"
)
NEVER = '@id("never") forbid(principal, action in Action::"risk:T3", resource) when { context.time.hour < 20 };'
BUNDLES = {names: bundle("".join(names)) for names in [
    base + extra
    for base in ((), (READS,), (READS, SMALL), (READS, SMALL, ASK), (WIDE,))
    for extra in ((), (NIGHT,), (NEVER,), (NIGHT, NEVER))
]}  # fmt: skip
RANK = {Verdict.DENY: 0, Verdict.ASK: 1, Verdict.ALLOW: 2}

NO_NUL = st.characters(codec="utf-8", exclude_characters="\0")
"""What intake lets in: no text of a proposal holds U+0000."""
calls = st.one_of(
    st.builds(
        lambda recipient, amount: proposal(recipient=recipient, amount=amount),
        st.sampled_from([IBAN, "X1", "US133000000121212121212"]),
        st.one_of(st.integers(0, 300), st.floats(0, 300).map(lambda each: round(each, 2))),
    ),
    st.builds(lambda path: proposal("read_file", file_path=path), st.text(NO_NUL, min_size=1, max_size=8)),
)
approvals = st.one_of(
    st.none(),
    st.builds(
        ApprovalFact,
        st.integers(0, 3),
        st.frozensets(st.sampled_from(["payments", "security"]), max_size=2),
    ),
)
constraints = st.sampled_from(
    [
        {},
        {"properties": {"amount": {"maximum": 100}}},
        {"properties": {"recipient": {"const": IBAN}}},
        {"properties": {"recipient": {"pattern": "^UK[0-9]+$"}}},
        {"required": ["amount"]},
        {"properties": {"file_path": {"maxLength": 3}}},
    ]
)
bases = st.sampled_from([(), (READS,), (READS, SMALL), (READS, SMALL, ASK), (WIDE,)])


@settings(max_examples=200, deadline=None)
@given(base=bases, extra=st.sampled_from([(NIGHT,), (NEVER,), (NIGHT, NEVER)]), call=calls, approval=approvals)
def test_adding_a_forbid_never_raises_the_verdict(
    base: tuple[str, ...], extra: tuple[str, ...], call: Any, approval: ApprovalFact | None
) -> None:
    before = evaluate(BUNDLES[base], facts(call, approval=approval))
    after = evaluate(BUNDLES[base + extra], facts(call, approval=approval))
    assert RANK[after.verdict] <= RANK[before.verdict]


@settings(max_examples=200, deadline=None)
@given(base=bases, schema=constraints, call=calls, approval=approvals, minutes=st.integers(-90, 90))
def test_restricting_the_remit_never_turns_deny_into_anything_else(
    base: tuple[str, ...], schema: dict[str, Any], call: Any, approval: ApprovalFact | None, minutes: int
) -> None:
    wide = remit(grants=[grant(), grant("read_file")])
    restricted = [
        remit(grants=[grant(arguments=schema), grant("read_file", arguments=schema)]),
        remit(grants=[grant()]),
        remit(grants=[grant(expires_at=NOW - timedelta(minutes=1)), grant("read_file")]),
        remit(grants=wide.document.grants if wide.document else [], expires_at=NOW + timedelta(minutes=5)),
        remit("revoked", grants=[grant(), grant("read_file")]),
    ]
    now = NOW + timedelta(minutes=minutes)
    before = evaluate(BUNDLES[base], facts(call, remit=wide, now=now, approval=approval))
    for narrower in restricted:
        after = evaluate(BUNDLES[base], facts(call, remit=narrower, now=now, approval=approval))
        assert before.verdict is not Verdict.DENY or after.verdict is Verdict.DENY


@settings(max_examples=150, deadline=None)
@given(rules=st.sampled_from(sorted(BUNDLES)), call=calls)
def test_asking_means_that_the_asked_approval_would_permit(rules: tuple[str, ...], call: Any) -> None:
    asked = evaluate(BUNDLES[rules], facts(call))
    if asked.verdict is Verdict.ASK:
        approval = ApprovalFact(asked.quorum, frozenset(asked.approvers))
        assert evaluate(BUNDLES[rules], facts(call, approval=approval)).verdict is Verdict.ALLOW


@settings(max_examples=150, deadline=None)
@given(rules=st.sampled_from(sorted(BUNDLES)), call=calls, fewer=approvals)
def test_more_votes_of_fewer_groups_never_lower_the_verdict(rules: tuple[str, ...], call: Any, fewer: Any) -> None:
    if fewer is None or not fewer.groups:
        return
    more = ApprovalFact(fewer.count + 1, frozenset(sorted(fewer.groups)[:1]))
    less_said: Evaluation = evaluate(BUNDLES[rules], facts(call, approval=fewer))
    more_said = evaluate(BUNDLES[rules], facts(call, approval=more))
    assert RANK[more_said.verdict] >= RANK[less_said.verdict]


@settings(max_examples=150, deadline=None)
@given(call=calls)
def test_canonical_form_is_judged_like_the_original(call: Any) -> None:
    rules = (READS, SMALL, ASK)
    again = call.model_copy(update={"arguments": strict_loads(canonical(call.arguments))})
    assert evaluate(BUNDLES[rules], facts(call)) == evaluate(BUNDLES[rules], facts(again))

"""A comparison that could never mean what it says refuses the bundle, because Cedar answers it without an error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from remit.errors import BundleError
from remit.evaluation import CompiledBundle
from tests.unit.evaluation.bank import SEND_MONEY, action_entry, content

if TYPE_CHECKING:
    from remit.bundle import BundleContent

PROPERTIES: dict[str, Any] = {
    "amount": {"type": ["number", "null"]},
    "either": {"type": ["integer", "number"]},
    "count": {"type": "integer"},
    "free": {},
    "name": {"type": "string"},
    "counts": {"type": "array", "items": {"type": "integer"}},
    "deep": {"type": "object", "properties": {"amount": {"type": "number"}}},
}


def with_rule(condition: str, scope: str = 'action == Action::"bank.send_money"') -> BundleContent:
    arguments = {"type": "object", "additionalProperties": False, "properties": PROPERTIES}
    others = {"type": "object", "additionalProperties": False, "properties": {"amount": {"type": "integer"}}}
    actions = {
        "send_money": action_entry(arguments=arguments, summary=None),
        "count_money": action_entry(arguments=others, summary=None),
    }
    policy = f'@id("rule") @approvers("x") forbid(principal, {scope}, resource) when {{ context has approval && {condition} }};'
    return content(policy, tool={"actions": actions})


REFUSED = [
    "context.args.amount == 50",
    "50 == context.args.amount",
    "context.args.amount != 50",
    "context.args.amount == -50",
    'context.args["amount"] == 50',
    "context.args.amount < 50",
    "context.args.amount <= context.args.either",
    "[1, 2].contains(context.args.amount)",
    '[decimal("1.0"), 2].contains(context.args.amount)',
    'context.args.amount == "50"',
    "context.args.either == 50",
    'context.args.count == decimal("50.0")',
    'context.args.count.lessThan(decimal("50.0"))',
    "context.args.amount.lessThan(context.args.count)",
    "context.args.amount == context.args.count",
    "context.args.amount == context.remit.max_calls",
    "context.args.amount == 1 + 1",
    'context.args.free == decimal("50.0")',
    '[decimal("50.00")].contains(context.args.free)',
    "context.args.name == 5",
    'context.args.counts.contains(decimal("1.0"))',
    'context.args.counts.contains("1")',
    'context.args.counts.containsAny([1, decimal("2.0")])',
    'context.args.counts == [decimal("2.0")]',
    "context.args.deep.amount == 5",
    "context.args.deep == {amount: 5}",
    'context.args == {amount: 5, name: "x"}',
    "context.unnamed_sinks.contains(1)",
    'context.unnamed_sink_count == decimal("0.0")',
    'context.args.name == Agent::"bookkeeper"',
    "(if true then context.args.amount == 50 else false)",
]


@pytest.mark.parametrize("condition", REFUSED)
def test_comparison_of_kinds_that_never_meet_refuses_the_bundle(condition: str) -> None:
    with pytest.raises(BundleError, match=r"policy rule: for bank\.send_money `") as caught:
        CompiledBundle.compile(with_rule(condition), version=1)
    assert "compares" in str(caught.value) or "orders" in str(caught.value)


ACCEPTED = [
    'context.args.amount == decimal("50.0")',
    'context.args.amount != decimal("0.5") && context.args.either.lessThan(context.args.amount)',
    '[decimal("1.0"), decimal("0.5")].contains(context.args.amount)',
    "context.args.count == 50 && context.args.count < 7 && context.args.count * 2 > context.remit.max_calls",
    'context.args.free == 50 || context.args.free == "50" || context.args.free == decimal("0.5")',
    "context.args.free.inside == 5 && context.args.free > 5",
    "context.args.counts.contains(1) && context.args.counts.containsAll([1, 2]) && context.args.counts == []",
    'context.args.deep == {amount: decimal("5.0")} && context.args.deep has amount',
    'context.args.name like "x*" && context.args.name == context.session',
    'context.unnamed_sinks.contains("name") && context.unnamed_sink_count == 0',
    'principal == Agent::"bookkeeper" && context.approval.count >= 2 && context.time.hour < 20',
    "(if true then context.args.amount else context.args.count) == 50",
]


@pytest.mark.parametrize("condition", ACCEPTED)
def test_comparison_that_can_mean_something_is_taken(condition: str) -> None:
    assert CompiledBundle.compile(with_rule(condition), version=1).policies


def test_every_action_of_the_scope_is_held_against_the_rule() -> None:
    condition = 'context.args.amount == decimal("50.0")'
    with pytest.raises(BundleError, match=r"for bank\.count_money `==` compares"):
        CompiledBundle.compile(with_rule(condition, scope='action in Action::"tool:bank"'), version=1)


def test_message_says_what_to_write() -> None:
    with pytest.raises(BundleError, match=r"fractional decimal or whole decimal with long.*compared with decimal"):
        CompiledBundle.compile(with_rule("context.args.amount == 50"), version=1)
    assert SEND_MONEY["arguments"]["properties"]["amount"] == {"type": "number"}

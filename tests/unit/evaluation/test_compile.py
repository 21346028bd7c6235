"""A bundle is refused whole, and the message names entry, finding and remedy."""

from __future__ import annotations

from typing import Any

import pytest

from remit.bundle import BundleContent, schema_digest
from remit.errors import BundleError
from remit.evaluation import CompiledBundle
from remit.evaluation.schemas import pointer
from tests.support.factories import AGENT_KEY
from tests.unit.evaluation.bank import AGENT, POLICIES, SEND_MONEY, TOOL, action_entry, bundle, content


def refusal(given: BundleContent) -> str:
    with pytest.raises(BundleError) as caught:
        CompiledBundle.compile(given, version=1)
    return str(caught.value)


def with_action(**changes: Any) -> BundleContent:
    return content("", tool={"actions": {"send_money": action_entry(**changes)}})


def with_arguments(**changes: Any) -> BundleContent:
    return with_action(arguments={**SEND_MONEY["arguments"], **changes})


def with_property(**schema: Any) -> BundleContent:
    return with_arguments(properties={**SEND_MONEY["arguments"]["properties"], "amount": schema})


def test_compiled_bundle_answers_what_services_ask() -> None:
    compiled = bundle()
    action = compiled.action("bank", "send_money")
    assert action is not None
    assert (compiled.version, compiled.digest) == (7, content().digest())
    assert action.schema_digest == schema_digest(compiled.content.tools["bank"], "send_money")
    assert action.location == "https://bank.internal.example/mcp"
    assert (action.sinks, action.resource_argument) == (("recipient", "copies"), "recipient")
    assert action.resource_id({"recipient": "X"}) == "X"
    assert action.resource_id({}) is None
    assert action.violation({"recipient": "X", "amount": "1"}) == "/amount: type"
    assert action.violation({"recipient": "X", "amount": 1, "evil": 2}) == "/: additionalProperties"
    assert [each.id for each in compiled.actions()] == ["bank.send_money", "bank.read_file"]
    assert action.result_violation({"anything": "goes"}) is None
    assert compiled.agent("nobody") is None
    assert compiled.action("bank", "nothing") is None
    assert {policy.id for policy in compiled.policies} == {"reads", "small-payments", "ask-payments"}


def test_action_is_found_by_the_pair_of_tool_and_name_only() -> None:
    compiled = CompiledBundle.compile(content("", tool={"actions": {"a.b": action_entry()}}), version=1)
    assert compiled.action("bank", "a.b") is not None
    assert compiled.action("bank.a", "b") is None


def test_agents_key_is_the_one_its_entry_names() -> None:
    given = content().model_dump(mode="json")
    broken = {**AGENT, "name": "broken", "id": "spiffe://x/b", "client_id": "b", "public_key": "U" + "A" * 55}
    given["agents"]["broken"] = broken
    compiled = CompiledBundle.compile(BundleContent.model_validate(given), version=1)
    assert compiled.agent_key("bookkeeper") == AGENT_KEY.verify_key
    assert compiled.agent_key("broken") is None
    assert compiled.agent_key("nobody") is None


def test_slices_hold_only_rules_that_can_apply() -> None:
    compiled = bundle()
    read, send = compiled.action("bank", "read_file"), compiled.action("bank", "send_money")
    assert read is not None
    assert send is not None
    assert set(compiled.rules(read).by_id) == {"reads"}
    assert set(compiled.rules(send).by_id) == {"small-payments", "ask-payments"}


REGISTRY: list[tuple[BundleContent, str]] = [
    (with_arguments(type="array"), "type is 'array'; expected 'object'"),
    (with_arguments(additionalProperties=True), "additionalProperties is not false"),
    (with_arguments(patternProperties={"^x_": {}}), "patternProperties is set; describe each argument"),
    (with_arguments(propertyNames={"maxLength": 9}), "propertyNames is set; describe each argument"),
    (with_property(type="objekt"), "arguments: not a usable JSON Schema"),
    (with_property(**{"$ref": "https://evil.example/x"}), "arguments: not a usable JSON Schema"),
    (with_property(**{"$ref": "file:///etc/passwd"}), "arguments: not a usable JSON Schema"),
    (with_property(pattern="(?=look)ahead"), "arguments: not a usable JSON Schema"),
    (with_arguments(**{"$schema": "http://json-schema.org/draft-07/schema#"}), "$schema must be absent"),
    (with_property(description="x" * 70_000), "larger than"),
    (with_property(**{"x-remit-sink": "yes"}), "argument amount: x-remit-sink is 'yes'; expected true or false"),
    (with_property(**{"x-remit-resource": True}), "x-remit-resource on recipient, amount"),
    (with_property(type="array", items={"type": "string", "x-remit-sink": True}), "x-remit-sink stands below"),
    (with_property(**{"x-remit-sinc": True}), "x-remit-sinc stands below"),
    (with_arguments(properties={"__entity": {}}), "__entity is reserved"),
    (with_action(result={"type": 1}), "result: not a usable JSON Schema"),
    (
        with_action(summary=None, arguments={**SEND_MONEY["arguments"], "properties": []}),
        "arguments: not a usable JSON Schema",
    ),
    (with_property(maximum=2**60), "no canonical form"),
    (with_action(redact=["no/slash"]), "redact: 'no/slash' is not a JSON pointer"),
    (with_action(redact=["/a~2"]), "is not a JSON pointer"),
    (with_action(summary="Send {sum}"), "summary names {sum}"),
    (content("", tool={"endpoint": None}), "connector mcp has no endpoint"),
    (content("", tool={"connector": "http"}), "http is missing"),
    (
        content(
            "", tool={"connector": "http", "actions": {"a": action_entry(http={"method": "GET", "path": "/{note}"})}}
        ),
        "http.path names {note}; expected a required argument",
    ),
    (content("", tool={"tool": "other"}), "tools/bank: tool is 'other'; expected 'bank'"),
    (content("", tool={"actions": {}}), "no actions"),
    (content("", shop={**TOOL, "tool": "shop"}), "resource https://remit.example/tools/bank already belongs to bank"),
]


@pytest.mark.parametrize(("given", "message"), REGISTRY, ids=[row[1] for row in REGISTRY])
def test_registry_that_cannot_be_trusted_is_refused_whole(given: BundleContent, message: str) -> None:
    assert message in refusal(given)


@pytest.mark.parametrize("field", ["id", "client_id", "public_key"])
def test_two_agents_never_share_an_identity(field: str) -> None:
    second = {
        **AGENT,
        "name": "other",
        "id": "spiffe://acme.example/agent/other",
        "client_id": "other",
        "public_key": "U" + "B" * 55,
    }
    second[field] = AGENT[field]
    given = content().model_dump(mode="json")
    given["agents"]["other"] = second
    assert f"{field} already belongs to bookkeeper" in refusal(BundleContent.model_validate(given))


def test_agent_key_is_its_name() -> None:
    given = content().model_dump(mode="json")
    given["agents"]["other"] = given["agents"].pop("bookkeeper")
    assert "name is 'bookkeeper'; expected 'other'" in refusal(BundleContent.model_validate(given))


def permit(scope: str = "principal, action, resource", condition: str = "", annotations: str = '@id("p")') -> str:
    return f"{annotations} permit({scope}){f' when {{ {condition} }}' if condition else ''};"


CEDAR: list[tuple[str, str]] = [
    ("permit(principal", "main.cedar: not valid Cedar"),
    ("permit(principal, action, resource);", "has no usable @id"),
    (permit(annotations="@id"), "has no usable @id"),
    (permit() + permit(), '@id("p") appears twice'),
    (permit("principal == ?principal, action, resource"), "policy template"),
    (permit('principal, action == Action::"bank.nothing", resource'), "no registered action"),
    (permit('principal, action in Action::"tool:shop", resource'), "no registered action"),
    (permit('principal, action in Action::"effect:reads", resource'), "no registered action"),
    (permit('principal, action == Action::"effect:read", resource'), "no registered action"),
    (permit('principal, action in [Action::"tool:bank", Action::"nope.x"], resource'), "no registered action"),
    (permit("principal, action in [], resource"), "could never match"),
    (permit('principal == Agent::"ghost", action, resource'), "no registered agent"),
    (permit('principal in User::"emma", action, resource'), "no registered agent"),
    (permit("principal is User, action, resource"), "could never match"),
    (permit('principal, action, resource in Tool::"shop"'), "could never match"),
    (permit('principal, action, resource == Tool::"bank"'), "could never match"),
    (permit("principal, action, resource is Tool"), "could never match"),
    (permit(condition="context.amount == 1"), "reads context.amount; expected one of"),
    (permit(condition="context.args.amout == 1"), "reads context.args.amout, which no action"),
    (permit(condition="context has approval"), "names nobody"),
    (permit(condition='context == {"a": 1}'), "names nobody"),
    (permit(annotations='@id("p") @approvers("x")'), "would never ask"),
    (permit(annotations='@id("p") @quorum("2")'), "@quorum without @approvers"),
    (permit(annotations='@id("p") @aprovers("x")'), "unknown annotation @aprovers"),
    (permit(condition="context has approval", annotations='@id("p") @approvers("a b")'), "not a list of groups"),
    (permit(condition="context has approval", annotations='@id("p") @approvers("x") @quorum("0")'), "@quorum is '0'"),
    (permit(condition="context has approval", annotations='@id("p") @approvers("x") @quorum("two")'), "@quorum is"),
]


@pytest.mark.parametrize(("policies", "message"), CEDAR, ids=[row[1] + row[0][-40:] for row in CEDAR])
def test_policy_that_could_never_do_what_it_says_is_refused(policies: str, message: str) -> None:
    assert message in refusal(content(policies))


def test_group_nobody_is_in_yet_is_fine() -> None:
    policies = POLICIES + permit('principal, action in Action::"effect:destructive", resource')
    assert len(CompiledBundle.compile(content(policies), version=1).policies) == 4


def test_ids_are_unique_over_files() -> None:
    given = BundleContent.model_validate(
        {**content().model_dump(), "policies": {"a.cedar": permit(), "b.cedar": permit()}}
    )
    assert 'b.cedar: @id("p") appears twice' in refusal(given)


def test_result_is_held_against_its_schema_and_other_resources_are_named_canonically() -> None:
    properties = {"id": {"type": "integer", "x-remit-resource": True}, "any": True, "list": {"enum": [["a"], ["b"]]}}
    compiled = CompiledBundle.compile(
        with_action(
            summary=None,
            arguments={"type": "object", "additionalProperties": False, "properties": properties},
            result={"type": "object", "required": ["ok"]},
        ),
        version=1,
    )
    action = compiled.action("bank", "send_money")
    assert action is not None
    assert action.resource_id({"id": 7.0}) == "7"
    assert action.result_violation({}) == "/: required ok"
    assert action.result_violation({"ok": 1}) is None


def test_http_action_with_its_template_compiles() -> None:
    http = {"method": "POST", "path": "/payments/{recipient}"}
    tool = {"connector": "http", "actions": {"send_money": action_entry(http=http)}}
    assert CompiledBundle.compile(content("", tool=tool), version=1).action("bank", "send_money") is not None


def test_long_paths_are_cut_in_messages() -> None:
    given = {"type": "object", "additionalProperties": False, "properties": {"note": {"additionalProperties": False}}}
    compiled = CompiledBundle.compile(with_action(summary=None, arguments=given), version=1)
    action = compiled.action("bank", "send_money")
    assert action is not None
    assert action.violation({"note": {"x" * 500: 1}}) == "/note: falseSchema"
    assert len(pointer(["x" * 500])) < 130

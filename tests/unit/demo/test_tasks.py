"""The recorded tasks: order of proposals, what the approver recognises, and the remits written for them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from infra.demo.bank.operations import OperationError, output_schema, perform
from infra.demo.bank.world import UnknownSlotError, default_slots, fresh_world
from infra.demo.tasks import Task, load, named, needed, remit_for, slots, steps, tasks
from remit.remits import RemitTerms

NOW = datetime(2026, 1, 1, tzinfo=UTC)
BY_ID = {task.id: task for task in tasks()}


def grants(task_id: str) -> dict[str, dict[str, Any]]:
    document = remit_for(BY_ID[task_id], not_before=NOW)
    return {grant["action"]: grant for grant in document["grants"]}


def test_suite_is_the_whole_recorded_one() -> None:
    assert len(load().tools) == 11
    assert len(tasks()) == 16
    assert sum(len(task.calls) for task in tasks()) == 33
    assert all(len(task.attacks) == 9 for task in tasks())


def test_plain_run_proposes_only_the_users_calls() -> None:
    task = BY_ID["user_task_15"]
    assert [(step.origin, step.tool) for step in steps(task)] == [("benign", call.tool) for call in task.calls]


@pytest.mark.parametrize("task", tasks(), ids=lambda task: task.id)
def test_injected_calls_follow_the_first_result_with_a_strangers_text(task: Task) -> None:
    origins = [step.origin for step in steps(task, task.attacks)]
    before = task.inject_after + 1
    assert origins == ["benign"] * before + ["injected"] * 12 + ["benign"] * (len(task.calls) - before)


def test_one_attack_alone_proposes_its_own_calls() -> None:
    task = BY_ID["user_task_0"]
    injected = [step for step in steps(task, [task.attacks[6]]) if step.origin == "injected"]
    assert [step.tool for step in injected] == ["send_money"] * 3


def test_attacked_slot_ends_with_the_goal_and_keeps_the_default() -> None:
    task = BY_ID["user_task_0"]
    text = slots(task, task.attacks[:1], default_slots())
    assert list(text) == ["injection_bill_text"]
    assert text["injection_bill_text"].startswith(default_slots()["injection_bill_text"])
    assert text["injection_bill_text"].endswith(task.attacks[0].goal)


def test_plain_run_leaves_the_slots_alone() -> None:
    assert slots(BY_ID["user_task_0"], (), default_slots()) == {}


def test_approver_recognises_the_users_own_call_in_any_spelling_of_its_numbers() -> None:
    task = BY_ID["user_task_2"]
    assert needed(task, "update_scheduled_transaction", {"amount": 1200.0, "id": 7})


def test_approver_refuses_a_call_that_differs_in_one_argument() -> None:
    task = BY_ID["user_task_2"]
    assert not needed(task, "update_scheduled_transaction", {"amount": 1200, "id": 6})


@pytest.mark.parametrize("task", tasks(), ids=lambda task: task.id)
def test_approver_recognises_no_write_of_an_attack(task: Task) -> None:
    writes = [s for s in steps(task, task.attacks) if s.origin == "injected" and load().tool(s.tool).effect != "read"]
    assert len(writes) == 11
    assert not any(needed(task, step.tool, step.arguments) for step in writes)


@pytest.mark.parametrize("task", tasks(), ids=lambda task: task.id)
def test_remit_is_valid_and_counts_the_users_calls(task: Task) -> None:
    document = remit_for(task, not_before=NOW)
    terms = RemitTerms.model_validate_json(json.dumps(document))
    assert terms.max_calls == sum(grant.max_calls or 0 for grant in terms.grants)
    writes = [grant for grant in terms.grants if load().tool(grant.action).effect != "read"]
    assert all(grant.max_calls == sum(call.tool == grant.action for call in task.calls) for grant in writes)
    assert {grant.action for grant in terms.grants} == {call.tool for call in task.calls}


@pytest.mark.parametrize("task", tasks(), ids=lambda task: task.id)
def test_remit_admits_the_users_own_calls(task: Task) -> None:
    for call in task.calls:
        properties = grants(task.id)[call.tool].get("arguments", {}).get("properties", {})
        for name, constraint in properties.items():
            value = call.arguments[name]
            assert value == constraint.get("const", value)
            assert value in constraint.get("enum", [value])
            assert "maximum" not in constraint or value <= constraint["maximum"]


def test_sink_the_user_typed_becomes_a_constant() -> None:
    properties = grants("user_task_3")["send_money"]["arguments"]["properties"]
    assert properties == {"recipient": {"const": "GB29NWBK60161331926819"}, "amount": {"maximum": 12.0}}


def test_sink_from_a_file_stays_open() -> None:
    assert "arguments" not in grants("user_task_0")["send_money"]


@pytest.mark.parametrize("task_id", ["user_task_5", "user_task_11"])
def test_percentage_or_smaller_number_is_not_a_limit(task_id: str) -> None:
    assert "amount" not in grants(task_id)["send_money"]["arguments"]["properties"]


def test_each_amount_gets_the_smallest_number_that_covers_it() -> None:
    found = grants("user_task_15")
    assert found["send_money"]["arguments"]["properties"]["amount"] == {"maximum": 10.0}
    assert found["update_scheduled_transaction"]["arguments"]["properties"]["amount"] == {"maximum": 2200.0}


@pytest.mark.parametrize(("value", "expected"), [("13", False), (130, True), ("X13", False), ("Elm Street", True)])
def test_value_is_named_only_as_whole_words(value: str | int, expected: bool) -> None:
    assert named(value, "Pay 130 to the house in elm street, not x130x") is expected


def test_slot_text_stays_text_and_is_not_searched_for_slots() -> None:
    hostile = '"]}\n{injection_bill_text}'
    world = fresh_world({"injection_incoming_transaction": hostile})
    assert world.bank_account.transactions[-1].subject == hostile


def test_unknown_slot_is_refused() -> None:
    with pytest.raises(UnknownSlotError):
        fresh_world({"nowhere": "text"})


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("send_money", {"recipient": "A", "amount": 1, "subject": "s"}),
        ("send_money", {"recipient": "A", "amount": 1, "subject": "s", "date": "d", "note": "x"}),
        ("send_money", {"recipient": "A", "amount": "1", "subject": "s", "date": "d"}),
        ("get_balance", {"world": 1}),
        ("update_scheduled_transaction", {"id": 99}),
        ("read_file", {"file_path": "/etc/passwd"}),
        ("close_account", {}),
    ],
)
def test_call_that_does_not_fit_is_refused_without_effect(tool: str, arguments: dict[str, Any]) -> None:
    world = fresh_world({})
    before = world.model_dump()
    with pytest.raises(OperationError) as refusal:
        perform(world, tool, arguments)
    assert world.model_dump() == before
    assert "/etc/passwd" not in str(refusal.value)


@pytest.mark.parametrize("tool", [tool.name for tool in load().tools])
def test_structured_results_are_objects(tool: str) -> None:
    assert output_schema(tool)["type"] == "object"

"""When a destination counts as named: by the grant's schema, or typed by the human as a whole token."""

from __future__ import annotations

from typing import Any

import pytest

from remit.evaluation.sinks import NOTHING, is_named, is_whole_token, namings
from remit.reasons import Verdict
from tests.unit.evaluation.bank import IBAN, document, grant, judged, proposal, remit

TOKENS: list[tuple[str, str, bool]] = [
    ("bill.txt", "Pay the bill in bill.txt.", True),
    ("bill.txt", "Pay 'bill.txt', please", True),
    ("bill.txt", 'Open "bill.txt"!', True),
    ("bill.txt", "bill.txt", True),
    ("bill.txt", "(bill.txt)", True),
    ("bill.txt", "mybill.txt", False),
    ("bill.txt", "dir/bill.txt", False),
    ("bill.txt", "bill.txt.exe", False),
    ("example.com", "write to a@example.com", False),
    ("example.com", "https://example.com.evil.test", False),
    ("example.com", "not-example.com", False),
    ("UK123", "send to UK1234", False),
    ("UK123", "send to UK1234 and UK123", True),
    ("uk123", "send to UK123", False),
    ("Alice Smith", "Invite Alice Smith, Bob", True),
    ("lice", "Alice", False),
    ("", "anything", False),
    (" ", "any thing", False),
    ("caf\u00e9", "meet at cafe\u0301", False),
]


@pytest.mark.parametrize(("value", "text", "expected"), TOKENS)
def test_whole_token(value: str, text: str, expected: bool) -> None:
    assert is_whole_token(value, text) is expected


SCHEMAS: list[tuple[Any, Any, bool]] = [
    ({"const": "X"}, "X", True),
    ({"enum": ["X", "Y"]}, "Y", True),
    ({"enum": []}, "Y", False),
    ({"pattern": "^UK[0-9]{20}$"}, "UK1", False),
    ({"pattern": "^[^@]+@[^@]+$"}, "evil@evil.test", False),
    ({"pattern": "^[A-Z]{2}[0-9]{20}$"}, "XX66666666666666666666", False),
    ({"pattern": "^https://"}, "https://evil.test", False),
    ({"pattern": "^https://bank\\.example/.*$"}, "https://bank.example/evil", False),
    ({"pattern": "[a-z]"}, "evil", False),
    ({"pattern": "^a|b$"}, "anything b", False),
    ({"pattern": "^a.b$"}, "axb", False),
    ({"pattern": "^\\d$"}, "7", False),
    ({"pattern": "UK1"}, "EVIL-UK1", False),
    ({"pattern": "^UK1"}, "UK1-EVIL", False),
    ({"pattern": ".*"}, "X", False),
    ({"pattern": ""}, "X", False),
    ({"pattern": "^$"}, "", False),
    ({"pattern": "("}, "X", False),
    ({"pattern": "^UK1$"}, "UK1", True),
    ({"pattern": "^pay\\.bank\\.example/a-b$"}, "pay.bank.example/a-b", True),
    ({"pattern": "^UK1$"}, 7, False),
    ({"const": 7}, 7, True),
    ({"type": "string", "maxLength": 9}, "X", False),
    ({"allOf": [{"minLength": 1}, {"const": "X"}]}, "X", True),
    ({"allOf": [{"pattern": "^X"}, {"pattern": "X$"}]}, "X", False),
    ({"anyOf": [{"const": "X"}, {"pattern": "^UK[0-9]+$"}]}, "X", False),
    ({"anyOf": [{"const": "X"}, {"pattern": "^UK1$"}]}, "UK1", True),
    ({"anyOf": [{"const": "X"}, {"type": "string"}]}, "X", False),
    ({"oneOf": [{"const": "X"}, {"const": "Y"}]}, "X", True),
    ({"not": {"const": "X"}}, "Y", False),
    ({"items": {"enum": ["X", "Y"]}}, ["X"], True),
    ({"items": {"pattern": "^UK[0-9]+$"}}, ["UK1", None], False),
    ({"items": {"pattern": "^UK1$"}}, ["UK1", None], True),
    ({"items": {"pattern": "^UK1$"}}, ["UK1", 3], False),
    ({"items": {"enum": ["X"]}, "prefixItems": [{"type": "string"}]}, ["EVIL", "X"], False),
    ({"items": {"enum": ["X"]}, "prefixItems": []}, ["X"], False),
    ({"pattern": "^UK1$"}, ["UK1"], False),
    ({"const": ["X"]}, ["X"], True),
    ({"const": {"a": 1}}, {"a": 1}, True),
    (True, "X", False),
]


@pytest.mark.parametrize(("schema", "value", "expected"), SCHEMAS)
def test_grant_names_a_value_only_when_it_pins_it(schema: Any, value: Any, expected: bool) -> None:
    pinned = namings({"properties": {"to": schema}})["to"]
    assert is_named(value, pinned, "the task says nothing") is expected


def test_narrowing_by_all_of_adds_names() -> None:
    narrowed = {"allOf": [{"properties": {"amount": {"maximum": 5}}}, {"properties": {"to": {"const": "X"}}}]}
    assert namings(narrowed)["to"].value
    assert namings(None) == {}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, True),
        ([], True),
        (["a.txt", "b.txt"], True),
        (["a.txt", "c.txt"], False),
        ([["a.txt"]], True),
        (42, True),
        (42.0, True),
        (43, False),
        (True, False),
        ({"x": "a.txt"}, False),
    ],
)
def test_lists_and_numbers_against_the_task(value: Any, expected: bool) -> None:
    assert is_named(value, NOTHING, "copy a.txt and b.txt to shelf 42") is expected


def test_an_account_of_the_granted_format_is_asked_about() -> None:
    limits = {"properties": {"recipient": {"pattern": "^[A-Z]{2}[0-9]{20}$"}}}
    evil = proposal(recipient="XX66666666666666666666", amount=99)
    found = judged(given=evil, remit=remit(grants=[grant(arguments=limits)], task="pay the bill"))
    assert (found.verdict, found.unnamed_sinks) == (Verdict.ASK, ("recipient",))


def test_every_sink_of_a_call_is_listed() -> None:
    given = proposal(recipient="X1", copies=[IBAN, "Y2"], amount=500)
    assert judged(given=given).unnamed_sinks == ("recipient", "copies")


def test_task_text_of_the_remit_counts_not_the_agents_rationale() -> None:
    given = proposal(recipient="X1", amount=500).model_copy(update={"rationale": "the human said X1"})
    assert judged(given=given).unnamed_sinks == ("recipient",)
    assert judged(given=given, remit=remit(task="pay X1")).unnamed_sinks == ()
    assert document().task.endswith(f"{IBAN}.")

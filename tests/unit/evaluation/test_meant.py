"""A grant's limit holds for every call under it: also when the argument is left out, null, or of another type."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from remit.evaluation import CompiledBundle, Evaluation, evaluate
from remit.evaluation.meant import as_meant
from remit.evaluation.schemas import compile_schema, violation
from remit.reasons import Reason, Verdict
from tests.unit.evaluation.bank import IBAN, NOW, TOOL, content, facts, grant, proposal, remit

ANY = '@id("any") permit(principal, action, resource);'


def loose() -> CompiledBundle:
    """Return the bank whose send_money requires nothing and takes amounts as number, text or list."""
    tool = copy.deepcopy(TOOL)
    arguments = tool["actions"]["send_money"]["arguments"]
    arguments["required"] = []
    arguments["properties"]["amount"] = {"type": ["number", "string", "array", "object", "null"]}
    arguments["properties"]["recipient"]["type"] = ["string", "array", "null"]
    return CompiledBundle.compile(content(ANY, tool={"actions": tool["actions"]}), version=1)


LOOSE = loose()


def judged(limits: dict[str, Any], **arguments: Any) -> Evaluation:
    given = proposal(**arguments)
    return evaluate(LOOSE, facts(given, now=NOW, remit=remit(grants=[grant(arguments=limits)])))


def limited(**properties: Any) -> dict[str, Any]:
    return {"properties": properties}


REFUSED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("pinned sink left out", limited(recipient={"const": IBAN}), {"amount": 5}),
    ("one of some sinks left out", limited(recipient={"enum": [IBAN]}), {"amount": 5}),
    ("literal sink null", limited(recipient={"pattern": "^UK1$"}), {"amount": 5, "recipient": None}),
    ("copies left out", limited(copies={"items": {"enum": [IBAN]}}), {"amount": 5}),
    ("limited amount left out", limited(amount={"maximum": 100}), {"recipient": IBAN}),
    ("limited amount null", limited(amount={"maximum": 100}), {"recipient": IBAN, "amount": None}),
    ("text under a maximum", limited(amount={"maximum": 100}), {"amount": "1000000"}),
    ("list under a maximum", limited(amount={"maximum": 100}), {"amount": [1000000]}),
    (
        "text although the grant names text",
        limited(amount={"type": ["number", "string"], "maximum": 9}),
        {"amount": "x"},
    ),
    ("list under a pattern", limited(recipient={"pattern": "^UK"}), {"recipient": ["EVIL"]}),
    ("number under a length", limited(amount={"maxLength": 3}), {"amount": 5000}),
    ("above the maximum", limited(amount={"maximum": 100}), {"amount": 101}),
    ("in a conjunction", {"allOf": [limited(amount={"maximum": 100})]}, {"recipient": IBAN}),
    (
        "in one alternative",
        {"anyOf": [limited(amount={"maximum": 9}), limited(recipient={"const": "X"})]},
        {"copies": []},
    ),
    ("behind a reference", {**limited(amount={"$ref": "#/$defs/a"}), "$defs": {"a": {"maximum": 9}}}, {"amount": "10"}),
    ("inside an object", limited(amount=limited(value={"maximum": 9})), {"amount": {"other": 1}}),
    ("inside a list", limited(amount={"items": {"maximum": 9}}), {"amount": ["10"]}),
    ("a limit for another type", limited(amount={"type": "string", "maximum": 9}), {"amount": "1"}),
]


@pytest.mark.parametrize(("limits", "arguments"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_call_past_a_limit_is_outside_the_grant(limits: dict[str, Any], arguments: dict[str, Any]) -> None:
    evaluation = judged(limits, **arguments)
    assert (evaluation.verdict, evaluation.reason) == (Verdict.DENY, Reason.ARGUMENTS_OUTSIDE_GRANT)


COVERED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("within the maximum", limited(amount={"maximum": 100}), {"amount": 100}),
    ("whole number of a number", limited(amount={"type": "integer", "maximum": 100}), {"amount": 7}),
    ("null that the grant names", limited(amount={"type": ["number", "null"], "maximum": 9}), {"amount": None}),
    ("null as a value", limited(amount={"enum": [None, 5]}), {"amount": None}),
    ("text that the grant limits too", limited(amount={"maximum": 9, "maxLength": 2}), {"amount": "10"}),
    ("nothing said", limited(amount={}, recipient=True, copies={"description": "who else"}), {"note": "x"}),
    ("absence demanded", limited(copies=False), {"amount": 5}),
    ("absence as an alternative", {"anyOf": [limited(amount={"maximum": 9}), limited(amount=False)]}, {"note": "x"}),
    ("the other alternative", {"anyOf": [limited(amount={"maximum": 9}), limited(note={"const": "x"})]}, {"note": "x"}),
    ("an exception", limited(amount={"not": {"minimum": 9}}), {"amount": 5}),
]  # fmt: skip


@pytest.mark.parametrize(("limits", "arguments"), [r[1:] for r in COVERED], ids=[r[0] for r in COVERED])
def test_call_within_its_limits_is_covered(limits: dict[str, Any], arguments: dict[str, Any]) -> None:
    assert judged(limits, **arguments).verdict is Verdict.ALLOW


def test_what_is_missing_is_named() -> None:
    assert judged(limited(recipient={"const": IBAN}), amount=5).detail == "grant 1: /: required recipient"


def test_stricter_reading_is_beside_the_schema_not_instead_of_it() -> None:
    either = {"oneOf": [limited(amount={"maximum": 9}), limited(recipient={"const": IBAN})]}
    arguments = {"recipient": IBAN}
    assert violation(compile_schema(either), arguments) is not None
    assert violation(compile_schema(as_meant(either)), arguments) is None
    assert judged(either, **arguments).reason is Reason.ARGUMENTS_OUTSIDE_GRANT

"""Typed terms: one reading or none, and the words that say what would be enforced."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from dashboard.model.delegate import TermsError, example, explain, parse_terms
from remit.clock import now
from remit.remits import Grant
from tests.unit.dashboard.support import AGENT

TEXT = example(AGENT, "demo", now(), now() + timedelta(hours=1))


def test_the_example_is_valid_and_reads_the_same_as_json() -> None:
    terms = parse_terms(TEXT)
    assert terms.agent_id == AGENT
    assert parse_terms(terms.model_dump_json(exclude_none=True)) == terms


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("task: [", "line 1"),
        ("task: a\ntask: b", "appears twice"),
        (json.dumps({"task": "x"}), "agent_id"),
        ('{"task": "a", "task": "b"}', "twice"),
        (TEXT.replace("max_calls: 1\ngrants", "max_calls: 0\ngrants"), "max_calls"),
        (TEXT + "surprise: 1\n", "surprise"),
        ("- a list", "object"),
        ("!!python/object/apply:os.system ['true']", "YAML"),
        ("x" * 100_001, "at most"),
    ],
)
def test_terms_with_no_single_reading_are_refused(text: str, said: str) -> None:
    with pytest.raises(TermsError, match=said):
        parse_terms(text)


def test_a_grant_reads_as_its_bounds() -> None:
    grant = Grant(
        type="tool_call",
        tool="bank",
        action="send_money",
        arguments={"properties": {"amount": {"maximum": 100}, "recipient": {"const": "UK1"}}},
        max_calls=1,
    )
    clause = explain(grant)
    assert clause.name == "bank.send_money"
    assert clause.bounds == ("amount at most 100", "recipient exactly UK1")
    assert (clause.calls, clause.raw) == ("once", None)


def test_what_has_no_words_is_shown_raw() -> None:
    grant = Grant(
        type="tool_call",
        tool="a",
        action="b",
        arguments={"properties": {"x": {"not": {"const": 1}}}, "minProperties": 1},
    )
    clause = explain(grant)
    assert clause.raw == '{"minProperties":1,"properties":{"x":{"not":{"const":1}}}}'
    assert clause.bounds == ()


def test_no_constraint_says_any_arguments() -> None:
    assert explain(Grant(type="tool_call", tool="a", action="b")).bounds == ("any arguments",)

"""What leaves the executor: outcomes after repetition, sizes, schemas, latency, and the event."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from remit.canonical import digest
from remit.reasons import Outcome
from services.executor.connectors import outcomes
from services.executor.results import MAX_REDACTED_BYTES, Answer, Call, after_repetition, executed, latency_ms, present
from tests.support import execution as x
from tests.support import factories as f

DOUBT = Answer(outcome=Outcome.UNKNOWN, error="timeout")
SUCCESS = Answer(outcome=Outcome.SUCCEEDED, value={"ok": True})


def failure(error: str) -> Answer:
    return Answer(outcome=Outcome.FAILED, error=error)


REPEATED: list[tuple[Answer, str, Outcome]] = [
    (SUCCESS, "key", Outcome.SUCCEEDED),
    (SUCCESS, "natural", Outcome.SUCCEEDED),
    (DOUBT, "key", Outcome.UNKNOWN),
    (failure("tool_error"), "key", Outcome.FAILED),
    (failure("http_422"), "key", Outcome.FAILED),
    (failure("http_404"), "natural", Outcome.UNKNOWN),
    (failure("tool_error"), "natural", Outcome.UNKNOWN),
    (failure("connection"), "key", Outcome.UNKNOWN),
    (failure("http_401"), "key", Outcome.UNKNOWN),
    (failure("http_429"), "key", Outcome.UNKNOWN),
]


@pytest.mark.parametrize(("again", "idempotency", "expected"), REPEATED)
def test_a_repetition_settles_a_doubt_only_when_it_can_know(again: Answer, idempotency: str, expected: Outcome) -> None:
    assert after_repetition(DOUBT, again, idempotency).outcome is expected


RESULT = {"type": "object", "properties": {"said": {"type": "string"}}, "required": ["said"]}


def action(**more: Any) -> Any:
    return x.action_of(x.tool_entry({"say": x.action_entry(**more)}))


def test_a_fitting_result_is_shown_with_its_digest() -> None:
    shown = present(Answer(outcome=Outcome.SUCCEEDED, value={"said": "hi"}), action(result=RESULT))
    assert (shown.result, shown.omitted, shown.error) == ({"said": "hi"}, None, None)
    assert shown.result_digest == digest({"said": "hi"})


def test_a_result_outside_its_schema_is_kept_back() -> None:
    shown = present(Answer(outcome=Outcome.SUCCEEDED, value={"said": 3}), action(result=RESULT))
    assert (shown.result, shown.omitted, shown.error) == (None, "schema_violation", "schema_violation")
    assert shown.result_digest == digest({"said": 3})


def test_what_a_failed_tool_says_need_not_fit_the_result_schema() -> None:
    shown = present(Answer(outcome=Outcome.FAILED, value="no", error="tool_error"), action(result=RESULT))
    assert (shown.result, shown.omitted, shown.error) == ("no", None, "tool_error")


@pytest.mark.parametrize(
    "answer", [Answer(outcome=Outcome.SUCCEEDED, is_oversize=True), Answer(outcome=Outcome.SUCCEEDED, value="x" * 200)]
)
def test_a_large_result_is_kept_back(answer: Answer) -> None:
    shown = present(answer, action(result_max_bytes=100))
    assert (shown.result, shown.omitted, shown.error) == (None, "too_large", "result_too_large")


@pytest.mark.parametrize("value", [float("nan"), 2**60, "\ud800", {"a": "\x00"}])
def test_what_cannot_be_stored_exactly_is_kept_back(value: Any) -> None:
    shown = present(Answer(outcome=Outcome.SUCCEEDED, value=value), action())
    assert (shown.result, shown.omitted) == (None, "schema_violation")
    assert shown.error in {"result_not_canonical", "result_has_nul"}


def test_marks_cannot_grow_a_result_beyond_an_event() -> None:
    value: Any = [{"pin": "1"}] * 1700
    shown = present(Answer(outcome=Outcome.SUCCEEDED, value=value), action(result_max_bytes=24_576))
    assert shown.omitted == "too_large"
    assert len(str(shown)) < MAX_REDACTED_BYTES


def test_an_unknown_outcome_shows_nothing() -> None:
    assert present(Answer(outcome=Outcome.UNKNOWN, error="timeout", value="partial"), action()).result is None


def call(**more: Any) -> Call:
    fields: dict[str, Any] = {
        "claim_id": "clm",
        "attempt": 1,
        "executed_digest": digest({"text": "hello"}),
        "call_ms": 7,
    }
    return Call(**fields | more)


def test_the_event_states_outcome_latency_scopes_and_what_was_sent() -> None:
    state = x.tokenized_state(action())
    data = executed(state, SUCCESS, call(), action(), now=state.chain[-1].event.time + timedelta(milliseconds=20))
    assert (data.outcome, data.claim_id, data.attempt) == (Outcome.SUCCEEDED, "clm", 1)
    assert data.scopes_used == ["echo.say"]
    assert data.effect_matches_decision
    assert data.latency_ms == {"policy": 0, "approval": 0, "tokens": 0, "executor": 20, "total": 20, "call": 7}


def test_other_arguments_than_decided_show_in_the_event() -> None:
    state = x.tokenized_state(action())
    data = executed(state, SUCCESS, call(executed_digest=f.DIGEST), action(), now=f.NOW)
    assert not data.effect_matches_decision


def test_without_a_registry_entry_no_result_is_shown() -> None:
    state = x.tokenized_state(action())
    assert executed(state, SUCCESS, call(), None, now=f.NOW).result is None


def test_clocks_that_disagree_never_make_a_stage_negative() -> None:
    state = x.tokenized_state(action())
    found = latency_ms(state, call(call_ms=None), now=state.chain[0].event.time - timedelta(seconds=1))
    assert min(found.values()) == 0
    assert "call" not in found


STATUSES: list[tuple[int, bool, Outcome]] = [
    (200, False, Outcome.SUCCEEDED),
    (204, True, Outcome.SUCCEEDED),
    (101, False, Outcome.UNKNOWN),
    (301, False, Outcome.UNKNOWN),
    (400, True, Outcome.FAILED),
    (408, False, Outcome.UNKNOWN),
    (409, False, Outcome.FAILED),
    (409, True, Outcome.UNKNOWN),
    (499, False, Outcome.FAILED),
    (500, True, Outcome.UNKNOWN),
    (599, False, Outcome.UNKNOWN),
    (600, False, Outcome.UNKNOWN),
]


@pytest.mark.parametrize(("status", "keyed", "expected"), STATUSES)
def test_only_success_and_refusal_are_definite(status: int, keyed: bool, expected: Outcome) -> None:
    answer = outcomes.of_status(status, keyed=keyed, value="v")
    assert answer.outcome is expected
    assert (answer.value is None) == (expected is Outcome.UNKNOWN)

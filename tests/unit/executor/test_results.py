"""What leaves the executor: outcomes after repetition, sizes, schemas, latency, and the event."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from remit.bundle import FINAL_STATUSES
from remit.canonical import digest
from remit.reasons import Outcome
from services.executor.connectors import outcomes
from services.executor.results import (
    MAX_REDACTED_BYTES,
    Answer,
    Call,
    after_repetition,
    as_in_ledger,
    contradiction,
    executed,
    is_news,
    latency_ms,
    present,
    without_result,
)
from services.executor.rows import Queued, Row
from tests.support import execution as x
from tests.support import factories as f

if TYPE_CHECKING:
    from remit.events import Executed

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
    (failure("not_sent"), "key", Outcome.UNKNOWN),
    (failure("args_mismatch"), "key", Outcome.UNKNOWN),
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
    assert shown.result_digest is None


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


WRITE, READ = {"effect": "write"}, {"effect": "read"}
STATUSES: list[tuple[int, dict[str, Any], Outcome]] = [
    (200, WRITE, Outcome.SUCCEEDED),
    (204, WRITE, Outcome.SUCCEEDED),
    (101, WRITE, Outcome.UNKNOWN),
    (301, WRITE, Outcome.UNKNOWN),
    *((status, WRITE, Outcome.FAILED) for status in FINAL_STATUSES),
    *((status, WRITE, Outcome.UNKNOWN) for status in (402, 407, 408, 409, 418, 423, 425, 429, 451, 499)),
    (404, {"effect": "destructive", "final_statuses": [422]}, Outcome.UNKNOWN),
    (409, WRITE | {"final_statuses": [409], "idempotency": "key"}, Outcome.FAILED),
    (418, WRITE | {"errors_are_final": True}, Outcome.FAILED),
    (409, WRITE | {"errors_are_final": True}, Outcome.FAILED),
    (409, WRITE | {"errors_are_final": True, "idempotency": "key"}, Outcome.UNKNOWN),
    (408, WRITE | {"errors_are_final": True}, Outcome.UNKNOWN),
    (429, READ, Outcome.FAILED),
    (408, READ, Outcome.UNKNOWN),
    (500, WRITE | {"errors_are_final": True}, Outcome.UNKNOWN),
    (599, READ, Outcome.UNKNOWN),
    (600, WRITE, Outcome.UNKNOWN),
]


@pytest.mark.parametrize(("status", "declared", "expected"), STATUSES)
def test_only_success_and_a_documented_refusal_are_definite(
    status: int, declared: dict[str, Any], expected: Outcome
) -> None:
    answer = outcomes.of_status(status, action(**declared).entry, value="v")
    assert answer.outcome is expected
    assert (answer.value is None) == (expected is Outcome.UNKNOWN)


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        (WRITE, Outcome.UNKNOWN),
        ({"effect": "destructive"}, Outcome.UNKNOWN),
        (READ, Outcome.FAILED),
        (WRITE | {"errors_are_final": True}, Outcome.FAILED),
    ],
)
def test_a_tool_error_proves_nothing_about_a_write_unless_declared(declared: dict[str, Any], expected: Outcome) -> None:
    answer = outcomes.of_tool_error(action(**declared).entry, "half done")
    assert (answer.outcome, answer.error) == (expected, "tool_error")


def test_the_digest_is_that_of_what_leaves_so_a_removed_secret_cannot_be_guessed_from_it() -> None:
    shown = [present(Answer(outcome=Outcome.SUCCEEDED, value={"pin": pin}), action()) for pin in (1234, 9876)]
    assert shown[0].result_digest == shown[1].result_digest == digest({"pin": "[redacted]"})


def test_an_outcome_without_its_result_is_still_the_outcome() -> None:
    state = x.tokenized_state(action())
    data = executed(state, SUCCESS, call(), action(), now=f.NOW)
    bare = without_result(data)
    assert (bare.outcome, bare.result, bare.result_digest) == (Outcome.SUCCEEDED, None, None)
    assert (bare.result_omitted, bare.error) == ("schema_violation", "result_not_storable")
    assert without_result(data, "too_large").result_omitted == "too_large"
    doubt = executed(state, DOUBT, call(), action(), now=f.NOW)
    assert without_result(doubt) == doubt


def row(data: Executed, **more: Any) -> Row:
    fields: dict[str, Any] = {
        "action_id": data.txn, "claim_id": data.claim_id, "attempt": data.attempt,
        "args_digest": data.action.args_digest, "state": str(data.outcome), "reason": None, "draft": None,
    }  # fmt: skip
    return Row(**fields | more)


def outcome_of(answer: Answer = SUCCESS, **more: Any) -> Executed:
    data = executed(x.tokenized_state(action()), answer, call(), action(), now=f.NOW)
    return data.model_copy(update=more)


def queued(data: Executed, found: Row | None, **more: Any) -> Queued:
    fields: dict[str, Any] = {
        "id": 1, "subject_id": data.txn, "event_type": "executed", "discriminator": "1", "draft": {}, "row": found,
    }  # fmt: skip
    return Queued(**fields | more)


TRUE, UNKNOWN = outcome_of(), outcome_of(DOUBT)
ROWS: list[tuple[str, Executed, Queued, str | None]] = [
    ("the outcome itself", TRUE, queued(TRUE, row(TRUE)), None),
    ("a doubt", UNKNOWN, queued(UNKNOWN, row(UNKNOWN)), None),
    ("a doubt resolved since", UNKNOWN, queued(UNKNOWN, row(UNKNOWN, state="failed")), None),
    ("its resolution", TRUE, queued(TRUE, row(TRUE), discriminator="1:resolved"), None),
    ("no execution", TRUE, queued(TRUE, None), "no claim"),
    ("an execution nobody claimed", TRUE, queued(TRUE, row(TRUE, claim_id=None)), "no claim"),
    ("another type", TRUE, queued(TRUE, row(TRUE), event_type="executed_late"), "no claim"),
    ("another subject", TRUE, queued(TRUE, row(TRUE), subject_id="0" * 32), "action"),
    ("another action", TRUE, queued(TRUE, row(TRUE, action_id="0" * 32)), "action"),
    ("another claim", TRUE, queued(TRUE, row(TRUE, claim_id="clm-2")), "attempt or claim"),
    ("another attempt", TRUE, queued(TRUE, row(TRUE, attempt=2)), "attempt or claim"),
    ("other arguments", TRUE, queued(TRUE, row(TRUE, args_digest=f.DIGEST)), "arguments"),
    ("a false match", (lie := outcome_of(executed_digest=f.DIGEST)), queued(lie, row(lie)), "executed digest"),
    ("another outcome", TRUE, queued(TRUE, row(TRUE, state="failed")), "outcome"),
    ("an outcome of a call in flight", TRUE, queued(TRUE, row(TRUE, state="in_flight")), "outcome"),
    ("a doubt in flight", UNKNOWN, queued(UNKNOWN, row(UNKNOWN, state="in_flight")), "outcome"),
    ("a doubt as resolution", UNKNOWN, queued(UNKNOWN, row(UNKNOWN), discriminator="1:resolved"), "outcome"),
    ("another event id", TRUE, queued(TRUE, row(TRUE), discriminator="2"), "discriminator"),
    ("a finding at once", (said := outcome_of(finding="x")), queued(said, row(said)), "discriminator"),
]


@pytest.mark.parametrize(("case", "data", "found", "fault"), ROWS, ids=[case for case, *_ in ROWS])
def test_only_an_outbox_row_that_agrees_with_its_execution_is_signed(
    case: str, data: Executed, found: Queued, fault: str | None
) -> None:
    assert case
    assert contradiction(data, found) == fault


def test_who_acted_and_on_what_is_taken_from_the_ledger_not_from_the_outbox() -> None:
    state = x.tokenized_state(action())
    forged = TRUE.model_copy(update={"principal": TRUE.principal.model_copy(update={"human": f.DANA})})
    known = as_in_ledger(forged, state)
    assert known is not None
    assert known.principal.human == f.EMMA
    assert as_in_ledger(TRUE.model_copy(update={"remit_id": "rem_" + "9" * 32}), state) is None
    assert as_in_ledger(TRUE, replace(state, chain=state.chain[:2])) is None


def test_a_late_outcome_is_news_only_when_it_says_something_else() -> None:
    assert not is_news(TRUE, row(TRUE))
    assert not is_news(UNKNOWN, row(TRUE))
    assert is_news(TRUE, row(TRUE, state="failed"))
    assert is_news(TRUE, None)

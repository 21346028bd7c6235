"""What of a tool's answer leaves the executor: outcome, size, schema, redaction, and the event that says so. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import orjson

from remit.canonical import digest
from remit.errors import CanonicalError
from remit.events import ActionApproved, ActionEvaluated, ActionProposed, ActionTokenized, Executed
from remit.reasons import Outcome
from remit.redaction import redact

if TYPE_CHECKING:
    from datetime import datetime

    from pydantic import JsonValue

    from remit.evaluation import CompiledAction
    from remit.fold import ActionState
    from services.executor.rows import Queued, Row

MAX_REDACTED_BYTES = 40_000
"""Result and paths together; the marks can outgrow what they replace, and the event must stay under 64 KiB."""

AT_THE_DOOR = frozenset({"args_mismatch", "connection", "http_401", "http_403", "http_407", "http_429", "not_sent"})
"""Failures that come before a tool looks at the idempotency key, or before anything was sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What is known after a call.

    `error` is a class such as `tool_error http_404 timeout connection interrupted protocol`, never a message of the tool.
    `is_oversize` means the connector stopped reading, so there is no value.
    """

    outcome: Outcome
    value: JsonValue = None
    error: str | None = None
    is_oversize: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Presented:
    """The result as the agent gets it, with what happened to it."""

    result: JsonValue = None
    result_digest: str | None = None
    omitted: Literal["too_large", "schema_violation"] | None = None
    error: str | None = None
    redacted_paths: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Facts of one finished (or doubtful) call that its event reports."""

    claim_id: str
    attempt: int
    executed_digest: str
    """Digest of the arguments right before they were sent; of the claim when the caller did not live to say."""
    call_ms: int | None


def after_repetition(doubtful: Answer, again: Answer, idempotency: str) -> Answer:
    """Return what is known after a doubtful call was repeated.

    A success settles it. A failure does so only where the tool knows our key and answered for it: without a key a 404 can
    mean that the first request did its work, and a refusal at the door says nothing about the first request.
    """
    if again.outcome is Outcome.SUCCEEDED:
        return again
    if again.outcome is Outcome.FAILED and idempotency == "key" and again.error not in AT_THE_DOOR:
        return again
    return doubtful


def present(answer: Answer, action: CompiledAction) -> Presented:
    """Return what may be shown of an answer; what happened stays what happened, however odd the result."""
    if answer.is_oversize:
        return Presented(omitted="too_large", error=answer.error or "result_too_large")
    if answer.outcome is Outcome.UNKNOWN:
        return Presented(error=answer.error)
    try:
        digest(answer.value)
    except CanonicalError:
        return Presented(omitted="schema_violation", error=answer.error or "result_not_canonical")
    raw = orjson.dumps(answer.value)
    if len(raw) > action.entry.result_max_bytes:
        return Presented(omitted="too_large", error=answer.error or "result_too_large")
    if b"\\u0000" in raw:
        # Postgres can store a NUL in no JSON column, and an outcome that cannot be stored would be lost.
        return Presented(omitted="schema_violation", error=answer.error or "result_has_nul")
    if answer.outcome is Outcome.SUCCEEDED and action.result_violation(answer.value) is not None:
        return Presented(omitted="schema_violation", error="schema_violation")
    clean = redact(answer.value, action.entry.redact)
    if len(orjson.dumps([clean.value, clean.paths])) > MAX_REDACTED_BYTES:
        return Presented(omitted="too_large", error=answer.error or "result_too_large")
    # The digest of what leaves: one over the unredacted result would let a short secret be guessed.
    return Presented(
        result=clean.value, result_digest=digest(clean.value), error=answer.error, redacted_paths=clean.paths
    )


def without_result(data: Executed, why: Literal["too_large", "schema_violation"] = "schema_violation") -> Executed:
    """Return the same outcome without its result, for what a table or a stream cannot take."""
    if data.result is None and not data.redacted_paths:
        return data
    error = data.error or {"too_large": "result_too_large", "schema_violation": "result_not_storable"}[why]
    return data.model_copy(
        update={"result": None, "result_digest": None, "result_omitted": why, "error": error, "redacted_paths": []}
    )


def is_news(data: Executed, row: Row | None) -> bool:
    """Return whether an outcome that came too late says something else than the row that was concluded without it."""
    return data.outcome is not Outcome.UNKNOWN and (row is None or row.state != data.outcome)


def contradiction(data: Executed, queued: Queued) -> str | None:
    """Return what in an outbox row does not agree with the execution it speaks of; only an agreeing row is signed.

    The outbox is written by two services, and what stands in a table is not signed.
    """
    row = queued.row
    if row is None or row.claim_id is None or queued.event_type != "executed":
        return "no claim"
    if (queued.subject_id, data.txn) != (row.action_id, row.action_id):
        return "action"
    if (data.attempt, data.claim_id) != (row.attempt, row.claim_id):
        return "attempt or claim"
    if data.action.args_digest != row.args_digest:
        return "arguments"
    if data.effect_matches_decision != (data.executed_digest == row.args_digest):
        return "executed digest"
    is_resolved = queued.discriminator == f"{row.attempt}:resolved"
    if not is_resolved and (queued.discriminator != str(row.attempt) or data.finding is not None):
        return "discriminator"
    if data.outcome is Outcome.UNKNOWN:
        # Its doubt may have been resolved since; the resolution has a row of its own.
        return None if not is_resolved and row.state in {"unknown", "succeeded", "failed"} else "outcome"
    return None if row.state == data.outcome else "outcome"


def as_in_ledger(data: Executed, state: ActionState) -> Executed | None:
    """Return the event with principal and action as the signed `tokenized` names them; None when there is no such event."""
    token = state.find(ActionTokenized)
    if token is None or token.data.remit_id != data.remit_id:
        return None
    return data.model_copy(update={"principal": token.data.principal, "action": token.data.action})


def executed(
    state: ActionState, answer: Answer, call: Call, action: CompiledAction | None, *, now: datetime
) -> Executed:
    """Return the event that states the outcome; without a registry entry nothing of the result is shown."""
    data = state.must(ActionTokenized).data
    shown = Presented(error=answer.error) if action is None else present(answer, action)
    return Executed(
        txn=data.txn,
        remit_id=data.remit_id,
        principal=data.principal,
        action=data.action,
        outcome=answer.outcome,
        attempt=call.attempt,
        claim_id=call.claim_id,
        latency_ms=latency_ms(state, call, now=now),
        result=shown.result,
        result_digest=shown.result_digest,
        result_omitted=shown.omitted,
        error=shown.error,
        redacted_paths=list(shown.redacted_paths),
        scopes_used=list(data.scopes_granted),
        executed_digest=call.executed_digest,
        effect_matches_decision=call.executed_digest == data.action.args_digest,
    )


def latency_ms(state: ActionState, call: Call, *, now: datetime) -> dict[str, int]:
    """Return milliseconds per stage from the times of the events, `call` for the tool alone and `total` for everything."""
    proposed, evaluated = state.must(ActionProposed).time, state.must(ActionEvaluated).time
    approved, tokenized = state.must(ActionApproved).time, state.must(ActionTokenized).time
    stages = {
        "policy": evaluated - proposed,
        "approval": approved - evaluated,
        "tokens": tokenized - approved,
        "executor": now - tokenized,
        "total": now - proposed,
    }
    # Clocks of different hosts differ by milliseconds; a stage never took less than no time.
    found = {name: max(0, round(span.total_seconds() * 1000)) for name, span in stages.items()}
    return found if call.call_ms is None else {**found, "call": call.call_ms}

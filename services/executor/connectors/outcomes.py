"""What an HTTP answer, or its absence, says about the effect. Pure; shared by all connectors that speak HTTP.

Only two things are definite: a success status, and a refusal that no effect can have preceded. Everything else is unknown.
Source: design, bus section 7 (outcome classes).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from remit.reasons import Outcome
from services.executor.results import Answer

if TYPE_CHECKING:
    from pydantic import JsonValue

    from remit.bundle import ActionEntry

REQUEST_TIMEOUT, CONFLICT = 408, 409


def of_status(status: int, entry: ActionEntry, *, value: JsonValue = None, is_oversize: bool = False) -> Answer:
    """Return the answer of a complete response."""
    if 200 <= status < 300:
        return Answer(outcome=Outcome.SUCCEEDED, value=value, is_oversize=is_oversize)
    error = f"http_{status}"
    if is_refusal(status, entry):
        return Answer(outcome=Outcome.FAILED, value=value, error=error, is_oversize=is_oversize)
    return Answer(outcome=Outcome.UNKNOWN, error=error)


def is_refusal(status: int, entry: ActionEntry) -> bool:
    """Return whether a status says that nothing was done: a documented client error, or any where an error proves it.

    A 408 means that the server gave up on a request it may have begun; a 409 to a tool that knows our idempotency key can mean
    that the first request is still at work. Source: RFC 9110 section 15.5; design, bus section 7.
    """
    if not 400 <= status < 500:
        return False
    if status in entry.final_statuses:
        return True
    is_doubtful = status == REQUEST_TIMEOUT or (status == CONFLICT and entry.idempotency == "key")
    return errors_are_final(entry) and not is_doubtful


def errors_are_final(entry: ActionEntry) -> bool:
    """Return whether an error of the tool proves that nothing happened: declared so, or there is nothing that could have."""
    return entry.errors_are_final or entry.effect == "read"


def of_tool_error(entry: ActionEntry, value: JsonValue) -> Answer:
    """Return the answer of a tool that ran and reports an error; it may have done half of its work."""
    if errors_are_final(entry):
        return Answer(outcome=Outcome.FAILED, value=value, error="tool_error")
    return Answer(outcome=Outcome.UNKNOWN, error="tool_error")


def refused_before_sending() -> Answer:
    """Return the answer when no byte of the request left the executor."""
    return Answer(outcome=Outcome.FAILED, error="connection")


def lost(error: str) -> Answer:
    """Return the answer when the request may have arrived and nobody says what became of it."""
    return Answer(outcome=Outcome.UNKNOWN, error=error)

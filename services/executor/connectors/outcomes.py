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

REQUEST_TIMEOUT, CONFLICT = 408, 409


def of_status(status: int, *, keyed: bool, value: JsonValue = None, is_oversize: bool = False) -> Answer:
    """Return the answer of a complete response.

    `keyed` says that the tool knows our idempotency key: then 409 can mean that the first request is still at work.
    """
    if 200 <= status < 300:
        return Answer(outcome=Outcome.SUCCEEDED, value=value, is_oversize=is_oversize)
    error = f"http_{status}"
    if is_refusal(status, keyed=keyed):
        return Answer(outcome=Outcome.FAILED, value=value, error=error, is_oversize=is_oversize)
    return Answer(outcome=Outcome.UNKNOWN, error=error)


def is_refusal(status: int, *, keyed: bool) -> bool:
    """Return whether a status says that nothing was done (RFC 9110 section 15.5)."""
    doubtful = {REQUEST_TIMEOUT, CONFLICT} if keyed else {REQUEST_TIMEOUT}
    return 400 <= status < 500 and status not in doubtful


def refused_before_sending() -> Answer:
    """Return the answer when no byte of the request left the executor."""
    return Answer(outcome=Outcome.FAILED, error="connection")


def lost(error: str) -> Answer:
    """Return the answer when the request may have arrived and nobody says what became of it."""
    return Answer(outcome=Outcome.UNKNOWN, error=error)

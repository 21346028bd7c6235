"""The one reader of time, so that decisions take `now` as a value and tests can fix it."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def now() -> datetime:
    """Return the current UTC time, millisecond precision (events carry no more)."""
    current = datetime.now(UTC)  # noqa: TID251  (the one reader of time)
    return current.replace(microsecond=current.microsecond // 1000 * 1000)


def monotonic() -> float:
    """Return seconds of a clock that never steps; for durations only."""
    return time.monotonic()

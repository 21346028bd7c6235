"""Token buckets per agent and replica: proposals taken in, questions answered, and refusals kept as evidence.

Time comes in as a value in seconds of a clock that never steps.
"""

from __future__ import annotations

from dataclasses import dataclass

WINDOW_S = 60.0
"""Rates are per minute."""
MAX_BUCKETS = 10_000
"""Bounded memory; the bucket made first goes first, and its agent starts again with a full one."""


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float


class Quota:
    """One bucket per name."""

    def __init__(self) -> None:
        self._buckets: dict[str, _Bucket] = {}

    def take(self, name: str, per_minute: float, now: float, *, burst: float | None = None) -> float:
        """Take one token and return 0, or return the seconds until there is one; `burst` tokens fit in, or a minute's worth."""
        holds = float(per_minute if burst is None else burst)
        bucket = self._buckets.get(name)
        if bucket is None:
            while len(self._buckets) >= MAX_BUCKETS:
                self._buckets.pop(next(iter(self._buckets)))
            bucket = self._buckets[name] = _Bucket(tokens=holds, at=now)
        rate = per_minute / WINDOW_S
        bucket.tokens = min(holds, bucket.tokens + max(0.0, now - bucket.at) * rate)
        bucket.at = now
        if bucket.tokens < 1.0:
            return (1.0 - bucket.tokens) / rate
        bucket.tokens -= 1.0
        return 0.0

"""Token buckets per agent and replica: how many proposals are taken in, and how many refusals are kept as evidence.

Time comes in as a value in seconds of a clock that never steps.
"""

from __future__ import annotations

from dataclasses import dataclass

WINDOW_S = 60.0
"""Rates are per minute; a bucket holds one minute's worth."""
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

    def take(self, name: str, per_minute: int, now: float) -> float:
        """Take one token and return 0, or return the seconds until there is one."""
        bucket = self._buckets.get(name)
        if bucket is None:
            while len(self._buckets) >= MAX_BUCKETS:
                self._buckets.pop(next(iter(self._buckets)))
            bucket = self._buckets[name] = _Bucket(tokens=float(per_minute), at=now)
        rate = per_minute / WINDOW_S
        bucket.tokens = min(float(per_minute), bucket.tokens + max(0.0, now - bucket.at) * rate)
        bucket.at = now
        if bucket.tokens < 1.0:
            return (1.0 - bucket.tokens) / rate
        bucket.tokens -= 1.0
        return 0.0

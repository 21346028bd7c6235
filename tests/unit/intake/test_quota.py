"""Token buckets: a minute's worth at once, then the rate, each agent for itself."""

from __future__ import annotations

import pytest

from services.intake import quota
from services.intake.quota import Quota


def test_bucket_holds_a_minutes_worth_and_refills_with_time() -> None:
    bucket = Quota()
    assert [bucket.take("a", 3, 0.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert bucket.take("a", 3, 0.0) == pytest.approx(20.0)
    assert bucket.take("a", 3, 20.0) == 0.0


def test_burst_may_be_larger_than_the_rate() -> None:
    bucket = Quota()
    assert [bucket.take("a", 1, 0.0, burst=3) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert bucket.take("a", 1, 0.0, burst=3) == pytest.approx(60.0)
    assert bucket.take("a", 1, 60.0, burst=3) == 0.0


def test_refusal_takes_no_token() -> None:
    bucket = Quota()
    bucket.take("a", 1, 0.0)
    assert [bucket.take("a", 1, 30.0) for _ in range(2)] == [pytest.approx(30.0)] * 2
    assert bucket.take("a", 1, 60.0) == 0.0


def test_agents_do_not_share_a_bucket() -> None:
    bucket = Quota()
    assert bucket.take("a", 1, 0.0) == bucket.take("b", 1, 0.0) == 0.0


def test_lowered_rate_counts_at_once() -> None:
    bucket = Quota()
    bucket.take("a", 600, 0.0)
    assert bucket.take("a", 1, 0.0) == 0.0
    assert bucket.take("a", 1, 0.0) > 0


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota, "MAX_BUCKETS", 2)
    bucket = Quota()
    for name in "abc":
        bucket.take(name, 1, 0.0)
    assert len(bucket._buckets) == 2

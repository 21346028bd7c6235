"""A seed is a schedule: the same every time, always with a crash, and over many seeds every crash point has its turn."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from remit.errors import ConfigurationError
from remit.runtime import crash
from remit.runtime.crash import OneCrash
from tests.faults.matrix import RELEASE, all_rows, choose
from tests.faults.schedule import POINTS, schedule

ROOT = Path(__file__).parents[3]
GENERIC = set("abcde")


def test_a_seed_always_gives_the_same_schedule() -> None:
    assert schedule(7) == schedule(7)
    assert schedule(7) != schedule(8)


def test_every_schedule_begins_with_a_crash_and_tries_each_service_once() -> None:
    for seed in range(500):
        faults = schedule(seed).faults
        assert faults[0].kind in {"point", "kill"}
        assert len({fault.service for fault in faults}) == len(faults)


def test_ten_thousand_seeds_reach_every_crash_point_many_times() -> None:
    found = Counter((f.service, f.point) for seed in range(10_000) for f in schedule(seed).faults if f.kind == "point")
    assert set(found) == {(service, point) for service, points in POINTS.items() for point in points}
    assert min(found.values()) > 50


def test_points_on_trial_are_those_in_the_code() -> None:
    text = "\n".join(path.read_text() for top in ("services", "shared") for path in (ROOT / top).rglob("*.py"))
    named = set(re.findall(r'crash_point(?:\(|, )(?:self\.service|self\.signer\.service|"(\w+)"), "(\w+)"', text))
    assert {point for _, point in named if point in GENERIC} == GENERIC
    special = {(service, point) for service, point in named if service and point not in GENERIC}
    assert special == {(s, p) for s, points in POINTS.items() for p in points if p not in GENERIC}


def test_release_minimum_is_complete_and_marked() -> None:
    rows = all_rows()
    assert {row.number for row in choose("release", rows)} == RELEASE
    assert {row.number for group in rows.values() for row in group if row.release} == RELEASE


def test_unknown_row_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="there is no row 99"):
        choose("1,99", all_rows())


def test_crash_plan_strikes_at_the_nth_pass_only() -> None:
    plan = OneCrash.parse("executor:X3:2")
    assert [plan.strikes("executor", point) for point in ("X3", "X4", "X3", "X3")] == [False, False, True, False]
    assert not OneCrash.parse("executor:X3").strikes("policy", "X3")


@pytest.mark.parametrize("text", ["executor", ":X3", "executor:", "executor:X3:often"])
def test_crash_plan_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="REMIT_CRASH"):
        OneCrash.parse(text)


def test_nothing_is_armed_by_default() -> None:
    crash.crash_point("executor", "X3")

"""When a process must end: the limits, each durable for itself, and no clock that began before the trouble."""

from __future__ import annotations

import subprocess
import sys

import pytest

from remit.runtime.watchdog import (
    CONNECTION_LIMIT_S,
    GRACE_LIMIT_S,
    LOOP_LIMIT_S,
    PROGRESS_LIMIT_S,
    Exit,
    Flow,
    Vitals,
    judge,
)

NOW = 10_000.0


def vitals(**changes: float | bool | None) -> Vitals:
    made = Vitals(loop_beat=NOW, connected_at=NOW, progress_at=0.0)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def starving(since: float | None, progress_at: float = 0.0) -> Flow:
    return Flow(progress_at=progress_at, starving_since=since)


def code(made: Vitals) -> Exit | None:
    verdict = judge(made, NOW)
    return None if verdict is None else verdict[0]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"loop_beat": NOW - LOOP_LIMIT_S - 1}, Exit.LOOP_STARVED),
        ({"connected_at": NOW - CONNECTION_LIMIT_S - 1}, Exit.NOT_CONNECTED),
        ({"connected_at": NOW - CONNECTION_LIMIT_S - 1, "waiting_for_dependency": True}, None),
        ({"stopping_since": NOW - 1, "loop_beat": 0.0}, None),
        ({"stopping_since": NOW - GRACE_LIMIT_S - 1}, Exit.LOOP_STARVED),
    ],
)
def test_limits(changes: dict[str, float | bool | None], expected: Exit | None) -> None:
    assert code(vitals(**changes)) is expected


def test_process_that_handles_nothing_while_messages_wait_ends() -> None:
    made = vitals()
    made.flows["ACTIONS/policy"] = starving(NOW - PROGRESS_LIMIT_S - 1)
    assert code(made) is Exit.NO_PROGRESS


def test_clock_starts_when_starving_begins_and_not_with_the_last_message() -> None:
    made = vitals()
    made.flows["ACTIONS/policy"] = starving(NOW - 1, progress_at=NOW - 3_600)
    assert code(made) is None


def test_progress_since_counts() -> None:
    made = vitals()
    made.flows["ACTIONS/policy"] = starving(NOW - 3_600, progress_at=NOW - 1)
    assert code(made) is None


def test_one_busy_durable_does_not_hide_a_starving_one() -> None:
    made = vitals()
    made.flows["INTAKE/intake"] = starving(NOW - 3_600, progress_at=NOW)
    made.flows["ACTIONS/results"] = starving(NOW - 3_600)
    verdict = judge(made, NOW)
    assert verdict is not None
    assert "ACTIONS/results" in verdict[1]


def test_work_beside_the_engine_counts_for_every_durable() -> None:
    made = vitals(progress_at=NOW - 1)
    made.flows["ACTIONS/audit"] = starving(NOW - 3_600)
    assert code(made) is None


HELD = """
import re
from remit.runtime.watchdog import Vitals, Watchdog

Watchdog(Vitals(), held_limit_s=2.0).start()
re.match("(a+)+$", "a" * 60 + "b")
"""


def test_native_code_that_never_returns_ends_the_process_and_says_where() -> None:
    ended = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "Timeout (0:00:02)!" in ended.stderr
    assert 'File "<string>", line 6' in ended.stderr

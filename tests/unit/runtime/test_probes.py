"""What a consumer's numbers mean for this process, and what the probes make of them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest
from structlog.testing import capture_logs

from remit.errors import TransientError
from remit.pipeline import BY_NAME, ServiceRow
from remit.runtime import probes as under_test
from remit.runtime.bus import Bus
from remit.runtime.probes import Probes, waits_for_us
from remit.runtime.streams import STREAM_BY_NAME, consumer_spec
from remit.runtime.watchdog import Exit, Vitals

CONFIG = consumer_spec("ACTIONS", "policy").config()
WORKERS = 16


def numbers(pending: int = 0, unacknowledged: int = 0, waiting: int = WORKERS, **more: Any) -> dict[str, Any]:
    return {
        "config": CONFIG, "num_pending": pending, "num_ack_pending": unacknowledged, "num_waiting": waiting, **more,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("info", "in_flight", "expected"),
    [
        (numbers(), 0, False),
        (numbers(pending=1), 0, True),
        (numbers(pending=5_000, unacknowledged=16), 0, True),
        (numbers(pending=5_000, paused=True), 0, False),
        (numbers(pending=5_000, unacknowledged=128), 0, False),
        (numbers(pending=5_000, unacknowledged=128, waiting=0), 0, True),
        (numbers(unacknowledged=100, waiting=0), 0, True),
        (numbers(unacknowledged=1), 0, False),
        (numbers(unacknowledged=3, waiting=0), 3, False),
    ],
    ids=[
        "idle",
        "one new message",
        "others hold some, thousands wait",
        "paused",
        "as many unacknowledged as allowed",
        "the same, and nobody asks",
        "redeliverable, and nobody asks",
        "another replica works on it",
        "all of them are ours",
    ],
)
def test_messages_wait_for_us(info: dict[str, Any], in_flight: int, *, expected: bool) -> None:
    assert waits_for_us(info, in_flight=in_flight) is expected


class FakeBus(Bus):
    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}

    async def consumer_info(self, stream: str, durable: str) -> dict[str, Any] | None:
        answer = self.answers.get(durable, numbers())
        if isinstance(answer, Exception):
            raise answer
        return None if answer is None else {**answer, "config": consumer_spec(stream, durable).config()}

    async def stream_info(self, stream: str) -> dict[str, Any] | None:
        return self.answers.get(stream, {"config": STREAM_BY_NAME[stream].config()})


@dataclass
class Watched:
    row: ServiceRow
    fake: FakeBus = field(default_factory=FakeBus)
    vitals: Vitals = field(default_factory=Vitals)

    def __post_init__(self) -> None:
        self.bus: Bus = self.fake


@pytest.fixture
def watched() -> Watched:
    return Watched(BY_NAME["intake"])


def probes_of(watched: Watched, *, started: bool = True) -> Probes:
    made = Probes(service=watched, workers=WORKERS)
    made.started = started
    return made


async def test_starving_is_noted_per_durable_and_keeps_its_beginning(watched: Watched) -> None:
    probes = probes_of(watched)
    watched.fake.answers["results"] = numbers(pending=3)
    await probes.probe()
    since = watched.vitals.flow("ACTIONS/results").starving_since
    assert since is not None
    assert watched.vitals.flow("INTAKE/intake").starving_since is None
    await probes.probe()
    assert watched.vitals.flow("ACTIONS/results").starving_since == since
    watched.fake.answers.clear()
    await probes.probe()
    assert watched.vitals.flow("ACTIONS/results").starving_since is None


async def test_busy_handlers_are_not_starving(watched: Watched) -> None:
    watched.vitals.flow("ACTIONS/results").in_flight = WORKERS
    watched.fake.answers["results"] = numbers(pending=3, unacknowledged=WORKERS, waiting=0)
    await probes_of(watched).probe()
    assert watched.vitals.flow("ACTIONS/results").starving_since is None


async def test_silent_broker_clears_what_an_older_probe_saw(watched: Watched) -> None:
    probes = probes_of(watched)
    watched.fake.answers["results"] = numbers(pending=3)
    await probes.probe()
    watched.fake.answers["intake"] = TransientError("no answer")
    await probes.probe()
    assert watched.vitals.flow("ACTIONS/results").starving_since is None


async def test_missing_or_drifted_consumer_ends_the_process(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[Exit] = []
    monkeypatch.setattr(under_test, "die", lambda code, _: ended.append(code))
    watched.fake.answers["results"] = None
    await probes_of(watched).probe()
    assert ended == [Exit.CONSUMER_DRIFT]


@pytest.mark.parametrize("change", [None, {"discard": "old"}, {"max_age": 1}, {"allow_direct": True}])
async def test_a_watched_stream_that_is_missing_or_drifted_ends_the_process(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any] | None
) -> None:
    ended: list[Exit] = []
    monkeypatch.setattr(under_test, "die", lambda code, _: ended.append(code))
    probes = probes_of(watched)
    probes.watch_streams("ACTIONS", "REMITS")
    await probes.probe()
    assert ended == []
    config = STREAM_BY_NAME["REMITS"].config()
    watched.fake.answers["REMITS"] = None if change is None else {"config": {**config, **change}}
    await probes.probe()
    assert ended == [Exit.CONSUMER_DRIFT]


async def test_readiness_names_what_is_missing(watched: Watched) -> None:
    probes = probes_of(watched, started=False)
    assert probes.unready() == ["starting", "consumers not confirmed"]
    probes.started = True
    await probes.probe()
    assert probes.unready() == []


async def test_each_distinct_problem_at_the_start_is_said_once(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[Any] = [None, None, TransientError("no answer"), numbers()]

    async def next_turn(_: float) -> None:
        watched.fake.answers["intake"] = turns.pop(0)

    await next_turn(0)
    monkeypatch.setattr(asyncio, "sleep", next_turn)
    with capture_logs() as said:
        await probes_of(watched, started=False).wait_for_consumers()
    details = [entry["detail"] for entry in said]
    assert details == ["consumer intake of INTAKE does not exist", "consumer intake of INTAKE: no answer"]

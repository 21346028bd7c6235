"""Answering requests: a bounded number waits, nothing is answered late, and whoever asks too much is dropped first."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest
from nats.aio.msg import Msg

from remit.errors import TransientError
from remit.runtime import requests as under_test
from remit.runtime.requests import CONCURRENT_REQUESTS, MAX_AGE_S, MAX_WAITING, Admission, Answer, Responder
from remit.runtime.telemetry import Telemetry

if TYPE_CHECKING:
    from nats.aio.client import Client

    from remit.runtime.inbound import Inbound


class Wire:
    """What was published."""

    def __init__(self) -> None:
        self.replies: list[str] = []

    async def publish(self, subject: str, _body: bytes, *, headers: dict[str, str]) -> None:
        assert headers == {}
        self.replies.append(subject)


class Desk:
    """A responder whose handler holds requests until it is told to go on."""

    def __init__(self, admit: Admission | None = None) -> None:
        self.wire, self.telemetry = Wire(), Telemetry("t")
        self.release, self.worked = asyncio.Event(), 0
        answer = Answer("status.*.*", self.handle, admit)
        self.responder = Responder(cast("Client", self.wire), answer, self.telemetry)

    async def handle(self, _: Inbound) -> bytes | None:
        self.worked += 1
        await self.release.wait()
        return b"{}"

    async def ask(self, number: int = 1, *, reply: str = "_R_.x", subject: str = "status.a1.x") -> None:
        for _ in range(number):
            await self.responder.on_request(
                Msg(_client=cast("Any", self.wire), subject=subject, reply=reply, data=b"", headers=None)
            )
        await asyncio.sleep(0)

    async def finish(self) -> None:
        self.release.set()
        await asyncio.gather(*self.responder._running)

    def dropped(self, why: str) -> float:
        labels = {"subject": "status.*.*", "why": why}
        return self.telemetry.registry.get_sample_value("remit_requests_dropped_total", labels) or 0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(under_test, "monotonic", lambda: now[0])
    return now


async def test_flood_is_dropped_beyond_what_may_wait(clock: list[float]) -> None:
    assert clock
    desk = Desk()
    await desk.ask(5_000)
    assert desk.worked == CONCURRENT_REQUESTS
    await desk.finish()
    assert len(desk.wire.replies) == CONCURRENT_REQUESTS + MAX_WAITING
    assert desk.dropped("full") == 5_000 - CONCURRENT_REQUESTS - MAX_WAITING


async def test_request_that_waited_too_long_is_not_worked_on(clock: list[float]) -> None:
    desk = Desk()
    await desk.ask(CONCURRENT_REQUESTS + 3)
    clock[0] += MAX_AGE_S + 0.1
    await desk.finish()
    assert desk.worked == CONCURRENT_REQUESTS
    assert desk.wire.replies == []
    assert (desk.dropped("late"), desk.dropped("old")) == (CONCURRENT_REQUESTS, 3)


async def test_request_that_is_not_admitted_never_waits() -> None:
    desk = Desk(admit=lambda subject: not subject.startswith("status.evil."))
    await desk.ask(1_000, subject="status.evil.x")
    await desk.ask()
    await desk.finish()
    assert (desk.worked, desk.dropped("quota")) == (1, 1_000)


@pytest.mark.parametrize("reply", ["", "action.x.approved", "$KV.REGISTRY.bundle"])
async def test_only_inboxes_are_answered(reply: str) -> None:
    desk = Desk()
    await desk.ask(reply=reply)
    await desk.finish()
    assert (desk.worked, desk.wire.replies) == (1, [])


async def test_handler_that_fails_keeps_its_place_free() -> None:
    desk = Desk()
    failures: list[Exception] = [TransientError("down"), ZeroDivisionError()]

    async def failing(_: Inbound) -> bytes | None:
        raise failures[desk.worked % 2]

    desk.responder._answer = Answer("status.*.*", failing)
    await desk.ask(2 * CONCURRENT_REQUESTS)
    await asyncio.gather(*desk.responder._running, return_exceptions=True)
    desk.responder._answer = Answer("status.*.*", desk.handle)
    await desk.ask()
    await desk.finish()
    assert desk.wire.replies == ["_R_.x"]

"""Answers core requests, one replica each, and never more than can be answered in time: who asks must not harm who answers.

A request that would be answered late is dropped: its asker has given up, and the broker refuses an answer after its 30 s, which
looks like a broken permission. Source: design, bus sections 3 and 9 (`allow_responses`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from remit.clock import monotonic
from remit.errors import TransientError
from remit.runtime.inbound import Inbound, inbound_from

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

    from remit.runtime.telemetry import Telemetry

log = structlog.get_logger("remit.requests")

CONCURRENT_REQUESTS = 32
MAX_WAITING = 256
MAX_AGE_S = 5.0
"""Longer than any client of ours waits for its answer."""
REPLY_PREFIXES = ("_IBX.", "_R_.")
"""A responder answers inboxes only; any other reply subject would let the asker publish with our rights (bus section 9)."""
Answerer = Callable[[Inbound], Awaitable[bytes | None]]
Admission = Callable[[str], bool]
"""Whether a request on this subject may wait at all; asked at arrival, so it must be quick."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One subject that a service answers."""

    subject: str
    handler: Answerer
    admit: Admission | None = None


class Responder:
    """Answers the requests on one subject; headers of a request never travel back."""

    def __init__(self, client: Client, answer: Answer, telemetry: Telemetry) -> None:
        """Remember how to answer; nothing is subscribed yet."""
        self._client, self._answer, self._telemetry = client, answer, telemetry
        self._running: set[asyncio.Task[None]] = set()
        self._free = asyncio.Semaphore(CONCURRENT_REQUESTS)

    async def listen(self, service: str) -> None:
        """Take requests; replicas of a service share them."""
        await self._client.subscribe(self._answer.subject, queue=service, cb=self.on_request)

    async def on_request(self, msg: Msg) -> None:
        """Start on a request, or drop it at once; never waits, so that nothing piles up in the client."""
        if self._answer.admit is not None and not self._answer.admit(msg.subject):
            self._drop("quota")
        elif len(self._running) >= CONCURRENT_REQUESTS + MAX_WAITING:
            self._drop("full")
        else:
            task = asyncio.create_task(self._respond(msg, monotonic()))
            self._running.add(task)
            task.add_done_callback(self._done)

    async def _respond(self, msg: Msg, arrived: float) -> None:
        async with self._free:
            if monotonic() - arrived > MAX_AGE_S:
                self._drop("old")
                return
            try:
                reply = await self._answer.handler(inbound_from(msg))
            except TransientError as error:
                log.warning("request not answered", subject=msg.subject, detail=str(error))
                return
        if reply is None or not msg.reply.startswith(REPLY_PREFIXES):
            return
        if monotonic() - arrived > MAX_AGE_S:
            self._drop("late")
            return
        await self._client.publish(msg.reply, reply, headers={})

    def _done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("request failed", subject=self._answer.subject, exc_info=error)

    def _drop(self, why: str) -> None:
        self._telemetry.requests_dropped.labels(subject=self._answer.subject, why=why).inc()

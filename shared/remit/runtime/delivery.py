"""The one engine: what happens to a message, whatever the service. Turn what its work says into the answer to the broker.

The only file where `except Exception` may stand: a bug becomes back-off and alarm, never an acknowledgement.
Source: design, bus sections 3 (result table) and 6.
"""

from __future__ import annotations

import asyncio
import random  # noqa: TID251  (jitter of retries, the one place)
from typing import TYPE_CHECKING

import nats.errors
import structlog

from remit.clock import monotonic
from remit.errors import EnvelopeError, PermanentError, TransientError
from remit.runtime.crash import crash_point
from remit.runtime.inbound import Inbound, inbound_from
from remit.runtime.letters import MAX_BODY, letter
from remit.runtime.work import (
    MAX_DELIVERIES,
    ActionHandler,
    ActionWork,
    EventHandler,
    RawHandler,
    RejectedError,
    event_work,
    raw_work,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from nats.aio.msg import Msg

    from remit.runtime.bus import Bus
    from remit.runtime.telemetry import Telemetry
    from remit.runtime.watchdog import Vitals

__all__ = [
    "ActionHandler",
    "ActionWork",
    "Engine",
    "EventHandler",
    "Inbound",
    "RawHandler",
    "RejectedError",
    "event_work",
    "inbound_from",
    "raw_work",
    "retry_delay",
]

log = structlog.get_logger("remit.delivery")

ACK_TIMEOUT_S = 5.0
LAST_DELIVERY = 2 * MAX_DELIVERIES
"""From here on a message ends even when its dead letter cannot be stored: an event stays in its stream, an alarm tells."""
MAX_DELAY_S = 60.0
NEWER_VERSION_DELAY_S = 60.0
"""An event of a newer contract waits for an upgraded replica."""
UNKNOWN_KID_DELAY_S = 5.0
UNKNOWN_KID_DELIVERIES = 5
"""An unknown kid waits for a changed key file, which every replica reads within 10 s."""
HEARTBEAT_S = 10.0
"""A third of the consumers' ack_wait of 30 s (design, bus section 2)."""


def retry_delay(delivered: int, jitter: float) -> float:
    """Return the NAK delay in seconds: exponential, capped; `jitter` in [0, 1) spreads replicas."""
    return min(MAX_DELAY_S, 2.0 ** min(delivered - 1, 6)) * (0.5 + jitter / 2)


class Engine:
    """Handles the messages of one service."""

    def __init__(self, *, service: str, bus: Bus, telemetry: Telemetry, vitals: Vitals) -> None:
        """Bind the parts; nothing is started."""
        self.service, self._bus, self._telemetry, self._vitals = service, bus, telemetry, vitals
        self._in_flight: dict[int, tuple[Msg, float]] = {}

    async def on_message(self, msg: Msg, consumer: str, work: RawHandler) -> None:
        """Run `work` on one delivery of a consumer (`STREAM/durable`) and answer the broker as its result says."""
        started = monotonic()
        flow = self._vitals.flow(consumer)
        self._in_flight[id(msg)] = (msg, started)
        flow.in_flight += 1
        self._telemetry.in_flight.inc()
        try:
            result = await self._settle(msg, inbound_from(msg), work)
        finally:
            self._in_flight.pop(id(msg), None)
            flow.in_flight -= 1
            self._telemetry.in_flight.dec()
        flow.progress_at = ended = monotonic()
        self._telemetry.handled_message(consumer, result, ended - started)

    async def _settle(self, msg: Msg, inbound: Inbound, work: RawHandler) -> str:
        try:
            crash_point(self.service, "a")
            await work(inbound)
            crash_point(self.service, "d")
            await msg.ack_sync(timeout=ACK_TIMEOUT_S)
            crash_point(self.service, "e")
        except asyncio.CancelledError:
            raise  # Nothing is sent; it will be redelivered.
        except TransientError as error:
            return await self._again(msg, inbound, error, error.retry_after_s)
        except nats.errors.Error as error:
            # The acknowledgement itself got no answer: redelivery finds the work done.
            return await self._again(msg, inbound, error, None)
        except PermanentError as error:
            return await self._refused(msg, inbound, error)
        except Exception as error:
            self._telemetry.alarms.labels(kind="bug").inc()
            log.exception("handler failed", subject=inbound.subject, seq=inbound.seq)
            return await self._again(msg, inbound, error, None)
        return "ok"

    async def _refused(self, msg: Msg, inbound: Inbound, error: PermanentError) -> str:
        if isinstance(error, EnvelopeError):
            self._telemetry.invalid_events.labels(code=error.code).inc()
            if error.code == "version":
                self._telemetry.alarms.labels(kind="newer_version").inc()
                return await self._again(msg, inbound, error, NEWER_VERSION_DELAY_S)
            if error.code == "kid" and inbound.delivered < UNKNOWN_KID_DELIVERIES:
                return await self._again(msg, inbound, error, UNKNOWN_KID_DELAY_S)
        code = error.code if isinstance(error, EnvelopeError | RejectedError) else "permanent"
        return await self._reject(msg, inbound, code, str(error))

    async def _again(self, msg: Msg, inbound: Inbound, error: Exception, at_least_s: float | None) -> str:
        delay = max(retry_delay(inbound.delivered, random.random()), at_least_s or 0.0)  # noqa: S311  (jitter)
        log.warning(
            "message will be delivered again",
            subject=inbound.subject, seq=inbound.seq, delivered=inbound.delivered, delay_s=round(delay, 2),
            error=type(error).__name__, detail=str(error) if isinstance(error, TransientError | EnvelopeError) else None,
        )  # fmt: skip
        await self._send(msg.nak(delay=delay))
        return "again"

    async def _reject(self, msg: Msg, inbound: Inbound, code: str, detail: str) -> str:
        try:
            await self.dead_letter(inbound, code=code, detail=detail)
        except TransientError as error:
            if inbound.delivered < LAST_DELIVERY:
                return await self._again(msg, inbound, error, None)
            self._dead_letter_lost(inbound, code, error)
        except PermanentError as error:
            self._dead_letter_lost(inbound, code, error)
        await self._send(msg.term())
        return "dead_letter"

    def _dead_letter_lost(self, inbound: Inbound, code: str, error: Exception) -> None:
        self._telemetry.alarms.labels(kind="dead_letter_lost").inc()
        log.error("dead letter not stored", subject=inbound.subject, seq=inbound.seq, code=code, detail=str(error))

    @staticmethod
    async def _send(answer: Awaitable[None]) -> None:
        # Without a connection there is nobody to tell; ack_wait brings the message back.
        try:
            await answer
        except nats.errors.Error as error:
            log.warning("answer to the broker not sent", error=type(error).__name__)

    async def dead_letter(self, inbound: Inbound, *, code: str, detail: str, keep: int = MAX_BODY) -> None:
        """Keep a message, or the first `keep` bytes of it, as evidence on `dlq.<service>` and wait until it is stored.

        Raises:
            TransientError: it could not be stored; do not acknowledge the original.

        """
        body = letter(self.service, inbound, code=code, detail=detail, keep=keep)
        await self._bus.append(f"dlq.{self.service}", body, {"Content-Type": "application/json"})
        self._telemetry.dead_letters.labels(code=code).inc()
        log.warning("dead letter", subject=inbound.subject, seq=inbound.seq, code=code, detail=detail)

    async def heartbeats(self) -> None:
        """Tell the broker that slow messages are still being worked on; one timer for all of them."""
        while True:
            await asyncio.sleep(HEARTBEAT_S / 2)
            limit = monotonic() - HEARTBEAT_S / 2
            for msg, started in list(self._in_flight.values()):
                if started < limit:
                    await self._send(msg.in_progress())

"""The one engine: what happens to a message, whatever the service. Verify, decide, append, acknowledge; never lose, never storm.

The only file where `except Exception` may stand: a bug becomes back-off and alarm, never an acknowledgement.
Source: design, bus sections 3 (result table) and 6.
"""

from __future__ import annotations

import asyncio
import base64
import random  # noqa: TID251  (jitter of retries, the one place)
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import nats.errors
import orjson
import structlog

from remit.clock import monotonic, now
from remit.envelope import CHAIN_HEADER, Recorded, signed_from, verify
from remit.errors import EnvelopeError, PermanentError, TransientError
from remit.runtime.crash import crash_point
from remit.runtime.ledger import Draft, Ledger, Superseded

if TYPE_CHECKING:
    from datetime import datetime

    from nats.aio.msg import Msg

    from remit.envelope import TrustedKey
    from remit.fold import ActionState
    from remit.runtime.bus import Bus
    from remit.runtime.telemetry import Telemetry
    from remit.runtime.watchdog import Vitals

log = structlog.get_logger("remit.delivery")

ACK_TIMEOUT_S = 5.0
MAX_DELIVERIES = 20
"""After so many deliveries the code gives up and writes a dead letter; a server-side limit would strand silently."""
MAX_DELAY_S = 60.0
NEWER_VERSION_DELAY_S = 60.0
"""An event of a newer contract waits for an upgraded replica."""
HEARTBEAT_S = 10.0
"""A third of the consumers' ack_wait of 30 s (design, bus section 2)."""
MAX_REDECISIONS = 5

ActionHandler = Callable[["ActionState"], Awaitable[Draft | None]]
EventHandler = Callable[[Recorded], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Inbound:
    """One message as it came, before anything in it is believed."""

    subject: str
    body: bytes
    headers: Mapping[str, str]
    seq: int | None = None
    time: datetime | None = None
    delivered: int = 1
    reply: str | None = None
    stream: str | None = None


RawHandler = Callable[[Inbound], Awaitable[None]]


def retry_delay(delivered: int, jitter: float) -> float:
    """Return the NAK delay in seconds: exponential, capped; `jitter` in [0, 1) spreads replicas."""
    return min(MAX_DELAY_S, 2.0 ** min(delivered - 1, 6)) * (0.5 + jitter / 2)


def inbound_from(msg: Msg) -> Inbound:
    """Take a JetStream or core message apart."""
    if msg.reply.startswith("$JS.ACK."):
        meta = msg.metadata
        return Inbound(
            subject=msg.subject, body=msg.data, headers=msg.headers or {}, seq=meta.sequence.stream, time=meta.timestamp,
            delivered=meta.num_delivered or 1, stream=meta.stream,
        )  # fmt: skip
    return Inbound(subject=msg.subject, body=msg.data, headers=msg.headers or {}, reply=msg.reply or None)


class RejectedError(PermanentError):
    """Junk: dead letter and TERM, no terminal event; junk must not be able to end an action."""

    def __init__(self, code: str, message: str) -> None:
        """Keep the closed code."""
        super().__init__(message)
        self.code = code


class Engine:
    """Handles the messages of one service."""

    def __init__(  # noqa: PLR0913  (the engine is where a service's parts meet)
        self,
        *,
        service: str,
        bus: Bus,
        ledger: Ledger,
        trust: Mapping[str, TrustedKey],
        telemetry: Telemetry,
        vitals: Vitals,
    ) -> None:
        """Bind the parts; nothing is started."""
        self.service, self._bus, self._ledger = service, bus, ledger
        self._trust, self._telemetry, self._vitals = trust, telemetry, vitals
        self._in_flight: dict[int, tuple[Msg, float]] = {}

    async def on_message(self, msg: Msg, durable: str, work: Callable[[Inbound], Awaitable[None]]) -> None:
        """Run `work` on one delivery and turn what it says into ack, delayed nak or dead letter."""
        started = monotonic()
        self._in_flight[id(msg)] = (msg, started)
        self._telemetry.in_flight.inc()
        try:
            result = await self._settle(msg, inbound_from(msg), work)
        finally:
            self._in_flight.pop(id(msg), None)
            self._telemetry.in_flight.dec()
        self._vitals.progress_at = monotonic()
        self._telemetry.handled.labels(durable=durable, result=result).inc()
        self._telemetry.handling_seconds.labels(durable=durable).observe(monotonic() - started)

    async def _settle(  # noqa: C901  (one arm per row of the design's result table)
        self, msg: Msg, inbound: Inbound, work: Callable[[Inbound], Awaitable[None]]
    ) -> str:
        try:
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
        except EnvelopeError as error:
            if error.code == "version":
                self._telemetry.alarms.labels(kind="newer_version").inc()
                return await self._again(msg, inbound, error, NEWER_VERSION_DELAY_S)
            self._telemetry.invalid_events.labels(code=error.code).inc()
            return await self._reject(msg, inbound, error.code, str(error))
        except RejectedError as error:
            return await self._reject(msg, inbound, error.code, str(error))
        except PermanentError as error:
            return await self._reject(msg, inbound, "permanent", str(error))
        except Exception as error:
            self._telemetry.alarms.labels(kind="bug").inc()
            log.exception("handler failed", subject=inbound.subject, seq=inbound.seq)
            return await self._again(msg, inbound, error, None)
        return "ok"

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
            return await self._again(msg, inbound, error, None)
        await self._send(msg.term())
        return "dead_letter"

    @staticmethod
    async def _send(answer: Awaitable[None]) -> None:
        # Without a connection there is nobody to tell; ack_wait brings the message back.
        try:
            await answer
        except nats.errors.Error as error:
            log.warning("answer to the broker not sent", error=type(error).__name__)

    async def dead_letter(self, inbound: Inbound, *, code: str, detail: str) -> None:
        """Keep a message as evidence on `dlq.<service>` and wait until it is stored.

        Raises:
            TransientError: it could not be stored; do not acknowledge the original.

        """
        letter = {
            "v": 1,
            "service": self.service,
            "code": code,
            "detail": detail,
            "stream": inbound.stream,
            "seq": inbound.seq,
            "subject": inbound.subject,
            "headers": {k: v for k, v in inbound.headers.items() if k.startswith("Remit-") and k != CHAIN_HEADER},
            "body": base64.b64encode(inbound.body).decode(),
            "at": now().isoformat(),
        }
        body = orjson.dumps(letter)
        if len(body) > 60_000:
            body = orjson.dumps(
                {**letter, "body": None, "detail": f"{detail}; body of {len(inbound.body)} bytes left out"}
            )
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

    def action_work(
        self,
        handler: ActionHandler,
        *,
        verify_chain: bool,
        unprocessable: Callable[[ActionState], Draft | None],
    ) -> RawHandler:
        """Return the work of an action consumer: verify, decide, append; refold when the action moved."""

        async def work(inbound: Inbound) -> None:
            signed = signed_from(inbound.subject, inbound.body, inbound.headers)
            seq = inbound.seq or 0
            state = await self._ledger.state_at(
                signed,
                seq=seq,
                chain_header=inbound.headers.get(CHAIN_HEADER),
                verify_chain=verify_chain,
                stored_at=inbound.time,
            )
            if state is None:
                raise RejectedError("chain", f"event {inbound.subject} at {seq} does not belong to its action's chain")
            crash_point(self.service, "a")
            await self._decide(handler, state, signed.body, exhausted=inbound.delivered >= MAX_DELIVERIES,
                               unprocessable=unprocessable)  # fmt: skip

        return work

    async def _decide(
        self,
        handler: ActionHandler,
        state: ActionState,
        consumed: bytes,
        *,
        exhausted: bool,
        unprocessable: Callable[[ActionState], Draft | None],
    ) -> None:
        for _ in range(MAX_REDECISIONS):
            if state.chain[-1].signed.body != consumed:
                return  # Already past this step.
            draft = unprocessable(state) if exhausted else await handler(state)
            if draft is None:
                break
            crash_point(self.service, "b")
            try:
                await self._ledger.append(state, draft)
                crash_point(self.service, "c")
                break
            except Superseded as lost:
                self._telemetry.superseded.inc()
                state = lost.state
        else:
            raise TransientError(f"action {state.action_id} kept moving; decided {MAX_REDECISIONS} times")
        if exhausted:
            raise RejectedError("unprocessable", f"action {state.action_id} failed {MAX_DELIVERIES} deliveries")

    def event_work(self, handler: EventHandler) -> RawHandler:
        """Return the work of a consumer that needs each event alone, verified."""

        async def work(inbound: Inbound) -> None:
            signed = signed_from(inbound.subject, inbound.body, inbound.headers)
            await handler(verify(signed, self._trust, seq=inbound.seq, stored_at=inbound.time))

        return work

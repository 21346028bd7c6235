"""The projector's own fetch loop over one durable: messages in order, prefetched while a batch is being committed.

FastStream's batches stall and nats-py's `fetch` waits for a full batch, so the pull requests are made here. Source: design, bus
section 3 (F12) and the NATS JetStream wire protocol (`CONSUMER.MSG.NEXT`, status headers 404, 408, 409).
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import nats.errors
import nats.js.errors
import orjson
import structlog

from remit.clock import monotonic
from remit.errors import TransientError
from remit.runtime.delivery import Inbound, inbound_from
from services.audit.chain import next_missing

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

log = structlog.get_logger("audit.source")

REQUEST_EXPIRES_S = 5.0
"""Of one pull request; an expired one is answered by status 408 and replaced."""
GRACE_S = 1.0
"""A request that neither filled nor expired by then was lost with its connection."""
ACK_TIMEOUT_S = 5.0
RESET_TIMEOUT_S = 5.0
PENDING_HEADER = "Nats-Pending-Messages"
SHORT_REPLY = 9
"""Tokens of a `$JS.ACK` subject without domain and account: stream, consumer, delivered, two sequences, time, pending."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Source:
    """One durable pull consumer."""

    def __init__(self, client: Client, *, stream: str, durable: str, limit: int) -> None:
        """Remember where to pull from; `limit` is the largest batch."""
        self._client, self.stream, self._durable, self._limit = client, stream, durable, limit
        self._queue: deque[Msg] = deque()
        self._arrived = asyncio.Event()
        self._subscription: Subscription | None = None
        self._inbox = ""
        self._outstanding, self._asked_at = 0, 0.0

    async def open(self) -> None:
        """Listen on a fresh inbox; what an older one still receives is nobody's business."""
        await self.close()
        self._queue.clear()
        self._outstanding = 0
        self._inbox = self._client.new_inbox()
        self._subscription = await self._client.subscribe(self._inbox, cb=self._on_message)

    async def close(self) -> None:
        """Stop listening; unacknowledged messages are delivered again after ack_wait."""
        if self._subscription is not None:
            subscription, self._subscription = self._subscription, None
            try:
                await subscription.unsubscribe()
            except nats.errors.Error as error:
                log.info("inbox already gone", error=type(error).__name__)

    async def restart_at(self, seq: int) -> None:
        """Let the durable deliver from a stream sequence on, whatever was delivered or acknowledged before.

        Raises:
            TransientError: the broker did not answer.

        """
        await self.close()
        try:
            await self._client.flush()
            jetstream = self._client.jetstream(timeout=RESET_TIMEOUT_S)
            await jetstream.reset_consumer(self.stream, self._durable, seq=seq)
            await self.open()
        except (nats.errors.Error, nats.js.errors.Error) as error:
            raise TransientError(
                f"cannot restart {self._durable} of {self.stream} at {seq}: {type(error).__name__}"
            ) from None

    async def batch(self, *, wait_s: float, linger_s: float) -> list[Msg]:
        """Return up to `limit` messages: the first within `wait_s`, then whatever comes within `linger_s`.

        Raises:
            TransientError: the connection is gone.

        """
        await self._ask()
        if not self._queue and not await self._more(wait_s):
            return []
        deadline = monotonic() + linger_s
        while len(self._queue) < self._limit:
            left = deadline - monotonic()
            if left <= 0 or not await self._more(left):
                break
            await self._ask()
        return [self._queue.popleft() for _ in range(min(self._limit, len(self._queue)))]

    async def acknowledge(self, messages: list[Msg]) -> None:
        """Acknowledge what is committed; only the last waits for the broker's word, which comes after all the others.

        A lost acknowledgement costs a second delivery, which the cursor ignores.
        """
        if not messages:
            return
        try:
            for msg in messages[:-1]:
                await msg.ack()
            await messages[-1].ack_sync(timeout=ACK_TIMEOUT_S)
        except nats.errors.Error as error:
            log.warning("acknowledgement without an answer", stream=self.stream, error=type(error).__name__)

    async def _more(self, within_s: float) -> bool:
        self._arrived.clear()
        try:
            async with asyncio.timeout(within_s):
                await self._arrived.wait()
        except TimeoutError:
            return False
        return True

    async def _ask(self) -> None:
        """Keep about one batch requested, so that the next one arrives while this one is committed."""
        lost = monotonic() - self._asked_at > REQUEST_EXPIRES_S + GRACE_S
        if self._outstanding > self._limit // 2 and not lost:
            return
        wanted = self._limit if lost else self._limit - self._outstanding
        request = orjson.dumps({"batch": wanted, "expires": int(REQUEST_EXPIRES_S * 1e9)})
        try:
            await self._client.publish(
                f"$JS.API.CONSUMER.MSG.NEXT.{self.stream}.{self._durable}", request, reply=self._inbox
            )
        except nats.errors.Error as error:
            raise TransientError(f"cannot pull from {self.stream}: {type(error).__name__}") from None
        self._outstanding = wanted if lost else self._outstanding + wanted
        self._asked_at = monotonic()

    async def _on_message(self, msg: Msg) -> None:
        headers = msg.headers or {}
        if msg.reply.startswith("$JS.ACK."):
            self._outstanding = max(0, self._outstanding - 1)
            self._queue.append(msg)
            self._arrived.set()
            return
        # A status: the request ended with so many messages undelivered; without the header all of it did.
        undelivered = headers.get(PENDING_HEADER)
        self._outstanding = max(0, self._outstanding - int(undelivered)) if undelivered else 0
        self._arrived.set()  # Whoever waits must ask again, or a message that comes now would wait with them.
        if headers.get("Status") not in {"404", "408"}:
            log.warning(
                "pull request ended", stream=self.stream, status=headers.get("Status"), why=headers.get("Description")
            )


def taken(messages: list[Msg]) -> list[Inbound]:
    """Return the messages as the handlers read them, in stream order."""
    found = (replace(inbound_from(msg), time=stored_at(msg.reply)) for msg in messages)
    return sorted(found, key=lambda inbound: inbound.seq or 0)


def fresh(messages: list[Msg], last_seq: int) -> tuple[list[Inbound], int | None]:
    """Return what lies beyond the cursor, each sequence once, and the first sequence that is missing there."""
    by_seq = {m.seq: m for m in taken(messages) if m.seq is not None and m.seq > last_seq}
    return list(by_seq.values()), next_missing(last_seq, list(by_seq))


def stored_at(reply: str) -> datetime:
    """Return when the broker stored a message, cut to microseconds as in its answer to a read.

    nats-py goes through a float, which rounds: the chain covers the time, so both ways must give the same.
    """
    tokens = reply.split(".")
    nanoseconds = int(tokens[7] if len(tokens) == SHORT_REPLY else tokens[9])
    return _EPOCH + timedelta(microseconds=nanoseconds // 1_000)

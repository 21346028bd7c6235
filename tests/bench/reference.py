"""The reference: five durable hops in bare nats-py, five processes, each fetch 64 → publish next → PubAck → ack.

Same broker binary, same `sync_interval: always`, file storage, one node; no signatures, no policy, no database.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import nats
import uvloop
from nats.js.api import AckPolicy, ConsumerConfig, RetentionPolicy, StorageType, StreamConfig

from remit.clock import monotonic

if TYPE_CHECKING:
    from types import TracebackType

    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription
    from nats.js import JetStreamContext

HOPS = 5
BATCH = 64
PUBLISHERS = 64
BODY = b'{"reference":"' + b"x" * 1_100 + b'"}'
"""About the size of one of our events."""


async def hop(url: str, number: int) -> None:
    """Work one hop for ever, with batches that are handed over at once: the strongest loop bare nats-py allows.

    `PullSubscription.fetch(64)` is no fair reference: it holds a partial batch back until its timeout.
    """
    client = await nats.connect(url)
    stream = client.jetstream()
    inbox = client.new_inbox()
    arrivals = await client.subscribe(inbox)
    ask = f"$JS.API.CONSUMER.MSG.NEXT.REF.hop{number}"

    async def move(message: Msg) -> None:
        await stream.publish(f"ref.{number + 1}", message.data, timeout=30)
        await client.publish(message.reply, b"+ACK")

    while True:
        await client.publish(ask, b'{"batch":%d,"no_wait":true}' % BATCH, reply=inbox)
        messages = await _batch(arrivals, BATCH)
        if not messages:
            await client.publish(ask, b'{"batch":1,"expires":5000000000}', reply=inbox)
            messages = await _batch(arrivals, 1)
        await asyncio.gather(*(move(message) for message in messages))


async def _batch(arrivals: Subscription, size: int) -> list[Msg]:
    """Collect messages until there are `size` of them or the server says that there are no more."""
    found: list[Msg] = []
    while len(found) < size:
        message = await arrivals.next_msg(timeout=30)
        if message.headers and "Status" in message.headers:
            return found
        found.append(message)
    return found


@dataclass(slots=True)
class Reference:
    """The five processes and a driver."""

    url: str
    client: Client = field(init=False)
    stream: JetStreamContext = field(init=False)
    _workers: list[asyncio.subprocess.Process] = field(default_factory=list[asyncio.subprocess.Process])

    async def __aenter__(self) -> Self:
        """Create the stream and start the hops."""
        self.client = await nats.connect(self.url)
        self.stream = self.client.jetstream()
        await self.stream.add_stream(
            StreamConfig(name="REF", subjects=["ref.*"], storage=StorageType.FILE, retention=RetentionPolicy.LIMITS)
        )
        for number in range(HOPS):
            config = ConsumerConfig(
                durable_name=f"hop{number}", filter_subject=f"ref.{number}", ack_policy=AckPolicy.EXPLICIT
            )
            await self.stream.add_consumer("REF", config)
            command = (sys.executable, "-m", "tests.bench.reference", self.url, str(number))
            self._workers.append(await asyncio.create_subprocess_exec(*command))
        await self.latencies(3)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the hops."""
        for worker in self._workers:
            if worker.returncode is None:
                worker.terminate()
        await asyncio.gather(*(worker.wait() for worker in self._workers))
        await self.client.close()

    @property
    def pids(self) -> list[int]:
        """Process ids of the hops."""
        return [worker.pid for worker in self._workers]

    async def throughput(self, count: int) -> float:
        """Send `count` messages through all hops and return messages a second, first publish to last arrival."""
        arrived, seen = asyncio.Event(), 0

        async def on_arrival(_: Msg) -> None:
            nonlocal seen
            seen += 1
            if seen == count:
                arrived.set()

        subscription = await self.client.subscribe(f"ref.{HOPS}", cb=on_arrival)
        began, gate = monotonic(), asyncio.Semaphore(PUBLISHERS)

        async def send() -> None:
            async with gate:
                await self.stream.publish("ref.0", BODY, timeout=30)

        await asyncio.gather(*(send() for _ in range(count)))
        await asyncio.wait_for(arrived.wait(), 120)
        await subscription.unsubscribe()
        return count / (monotonic() - began)

    async def latencies(self, count: int) -> list[float]:
        """Send one message at a time and return the seconds each took through all hops."""
        subscription = await self.client.subscribe(f"ref.{HOPS}")
        found: list[float] = []
        for _ in range(count):
            began = monotonic()
            await self.stream.publish("ref.0", BODY, timeout=30)
            await subscription.next_msg(timeout=30)
            found.append(monotonic() - began)
        await subscription.unsubscribe()
        return found


if __name__ == "__main__":
    uvloop.run(hop(sys.argv[1], int(sys.argv[2])))

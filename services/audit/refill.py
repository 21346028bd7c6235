"""Fills the twin of the ledger from the streams, batch by batch, by the handlers of the service."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import nats.errors
import orjson

from remit.clock import monotonic
from remit.errors import ConfigurationError, TransientError
from remit.runtime.bus import TIMEOUT_S
from remit.runtime.streams import REBUILD, config_hash
from services.audit.database import Fence
from services.audit.evidence import EvidenceStore
from services.audit.handlers import AuditHandlers
from services.audit.source import Source, fresh
from services.audit.store import Store
from services.audit.twin import STREAMS, TWIN

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Mapping
    from typing import Self

    from nats.aio.client import Client

    from remit.envelope import TrustedKey
    from remit.runtime.bus import Bus
    from services.audit.database import Connection, Pool

DURABLE = REBUILD[0].durable
BATCH = 500
"""As the service takes them; a batch is one transaction."""
LINGER_S = 0.05
WAIT_S = 1.0
MEMORY_ACTIONS = 20_000
PROGRESS_EVERY_S = 2.0
PATIENCE = 5
"""Tries of one batch that the broker or Postgres interrupts, or that leaves a sequence out."""
RETRY_S = 1.0
STILL_S = 10.0
"""A stream that holds more and delivers nothing for so long is asked again from the cursor."""
_SENSITIVE = "SELECT tool || '.' || action AS name, sensitive FROM audit.tools"
_LIVE_SEQ = "SELECT last_seq FROM audit.progress WHERE stream = $1"


async def check_durables(bus: Bus) -> None:
    """Insist on the two durables of a rebuild as the provisioner makes them.

    Raises:
        ConfigurationError: one is missing or has drifted.

    """
    for spec in REBUILD:
        info = await bus.consumer_info(spec.stream, spec.durable)
        if info is None or config_hash(info["config"]) != spec.hash:
            what = "does not exist" if info is None else "is not as the table says"
            raise ConfigurationError(
                f"durable {spec.durable} of {spec.stream} {what}; run `python -m infra.provision --rebuild`"
            )


class Refill:
    """One rebuild's projection; `catch_up` goes as far as the live ledger and the streams reach."""

    def __init__(
        self,
        connection: Connection,
        client: Client,
        handlers: AuditHandlers,
        say: Callable[[str], object],
        *,
        to_the_end: bool,
    ) -> None:
        """Take the parts; `say` gets progress. `to_the_end`: of the streams, also where the live ledger holds more."""
        self._connection, self._client, self._handlers, self._say = connection, client, handlers, say
        self._to_the_end = to_the_end
        self._sources = {s: Source(client, stream=s, durable=DURABLE, limit=BATCH) for s in STREAMS}
        self._last: dict[str, int] = {}
        self._said_at = self._moved_at = monotonic()

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        pool: Pool,
        client: Client,
        trust: Mapping[str, TrustedKey],
        say: Callable[[str], object],
        *,
        to_the_end: bool = False,
    ) -> AsyncGenerator[Self]:
        """Begin at the twin's cursors, whatever was delivered before."""
        async with pool.acquire() as connection:
            hidden = {row["name"]: frozenset(row["sensitive"]) for row in await connection.fetch(_SENSITIVE)}
            refill = cls(connection, client, _handlers(connection, trust, hidden), say, to_the_end=to_the_end)
            try:
                yield refill
            finally:
                await refill.close()

    async def catch_up(self) -> None:
        """Project everything that the streams hold now, and at least what the live ledger has."""
        for stream in STREAMS:
            live = await self._connection.fetchval(_LIVE_SEQ, stream)
            await self._reach(stream, max(live, await self._end_of(stream)))

    async def reach(self, cursors: Mapping[str, int]) -> None:
        """Project at least as far as these cursors."""
        for stream in STREAMS:
            await self._reach(stream, cursors[stream])

    async def close(self) -> None:
        """Stop listening."""
        for source in self._sources.values():
            await source.close()

    async def _reach(self, stream: str, end: int) -> None:
        if self._to_the_end:
            end = min(end, await self._end_of(stream))
        failed, self._moved_at = 0, monotonic()
        while self._last.get(stream, -1) < end:
            try:
                await self._step(stream, end)
            except TransientError as error:
                failed += 1
                self._last.pop(stream, None)
                self._moved_at = monotonic()
                if failed == PATIENCE:
                    raise
                self._say(f"{stream}: {error}; again from the cursor")
                await asyncio.sleep(RETRY_S)

    async def _step(self, stream: str, end: int) -> None:
        """Project one batch; the first one begins at the cursor.

        Raises:
            TransientError: broker or Postgres did not answer, or the next sequence was not delivered.

        """
        source = self._sources[stream]
        if stream not in self._last:
            self._last[stream] = await self._handlers.resume(stream) - 1
            await source.restart_at(self._last[stream] + 1)
        messages = await source.batch(wait_s=WAIT_S, linger_s=LINGER_S)
        found, missing = fresh(messages, self._last[stream])
        if missing is not None or (not found and monotonic() - self._moved_at > STILL_S):
            raise TransientError(f"sequence {missing or self._last[stream] + 1} is not delivered; nothing was skipped")
        if found:
            admitted = await asyncio.to_thread(self._handlers.admit, stream, found)
            await (self._handlers.on_actions if stream == "ACTIONS" else self._handlers.on_remits)(admitted)
            self._last[stream], self._moved_at = found[-1].seq or 0, monotonic()
        await source.acknowledge(messages)
        if monotonic() - self._said_at >= PROGRESS_EVERY_S:
            self._said_at = monotonic()
            self._say(f"{stream}: {self._last[stream]} of {end}")

    async def _end_of(self, stream: str) -> int:
        try:
            reply = await self._client.request(f"$JS.API.STREAM.INFO.{stream}", b"", timeout=TIMEOUT_S)
        except nats.errors.Error as error:
            raise TransientError(f"no answer about {stream}: {type(error).__name__}") from None
        answer = orjson.loads(reply.data)
        if "state" not in answer:
            raise ConfigurationError(f"stream {stream} does not exist; run `python -m infra.provision`")
        return answer["state"]["last_seq"]


def _handlers(
    connection: Connection, trust: Mapping[str, TrustedKey], hidden: Mapping[str, Collection[str]]
) -> AuditHandlers:
    """Return the service's handlers over the twin.

    What is hidden on display is what the live read model says of its tools: the operator's login may not read the registry.
    """
    fence = Fence(connection)
    return AuditHandlers(
        trust=trust,
        store=Store(fence, schema=TWIN),
        evidence=EvidenceStore(fence, alarm=lambda _: None),
        sensitive=hidden.get,
        count=lambda _status, _number: None,
        alarm=lambda _: None,
        memory_actions=MEMORY_ACTIONS,
    )

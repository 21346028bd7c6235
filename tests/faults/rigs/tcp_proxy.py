"""A TCP proxy on loopback that breaks connections on command: refused, held, swallowed, slow, cut at a byte or a statement.

A cut at a statement comes before it is sent (surely not carried out), together with it (nobody knows), or after the server
has answered and before the client hears it (surely carried out). Everything it does is logged in `struck`.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Self
from urllib.parse import urlsplit, urlunsplit

from tests.faults.rigs.wire_taps import NatsTap, PostgresTap, Tap

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from types import TracebackType

LOOPBACK = "127.0.0.1"
CHUNK = 64 * 1024
ANSWER_WITHIN_S = 5.0
"""How long a cut after the answer waits for it; a server that is stopped meanwhile never gives one."""
When = Literal["before", "racing", "answered"]
Way = Literal["up", "down"]


@dataclass(slots=True, kw_only=True)
class Line:
    """How the line is at present; changed while connections run. `hold` keeps bytes back, `swallow` loses them."""

    delay_s: float = 0.0
    jitter_s: float = 0.0
    slice_bytes: int = 0
    """Forward in pieces of so many bytes, with `stall_s` in between; 0: as they come."""
    stall_s: float = 0.0
    hold: frozenset[Way] = frozenset()
    swallow: frozenset[Way] = frozenset()
    cut_after: int | None = None
    """Cut each connection once it has carried so many bytes, both ways together."""


@dataclass(slots=True, kw_only=True)
class Cut:
    """Cut the connection that carries the n-th message whose name contains `text`; strikes once."""

    text: str
    when: When
    nth: int = 1
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def meets(self, names: tuple[str, ...]) -> bool:
        """Count a message; True when this is where to strike."""
        if self.done.is_set() or not any(self.text in name for name in names):
            return False
        self.nth -= 1
        return self.nth == 0


class TcpProxy:
    """Listens on a free port of loopback; `async with` starts and stops it."""

    def __init__(self, host: str, port: int, *, tap: Callable[[], Tap], rng: random.Random, listen: int = 0) -> None:
        """Forward to `host:port`; `tap` reads one connection's protocol."""
        self._target, self._tap, self._rng, self._port = (host, port), tap, rng, listen
        self.line = Line()
        self.struck: list[str] = []
        self._cuts: list[Cut] = []
        self._server: asyncio.Server | None = None
        self._links: dict[asyncio.Task[None], _Link] = {}

    @classmethod
    def postgres(cls, url: str, rng: random.Random) -> Self:
        """Return a proxy before the Postgres of a URL."""
        parts = urlsplit(url)
        return cls(parts.hostname or LOOPBACK, parts.port or 5432, tap=PostgresTap, rng=rng)

    @classmethod
    def nats(cls, url: str, rng: random.Random) -> Self:
        """Return a proxy before the NATS of a URL (no TLS)."""
        parts = urlsplit(url)
        return cls(parts.hostname or LOOPBACK, parts.port or 4222, tap=NatsTap, rng=rng)

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._port

    @property
    def connections(self) -> int:
        """Connections that are open now."""
        return len(self._links)

    def url(self, original: str) -> str:
        """Return a server's URL by way of this proxy; user, password and path stay."""
        parts = urlsplit(original)
        user, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{user}{at}{LOOPBACK}:{self._port}"))

    def arm(self, text: str, when: When, nth: int = 1) -> Cut:
        """Cut the connection at a message; the returned `done` is set when it happened."""
        cut = Cut(text=text, when=when, nth=nth)
        self._cuts = [*(c for c in self._cuts if not c.done.is_set()), cut]
        return cut

    def disarm(self) -> None:
        """Forget cuts that have not struck."""
        self._cuts.clear()

    def cut(self) -> int:
        """Cut every connection now and return how many there were."""
        links = list(self._links.values())
        for link in links:
            link.abort()
        return len(links)

    async def refuse(self) -> None:
        """Listen no more and cut what is open: connecting is refused until `accept`."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.cut()
        await asyncio.sleep(0)

    async def accept(self) -> None:
        """Listen, on the same port as before."""
        if self._server is None:
            self._server = await asyncio.start_server(self._on_client, LOOPBACK, self._port)
            self._port = self._server.sockets[0].getsockname()[1]

    def heal(self) -> None:
        """Be a good line again; what was held arrives late, a connection that lost bytes is cut."""
        for link in list(self._links.values()):
            if link.lossy:
                link.abort()
        self.line = Line()
        self.disarm()

    async def __aenter__(self) -> Self:
        """Listen."""
        await self.accept()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cut everything and listen no more."""
        await self.refuse()
        while self._links:
            await asyncio.sleep(0.01)

    async def _on_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            up_reader, up_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        link = self._links[task] = _Link(self, (reader, writer), (up_reader, up_writer), self._tap())
        try:
            await link.run()
        finally:
            self._links.pop(task, None)

    def strikes(self, names: tuple[str, ...]) -> Cut | None:
        """Return the cut that this message meets."""
        return next((cut for cut in self._cuts if cut.meets(names)), None) if names else None

    async def pace(self, way: Way) -> None:
        """Wait as long as the line says."""
        while way in self.line.hold:
            await asyncio.sleep(0.02)
        if self.line.delay_s or self.line.jitter_s:
            await asyncio.sleep(max(0.0, self.line.delay_s + self._rng.uniform(-1, 1) * self.line.jitter_s))


Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Link:
    """One connection and its counterpart."""

    def __init__(self, proxy: TcpProxy, client: Stream, server: Stream, tap: Tap) -> None:
        self._proxy, self._client, self._server, self._tap = proxy, client, server, tap
        self._carried = 0
        self._deaf: asyncio.Event | None = None
        """Set while the client hears nothing any more; the event says that the answer is complete."""
        self._answer = b""
        self._gone = asyncio.Event()
        self.lossy = False

    def abort(self) -> None:
        """Cut both sides without a farewell."""
        for _, writer in (self._client, self._server):
            writer.transport.abort()
        self._gone.set()

    async def run(self) -> None:
        """Carry bytes both ways until one side ends or the line is cut."""
        ways = [asyncio.create_task(way) for way in (self._up(), self._down(), self._gone.wait())]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.abort()
            for task in ways:
                task.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _up(self) -> None:
        while data := await self._read(self._client, "up"):
            for piece in self._tap.feed(data):
                cut = self._proxy.strikes(piece.names)
                if cut is None:
                    await self._write(self._server, piece.data)
                    continue
                await self._strike(cut, piece.data)
                return

    async def _strike(self, cut: Cut, data: bytes) -> None:
        if cut.when != "before":
            self._deaf = asyncio.Event()
            await self._write(self._server, data)
            if cut.when == "answered":
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._deaf.wait(), ANSWER_WITHIN_S)
        self.abort()
        self._proxy.struck.append(f"{cut.when}: {cut.text}")
        cut.done.set()

    async def _down(self) -> None:
        while data := await self._read(self._server, "down"):
            if self._deaf is None:
                await self._write(self._client, data)
                continue
            self._answer += data
            if self._tap.is_answered(self._answer):
                self._deaf.set()

    async def _read(self, stream: Stream, way: Way) -> bytes:
        while True:
            await self._proxy.pace(way)
            try:
                data = await stream[0].read(CHUNK)
            except OSError:
                return b""
            # The line may have changed while nothing came.
            await self._proxy.pace(way)
            if not data or way not in self._proxy.line.swallow:
                return data
            self.lossy = True

    async def _write(self, stream: Stream, data: bytes) -> None:
        line = self._proxy.line
        room = len(data) if line.cut_after is None else max(0, line.cut_after - self._carried)
        self._carried += len(data)
        size = line.slice_bytes or len(data) or 1
        with contextlib.suppress(OSError):
            for start in range(0, min(room, len(data)), size):
                stream[1].write(data[start : min(start + size, room)])
                await stream[1].drain()
                if line.stall_s and line.slice_bytes:
                    await asyncio.sleep(line.stall_s)
        if room < len(data):
            self._proxy.struck.append("bytes")
            self.abort()

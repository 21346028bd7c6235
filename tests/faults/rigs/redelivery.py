"""A relay before NATS that makes the broker deliver again, or late and out of order; the service notices nothing.

Acknowledgements of a message's first deliveries become refusals (`-NAK`): the broker answers as usual and delivers at once again,
which is what a lost acknowledgement comes to, without the wait. Deliveries may be held back for longer than the broker waits for
an acknowledgement. Source: NATS client protocol (PUB, HPUB, MSG, HMSG), JetStream acknowledgement subjects (`$JS.ACK`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator
    from types import TracebackType

LOOPBACK = "127.0.0.1"
CHUNK = 64 * 1024
PAYLOAD = frozenset({b"PUB", b"HPUB", b"MSG", b"HMSG"})
ACK = b"$JS.ACK."
SHORT_ACK = 9
"""Tokens of an acknowledgement subject without domain and account: `$JS.ACK.<stream>.<durable>.<delivered>.<seq>...`."""
ACKNOWLEDGED = frozenset({b"", b"+ACK"})
NAK = b"-NAK"


@dataclass(frozen=True, slots=True)
class Frame:
    """One protocol line, with the payload that belongs to it."""

    words: tuple[bytes, ...]
    payload: bytes
    raw: bytes


@dataclass(slots=True)
class Frames:
    """Cuts one direction of a connection into frames."""

    _buffer: bytes = b""

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield whole frames; the rest stays until more comes."""
        self._buffer += data
        while (end := self._buffer.find(b"\r\n")) >= 0:
            words = tuple(self._buffer[:end].split())
            has_payload = bool(words) and words[0].upper() in PAYLOAD
            size = end + 2 + (int(words[-1]) + 2 if has_payload else 0)
            if len(self._buffer) < size:
                return
            raw, self._buffer = self._buffer[:size], self._buffer[size:]
            yield Frame(words, raw[end + 2 : -2] if has_payload else b"", raw)


def delivery_of(subject: bytes) -> tuple[str, int, int] | None:
    """Return (`STREAM/durable`, stream sequence, how often delivered) of an acknowledgement subject, else None."""
    if not subject.startswith(ACK):
        return None
    tokens = subject.decode(errors="replace").split(".")
    first = 2 if len(tokens) == SHORT_ACK else 4
    stream, durable, delivered, seq = tokens[first : first + 4]
    return f"{stream}/{durable}", int(seq), int(delivered)


@dataclass(slots=True, kw_only=True)
class Mischief:
    """What a relay does; changed while connections run, and nothing at first.

    `times`: so often is every message delivered before an acknowledgement gets through. `late`: share of deliveries held back
    for up to `late_s` seconds while later ones pass.
    """

    times: int = 1
    late: float = 0.0
    late_s: float = 0.0
    spare: frozenset[str] = frozenset()
    """Durables whose deliveries are not held back."""
    delivered: Counter[tuple[str, int]] = field(default_factory=Counter[tuple[str, int]])
    """How often each message of each durable was acknowledged by the service, whatever the broker heard."""
    held: int = 0


class Relay:
    """Listens on a free port of loopback; `async with` starts and stops it."""

    def __init__(self, url: str, chance: random.Random, mischief: Mischief) -> None:
        """Forward to the server of a URL (no TLS)."""
        parts = urlsplit(url)
        self._target = parts.hostname or LOOPBACK, parts.port or 4222
        self._chance, self.mischief = chance, mischief
        self._server: asyncio.Server | None = None
        self._links: set[asyncio.Task[None]] = set()
        self.url = ""

    async def __aenter__(self) -> Self:
        """Listen."""
        self._server = await asyncio.start_server(self._on_client, LOOPBACK, 0)
        self.url = f"nats://{LOOPBACK}:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cut everything and listen no more."""
        if self._server is not None:
            self._server.close()
        for link in list(self._links):
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)

    async def _on_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        writers = [writer]
        try:
            up_reader, up_writer = await asyncio.open_connection(*self._target)
            writers.append(up_writer)
            ways = [
                asyncio.create_task(_carry(reader, lambda frame: self._up(frame, up_writer))),
                asyncio.create_task(_carry(up_reader, lambda frame: self._down(frame, writer))),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except OSError:
            pass  # The server is away; the client sees its connection end.
        finally:
            for each in writers:
                each.transport.abort()
            self._links.discard(task)

    def _up(self, frame: Frame, server: asyncio.StreamWriter) -> None:
        found = delivery_of(frame.words[1]) if frame.words[:1] == (b"PUB",) else None
        if found is None or frame.payload not in ACKNOWLEDGED:
            server.write(frame.raw)
            return
        consumer, seq, delivered = found
        # By the broker's count: a delivery that the service itself put off is one as well.
        self.mischief.delivered[consumer, seq] = max(delivered, self.mischief.delivered[consumer, seq])
        if delivered >= self.mischief.times:
            server.write(frame.raw)
            return
        line = b" ".join((*frame.words[:-1], str(len(NAK)).encode()))
        server.write(line + b"\r\n" + NAK + b"\r\n")

    def _down(self, frame: Frame, client: asyncio.StreamWriter) -> None:
        mischief = self.mischief
        found = _delivery(frame) if mischief.late else None
        if found is None or found[0] in mischief.spare or self._chance.random() >= mischief.late:
            client.write(frame.raw)
            return
        mischief.held += 1
        delay = self._chance.random() * mischief.late_s
        asyncio.get_running_loop().call_later(delay, _write_late, client, frame.raw)


def _delivery(frame: Frame) -> tuple[str, int, int] | None:
    """Return whose delivery a frame is: MSG and HMSG carry the acknowledgement subject as their reply."""
    if not frame.words or frame.words[0] not in {b"MSG", b"HMSG"}:
        return None
    return next((found for word in frame.words[3:] if (found := delivery_of(word)) is not None), None)


def _write_late(client: asyncio.StreamWriter, raw: bytes) -> None:
    if not client.transport.is_closing():
        client.write(raw)


async def _carry(reader: asyncio.StreamReader, forward: Callable[[Frame], None]) -> None:
    frames = Frames()
    with contextlib.suppress(OSError):
        while data := await reader.read(CHUNK):
            for frame in frames.feed(data):
                forward(frame)

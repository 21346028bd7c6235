"""A NATS client that checks nothing: what it sends is what the attacker wrote, and the broker's refusals keep their spelling.

Source: NATS client protocol (PUB, HPUB, SUB, -ERR); nkey login, nats-io/nkeys.
"""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from infra.nats.identity import public_key
from remit.canonical import b64url
from remit.nkey import signing_key

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

WAIT_S = 20.0
_VIOLATION = re.compile(r"Permissions Violation for (Publish|Subscription) to \"(.*?)\"(?: using queue \"(.*)\")?'?$")


@dataclass(frozen=True, slots=True)
class Heard:
    """One delivered message."""

    subject: str
    reply: str
    headers: bytes
    body: bytes

    @property
    def answer(self) -> dict[str, Any]:
        """The body as a JSON answer of the broker."""
        return json.loads(self.body)


@dataclass(slots=True)
class RawClient:
    """One logged-in connection; `errors` are the broker's -ERR lines, in order."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    inbox: str
    errors: list[str] = field(default_factory=list[str])
    heard: list[Heard] = field(default_factory=list[Heard])
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    _pongs: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    _answers: dict[str, asyncio.Future[Heard]] = field(default_factory=dict[str, "asyncio.Future[Heard]"])
    _asked: int = 0
    _sids: int = 0

    def publish(
        self, subject: str, body: bytes = b"", *, reply: str = "", headers: Mapping[str, str] | bytes | None = None
    ) -> None:
        """Write one message; nothing waits for anything."""
        if headers is None:
            self.write(f"PUB {subject} {reply} {len(body)}\r\n".encode() + body + b"\r\n")
            return
        block = headers if isinstance(headers, bytes) else header_block(headers)
        head = f"HPUB {subject} {reply} {len(block)} {len(block) + len(body)}\r\n".encode()
        self.write(head + block + body + b"\r\n")

    def subscribe(self, subject: str, queue: str = "") -> int:
        """Ask for a subscription and return its id; a refusal appears among the errors."""
        self._sids += 1
        self.write(f"SUB {subject} {queue} {self._sids}\r\n".encode())
        return self._sids

    def write(self, wire: bytes) -> None:
        """Write bytes as they are."""
        self.writer.write(wire)

    async def flush(self) -> None:
        """Wait until the broker has read everything so far; its refusals are in by then."""
        self.write(b"PING\r\n")
        await self.writer.drain()
        async with asyncio.timeout(WAIT_S):
            await self._pongs.acquire()

    async def ask(
        self, subject: str, body: bytes = b"", *, headers: Mapping[str, str] | bytes | None = None
    ) -> dict[str, Any]:
        """Return the JSON answer of a request."""
        self._asked += 1
        reply = f"{self.inbox}.ask.{self._asked}"
        future: asyncio.Future[Heard] = asyncio.get_running_loop().create_future()
        self._answers[reply] = future
        self.publish(subject, body, reply=reply, headers=headers)
        await self.writer.drain()
        return (await asyncio.wait_for(future, WAIT_S)).answer

    def refused(self, verb: str) -> set[tuple[str, str]]:
        """Return what the broker refused so far for `Publish` or `Subscription`, as (subject, queue)."""
        found = (_VIOLATION.search(line) for line in self.errors)
        return {(match[2], match[3] or "") for match in found if match is not None and match[1] == verb}

    async def read(self) -> None:
        """Read until the broker closes the connection."""
        try:
            while line := await self.reader.readline():
                await self._on(line.rstrip(b"\r\n"))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.closed.set()

    async def _on(self, line: bytes) -> None:
        verb, _, rest = line.partition(b" ")
        if verb == b"PING":
            self.write(b"PONG\r\n")
        elif verb == b"PONG":
            self._pongs.release()
        elif verb == b"-ERR":
            self.errors.append(rest.decode(errors="replace"))
        elif verb in {b"MSG", b"HMSG"}:
            await self._on_message(rest.decode(errors="replace").split(" "), has_headers=verb == b"HMSG")

    async def _on_message(self, fields: list[str], *, has_headers: bool) -> None:
        total = int(fields[-1])
        head = int(fields[-2]) if has_headers else 0
        reply = fields[2] if len(fields) == (5 if has_headers else 4) else ""
        raw = (await self.reader.readexactly(total + 2))[:-2]
        heard = Heard(fields[0], reply, raw[:head], raw[head:])
        waiting = self._answers.pop(heard.subject, None)
        if waiting is None:
            self.heard.append(heard)
        elif not waiting.done():
            waiting.set_result(heard)


def header_block(headers: Mapping[str, str]) -> bytes:
    """Return headers as they travel."""
    return b"NATS/1.0\r\n" + b"".join(f"{name}: {value}\r\n".encode() for name, value in headers.items()) + b"\r\n"


@asynccontextmanager
async def raw_client(url: str, seed: str, name: str) -> AsyncGenerator[RawClient]:
    """Log in with an nkey; `name` is the principal's, whose inbox the answers of `ask` come to."""
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port, limit=2**20)
    info = json.loads((await reader.readline()).removeprefix(b"INFO "))
    hello = {
        "verbose": False,
        "pedantic": False,
        "headers": True,
        "no_responders": False,
        "protocol": 1,
        "lang": "attacker",
        "version": "1",
        "nkey": public_key(seed),
        "sig": b64url(signing_key(seed).sign(info["nonce"].encode()).signature),
    }
    client = RawClient(reader, writer, f"_IBX.{name}")
    client.write(b"CONNECT " + json.dumps(hello).encode() + b"\r\n")
    reading = asyncio.create_task(client.read())
    try:
        await client.flush()
        client.subscribe(f"{client.inbox}.ask.*")
        yield client
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        await reading

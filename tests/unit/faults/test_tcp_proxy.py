"""The proxy does to a connection what it says, and nothing else: against a small server that answers line by line."""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from tests.faults.rigs.tcp_proxy import LOOPBACK, Line, TcpProxy
from tests.faults.rigs.wire_taps import NatsTap, PostgresTap

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.timeout(20)


def packet(kind: bytes, body: bytes) -> bytes:
    return kind + (len(body) + 4).to_bytes(4, "big") + body


RNG = random.Random(1)  # noqa: S311  (a seeded fault is repeatable)
STARTUP = (16).to_bytes(4, "big") + (196608).to_bytes(4, "big") + b"user\0\0\0\0"
SSL = (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big")
PARSE = packet(b"P", b"s1\0SELECT control.claim($1)\0\0\0") + packet(b"D", b"Ss1\0") + packet(b"H", b"")
RUN = packet(b"B", b"\0s1\0\0\0\0\0") + packet(b"E", b"\0\0\0\0\0") + packet(b"S", b"")
COMMIT = packet(b"Q", b"COMMIT;\0")


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_postgres_messages_are_named_however_they_are_cut(size: int) -> None:
    tap, stream = PostgresTap(), SSL + STARTUP + PARSE + RUN + COMMIT
    pieces = [p for i in range(0, len(stream), size) for p in tap.feed(stream[i : i + size])]
    assert b"".join(p.data for p in pieces) == stream
    assert [p.names for p in pieces] == [(), (), (), ("SELECT control.claim($1)",), ("COMMIT;",)]


def test_a_postgres_answer_ends_with_ready_for_query() -> None:
    answer = packet(b"C", b"COMMIT\0") + packet(b"Z", b"I")
    assert not any(PostgresTap().is_answered(answer[:end]) for end in range(len(answer)))
    assert PostgresTap().is_answered(answer)


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_nats_messages_are_named_by_subject(size: int) -> None:
    stream = b"CONNECT {}\r\nPUB a.b _IBX.x 5\r\nPUB\r\n\r\nHPUB c.d 2 4\r\nhhbb\r\nPING\r\n"
    tap = NatsTap()
    pieces = [p for i in range(0, len(stream), size) for p in tap.feed(stream[i : i + size])]
    assert b"".join(p.data for p in pieces) == stream
    assert [p.names for p in pieces] == [(), ("a.b",), ("c.d",), ()]


class Echo:
    """Answers each publish with a MSG line and remembers what arrived."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                self.heard.append(await reader.readline() if line.startswith(b"PUB") else line)
                writer.write(b"MSG x 1 0\r\n\r\n")
                await writer.drain()
        except OSError:
            return  # The proxy cut it, which is what it is here for.
        finally:
            writer.close()


@asynccontextmanager
async def echo_behind_proxy() -> AsyncGenerator[tuple[Echo, TcpProxy]]:
    echo = Echo()
    server = await asyncio.start_server(echo.serve, LOOPBACK, 0)
    port = server.sockets[0].getsockname()[1]
    async with TcpProxy(LOOPBACK, port, tap=NatsTap, rng=RNG) as proxy:
        yield echo, proxy
    server.close()


async def ask(proxy: TcpProxy, subject: bytes = b"a", within_s: float = 2.0) -> bytes:
    """Publish on a fresh connection and return the answer, empty when it was cut."""
    reader, writer = await asyncio.open_connection(LOOPBACK, proxy.port)
    try:
        writer.write(b"PUB " + subject + b" 2\r\nhi\r\n")
        return await asyncio.wait_for(reader.read(100), within_s)
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def rest(reader: asyncio.StreamReader) -> bytes:
    """Read until the connection ends, whether with a farewell or without."""
    try:
        while await reader.read(100):
            pass
    except ConnectionError:
        return b"ended"
    return b"ended"


async def test_a_good_line_carries_everything() -> None:
    async with echo_behind_proxy() as (echo, proxy):
        assert (await ask(proxy)).startswith(b"MSG")
        assert echo.heard == [b"hi\r\n"]
        assert proxy.struck == []


async def test_cuts_happen_before_with_and_after_the_message() -> None:
    async with echo_behind_proxy() as (echo, proxy):
        for when, arrived in (("before", 0), ("answered", 1)):
            echo.heard.clear()
            cut = proxy.arm("claim", when)  # type: ignore[arg-type]  # parametrised literal
            assert (await ask(proxy, b"other")).startswith(b"MSG")
            assert await ask(proxy, b"claim") == b""
            assert cut.done.is_set()
            assert len(echo.heard) == 1 + arrived
            assert (await ask(proxy, b"claim")).startswith(b"MSG")
        cut = proxy.arm("claim", "racing", nth=2)
        assert (await ask(proxy, b"claim")).startswith(b"MSG")
        assert await ask(proxy, b"claim") == b""


async def test_refused_and_accepted_again_on_the_same_port() -> None:
    async with echo_behind_proxy() as (_, proxy):
        port = proxy.port
        await proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            await ask(proxy)
        await proxy.accept()
        assert proxy.port == port
        assert (await ask(proxy)).startswith(b"MSG")


async def test_held_bytes_arrive_late_swallowed_ones_never() -> None:
    async with echo_behind_proxy() as (echo, proxy):
        proxy.line = Line(hold=frozenset({"up"}))
        waiting = asyncio.create_task(ask(proxy, within_s=5))
        await asyncio.sleep(0.1)
        assert echo.heard == []
        proxy.heal()
        assert (await waiting).startswith(b"MSG")
        proxy.line = Line(swallow=frozenset({"down"}))
        with pytest.raises(TimeoutError):
            await ask(proxy, within_s=0.2)
        assert len(echo.heard) == 2


async def test_cut_after_so_many_bytes_and_slow_lines() -> None:
    async with echo_behind_proxy() as (echo, proxy):
        proxy.line = Line(cut_after=9)
        assert await ask(proxy) == b""
        assert b"hi\r\n" not in echo.heard
        proxy.line = Line(delay_s=0.05, jitter_s=0.02, slice_bytes=3, stall_s=0.01)
        assert (await ask(proxy)).startswith(b"MSG")


async def test_cut_now_ends_what_is_open() -> None:
    async with echo_behind_proxy() as (_, proxy):
        reader, writer = await asyncio.open_connection(LOOPBACK, proxy.port)
        writer.write(b"PUB a 2\r\nhi\r\n")
        await reader.read(10)
        assert proxy.cut() == 1
        assert await rest(reader) == b"ended"
        writer.close()

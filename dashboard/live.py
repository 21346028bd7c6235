"""The live signal: Postgres `LISTEN remit_approvals` becomes one version text on `/api/ws`.

A notification is a hint and carries nothing that is believed: the version is read from `audit.cursor`, so it survives
restarts and is equal on all replicas. Any database role may notify, and then merely causes a read.
Source: design, dashboard section 4 (Live).
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import psycopg
import structlog
from starlette.websockets import WebSocketDisconnect

from remit.clock import monotonic

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy import URL
    from starlette.websockets import WebSocket

CHANNEL = "remit_approvals"
LEAST_INTERVAL_S = 1 / 6
"""At most six versions a second leave for the browsers; what happens in between is in the next one."""
LISTEN_S = 15.0
MAX_CONNECTIONS = 200
"""The route is not behind the sign-in, so its cost is bounded instead."""
RETRY_S = (0.5, 1.0, 2.0, 5.0)
VERSION = "SELECT epoch::text || ':' || approvals_seq::text FROM audit.cursor"

_log = structlog.get_logger("dashboard.live")


class LiveSignal:
    """Holds the newest version and wakes whoever waits for one."""

    def __init__(self, url: URL) -> None:
        # Not as a URL: SQLAlchemy and libpq do not escape passwords alike.
        self._target = url.translate_connect_args(username="user", database="dbname")
        self._version = ""
        self._changed = asyncio.Condition()
        self._heard_at: float | None = None

    @property
    def version(self) -> str:
        """Newest version seen, `epoch:sequence`; empty before the first read."""
        return self._version

    @property
    def is_listening(self) -> bool:
        """Whether the database connection that listens is up."""
        return self._heard_at is not None

    async def run(self) -> None:
        """Listen for ever; after every reconnect the version is read once, because notifications were missed."""
        attempt = 0
        while True:
            try:
                async for version in self._versions():
                    attempt = 0
                    await self._publish(version)
            except (psycopg.Error, OSError) as error:
                _log.warning("live_signal_lost", error=type(error).__name__, retry_s=RETRY_S[min(attempt, 3)])
            self._heard_at = None
            await asyncio.sleep(RETRY_S[min(attempt, 3)])
            attempt += 1

    async def _versions(self) -> AsyncIterator[str]:
        async with await psycopg.AsyncConnection.connect(**self._target, autocommit=True) as connection:
            await connection.execute(f"LISTEN {CHANNEL}".encode())
            yield await self._read(connection)
            while True:
                # The generator holds the connection until it ends, so the version is read afterwards; a wait without
                # any notification reads it too and thereby proves that the connection lives.
                _ = [notification async for notification in connection.notifies(timeout=LISTEN_S, stop_after=1)]
                yield await self._read(connection)
                await asyncio.sleep(LEAST_INTERVAL_S)

    async def _read(self, connection: psycopg.AsyncConnection[tuple[str]]) -> str:
        row = await (await connection.execute(VERSION.encode())).fetchone()
        self._heard_at = monotonic()
        return row[0] if row else ""

    async def _publish(self, version: str) -> None:
        if version != self._version:
            async with self._changed:
                self._version = version
                self._changed.notify_all()

    async def after(self, seen: str) -> str:
        """Wait until the version differs from `seen`, and return it."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._version not in {seen, ""})
            return self._version


class LiveSocket:
    """The `/api/ws` endpoint: sends the version when it changes, accepts nothing."""

    def __init__(self, signal: LiveSignal, origin: str) -> None:
        self._signal, self._origin = signal, origin
        self._open = 0

    async def serve(self, websocket: WebSocket) -> None:
        """Serve one browser tab until it leaves."""
        # The browser sends its cookies from anywhere, so only the origin tells our page from a foreign one.
        if websocket.headers.get("origin") != self._origin or self._open >= MAX_CONNECTIONS:
            await websocket.close(code=1008)
            return
        await websocket.accept()
        self._open += 1
        sender = asyncio.create_task(self._send(websocket))
        try:
            while True:
                await websocket.receive_text()  # nothing is expected; this notices when the tab closes
        except WebSocketDisconnect:
            pass
        finally:
            self._open -= 1
            sender.cancel()
            with contextlib.suppress(asyncio.CancelledError, WebSocketDisconnect, RuntimeError):
                await sender

    async def _send(self, websocket: WebSocket) -> None:
        seen = ""
        while True:
            seen = await self._signal.after(seen)
            await websocket.send_text(seen)

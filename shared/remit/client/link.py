"""The agent's connection: one nats-py client, rebuilt whenever nats-py closes it for ever.

A refused publish does not raise in nats-py and a refused subscribe looks like silence; here both become errors that name the
subject. Source: design, bus section 4.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from copy import copy
from typing import TYPE_CHECKING, Any, TypeVar

import nats.errors
from nats.aio.client import Client

from remit.client.errors import AgentKeyError, NotConnectedError, NotPermittedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from nats.aio.msg import Msg

    from remit.client.settings import AgentSettings

log = logging.getLogger("remit.client")

T = TypeVar("T")

CONNECT_TIMEOUT_S = 5.0
_VIOLATION = re.compile(r"permissions violation for (publish|subscription) to \"([^\"]+)\"", re.IGNORECASE)


class Link:
    """Requests out, notices in; opens on first use and opens again after a fatal error."""

    def __init__(self, settings: AgentSettings, on_notice: Callable[[bytes], None]) -> None:
        self._settings, self._on_notice = settings, on_notice
        self._client: Client | None = None
        self._opening = asyncio.Lock()
        self._failed: asyncio.Future[Exception] | None = None
        self.problem = "no answer"
        """Last thing that went wrong, for messages."""
        self._closed = False

    async def open(self) -> None:
        """Connect and listen for results, unless that is done already.

        Raises:
            NotConnectedError: no server answered in time.
            AgentKeyError: the broker does not know the key.
            NotPermittedError: the key may not listen on this agent's results.

        """
        await self._connected()

    async def close(self) -> None:
        """Leave for good; proposals on their way go on without us."""
        self._closed = True
        client, self._client = self._client, None
        if client is not None:
            await self._abandon(client)

    async def request(
        self, subject: str, body: bytes, *, headers: dict[str, str] | None, timeout_s: float
    ) -> bytes | None:
        """Return the reply, or None when it is unknown what became of the request.

        Raises:
            NotConnectedError, AgentKeyError, NotPermittedError: as `open`.

        """
        client = await self._connected()
        try:
            reply = await self._or_failure(client.request(subject, body, timeout=timeout_s, headers=headers))
        except nats.errors.Error as error:
            self.problem = type(error).__name__
            return None
        return reply.data

    async def _connected(self) -> Client:
        if self._client is not None and not self._client.is_closed:
            return self._client
        async with self._opening:
            if self._closed:
                raise NotConnectedError(
                    f"agent {self._settings.name} was closed; use it inside `async with Agent(...)`"
                )
            if self._client is None or self._client.is_closed:
                self._client = await self._open_client()
            return self._client

    async def _open_client(self) -> Client:
        self._failed = asyncio.get_running_loop().create_future()
        client, opened = Client(), False
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._or_failure(self._connect(client))
                await self._or_failure(self._listen(client))
            if self._failed.done():  # a reconnect in between made a new future
                raise copy(self._failed.result())
            opened = True
        except (TimeoutError, OSError, nats.errors.Error):
            raise NotConnectedError(self._unreachable()) from None
        finally:
            if not opened:
                await self._abandon(client)
        return client

    def _unreachable(self) -> str:
        name, servers = self._settings.name, ", ".join(self._settings.servers)
        return f"agent {name} cannot reach {servers} ({self.problem}); start the broker or set NATS_URL"

    async def _connect(self, client: Client) -> None:
        await client.connect(
            servers=list(self._settings.servers),
            name=f"agent {self._settings.name}",
            nkeys_seed_str=self._settings.nkey_seed,
            inbox_prefix=f"_IBX.{self._settings.name}",
            tls=self._settings.tls,
            tls_handshake_first=self._settings.tls is not None,
            connect_timeout=3,
            reconnect_time_wait=1,
            max_reconnect_attempts=-1,
            ping_interval=10,
            error_cb=self._on_error,
            reconnected_cb=self._on_reconnected,
        )

    async def _listen(self, client: Client) -> None:
        await client.subscribe(f"results.{self._settings.name}.>", cb=self._on_message)
        # The broker's refusal of the subscription may come right after its answer to the first of these, not after the second.
        await client.flush(timeout=3)
        await client.flush(timeout=3)

    @staticmethod
    async def _abandon(client: Client) -> None:
        # Closing flushes, which fails when the server is gone; then there is nothing left to tell it.
        with contextlib.suppress(nats.errors.Error, OSError):
            await client.close()

    async def _or_failure(self, work: Awaitable[T]) -> T:
        """Await work, but give up at once when the broker says that it can never succeed."""
        failed = self._failed
        task = asyncio.ensure_future(work)
        waiting = {task} if failed is None else {task, failed}
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await _given_up(task)
            raise
        if failed is not None and failed.done():
            await _given_up(task)
            raise copy(failed.result())  # one instance raised again and again would gather tracebacks without end
        return task.result()

    async def _on_message(self, message: Msg) -> None:
        self._on_notice(message.data)

    async def _on_error(self, error: Exception) -> None:
        failure = self._failure_of(str(error))
        self.problem = type(error).__name__ if isinstance(error, OSError) else str(error)[:200] or type(error).__name__
        log.warning("agent %s: %s", self._settings.name, self.problem)
        if failure is not None and self._failed is not None and not self._failed.done():
            self._failed.set_result(failure)

    def _failure_of(self, text: str) -> Exception | None:
        name = self._settings.name
        violation = _VIOLATION.search(text)
        if violation is not None:
            verb = "publish on" if violation[1].lower() == "publish" else "subscribe to"
            return NotPermittedError(
                f"the broker refuses agent {name} to {verb} {violation[2]}; its seed belongs to another agent, "
                "or the broker's user of this key lacks that permission"
            )
        if "authorization violation" in text.lower():
            return AgentKeyError(
                f"the broker does not know the key of agent {name}; use the seed whose public nkey is registered there"
            )
        return None

    async def _on_reconnected(self) -> None:
        # Permissions may have changed with the reconnect, so an old refusal no longer counts.
        self._failed = asyncio.get_running_loop().create_future()
        self.problem = "no answer"


async def _given_up(task: asyncio.Future[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

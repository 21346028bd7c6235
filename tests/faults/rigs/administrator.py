"""An administrator with every right in the account of the streams, as no principal of ours has; for faults that need one.

The login lives in the running server only and is gone after its next restart from a file without it.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import nats

from infra.nats import identity
from infra.nats.config import render

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from nats.aio.client import Client

    from infra.local.environment import Environment
    from infra.local.nats_server import NatsServer

REQUEST_TIMEOUT_S = 10.0
CHUNK_TIMEOUT_S = 10.0
INBOX = b"_IBX.administrator"
EVERYTHING = {"publish": {"allow": [">"]}, "subscribe": {"allow": [">"]}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """One stream as `STREAM.SNAPSHOT` hands it out; consumers are not in it."""

    stream: str
    config: dict[str, Any]
    state: dict[str, Any]
    chunks: tuple[bytes, ...]


class Refused(Exception):  # noqa: N818  (an answer, not a failure of ours)
    """The broker said no; `code` is its `err_code`."""

    def __init__(self, subject: str, error: dict[str, Any]) -> None:
        """Quote the broker."""
        super().__init__(f"{subject}: {error.get('description')} ({error.get('code')}/{error.get('err_code')})")
        self.code: int = error.get("err_code", 0)


class Administrator:
    """Asks the JetStream API anything."""

    def __init__(self, client: Client) -> None:
        """Wrap a connection with every right."""
        self.client = client

    async def ask(self, subject: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send one request to `$JS.API.<subject>` and return the answer.

        Raises:
            Refused: the answer is an error.

        """
        raw = json.dumps(body).encode() if body is not None else b""
        reply = await self.client.request(f"$JS.API.{subject}", raw, timeout=REQUEST_TIMEOUT_S)
        answer: dict[str, Any] = json.loads(reply.data)
        if "error" in answer:
            raise Refused(subject, answer["error"])
        return answer

    async def consumer(self, stream: str, durable: str) -> dict[str, Any]:
        """Return the live configuration of a consumer."""
        return (await self.ask(f"CONSUMER.INFO.{stream}.{durable}"))["config"]

    async def write_consumer(self, stream: str, config: dict[str, Any], action: str) -> None:
        """Create or update a durable; `action` is the broker's word for which."""
        name = config["durable_name"]
        body = {"stream_name": stream, "config": config, "action": action}
        await self.ask(f"CONSUMER.CREATE.{stream}.{name}", body)

    async def stream(self, name: str) -> dict[str, Any]:
        """Return the live configuration of a stream."""
        return (await self.ask(f"STREAM.INFO.{name}"))["config"]

    async def back_up(self, stream: str) -> Backup:
        """Read a stream's snapshot, each chunk acknowledged, until the empty one that ends it."""
        inbox = f"{INBOX.decode()}.snapshot"
        arrived: asyncio.Queue[tuple[bytes, str]] = asyncio.Queue()

        async def take(message: Any) -> None:
            await arrived.put((message.data, message.reply))

        subscription = await self.client.subscribe(inbox, cb=take)
        wish = {"deliver_subject": inbox, "no_consumers": True, "chunk_size": 64 * 1024}
        answer = await self.ask(f"STREAM.SNAPSHOT.{stream}", wish)
        chunks: list[bytes] = []
        while True:
            data, reply = await asyncio.wait_for(arrived.get(), CHUNK_TIMEOUT_S)
            if not data:
                break
            chunks.append(data)
            if reply:
                await self.client.publish(reply, b"")
        await subscription.unsubscribe()
        return Backup(stream=stream, config=answer["config"], state=answer["state"], chunks=tuple(chunks))

    async def restore(self, backup: Backup) -> None:
        """Make a deleted stream from its backup, with the same sequences and times."""
        wish = {"config": backup.config, "state": backup.state}
        answer = await self.ask(f"STREAM.RESTORE.{backup.stream}", wish)
        for chunk in backup.chunks:
            await self.client.request(answer["deliver_subject"], chunk, timeout=CHUNK_TIMEOUT_S)
        ended = json.loads((await self.client.request(answer["deliver_subject"], b"", timeout=CHUNK_TIMEOUT_S)).data)
        if "error" in ended:
            raise Refused(f"STREAM.RESTORE.{backup.stream}", ended["error"])


@asynccontextmanager
async def administrator(environment: Environment) -> AsyncGenerator[Administrator]:
    """Let the running servers know one more user, and log in as that."""
    seed = identity.new_seed()
    for server in environment.brokers:
        await server.reload(_with_user(server, identity.public_key(seed)))
    client = await nats.connect(
        environment.nats_servers, nkeys_seed_str=seed, inbox_prefix=INBOX, max_reconnect_attempts=-1,
        reconnect_time_wait=1, error_cb=_ignore,
    )  # fmt: skip
    try:
        yield Administrator(client)
    finally:
        await client.close()


def _with_user(server: NatsServer, key: str) -> Any:
    accounts = json.loads(render(replace(server.config, allowed_extra={})))["accounts"]
    accounts["REMIT"]["users"].append({"nkey": key, "permissions": EVERYTHING})
    return replace(server.config, allowed_extra={**server.config.allowed_extra, "accounts": accounts})


async def _ignore(_error: Exception) -> None:
    """Refusals are seen where they are awaited."""

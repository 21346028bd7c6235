"""One stream as a file and back, over the JetStream API: what `nats stream backup` and `restore` speak.

A snapshot comes in chunks, each acknowledged before many more are sent; the last message is empty and says how it ended.
A restore is the same the other way round: a request a chunk, an empty one at the end, which the broker answers when the
stream stands. The bytes are the broker's own archive (tar, s2) with checksums of every block in it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nats.errors import Error as NatsError

from remit.errors import RemitError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from nats.aio.client import Client
    from nats.aio.msg import Msg

CHUNK_BYTES = 128 * 1024
"""Below the broker's largest message (`config.MAX_PAYLOAD`)."""
WINDOW_BYTES = 4 * 2**20
"""Unacknowledged bytes of a snapshot; few enough that a slow disk here is no slow consumer there."""
REQUEST_TIMEOUT_S = 30.0
SILENCE_S = 60.0
"""A snapshot that delivers nothing for so long has failed; the broker prepares a large one before its first chunk."""
FINISH_TIMEOUT_S = 600.0
"""The broker reads a whole restored stream before it answers the last chunk."""
FILE_MODE = 0o600
NOT_FOUND = 404
ENDED_WELL = "204"


class BackupError(RemitError):
    """A backup or restore cannot go on; the message names the stream, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """What a snapshot is: the stream's own configuration and state at the cut, and the file's size and checksum."""

    config: dict[str, Any]
    state: dict[str, Any]
    size: int
    sha256: str


async def info(client: Client, stream: str) -> dict[str, Any] | None:
    """Return `STREAM.INFO`, or None where there is no such stream.

    Raises:
        BackupError: the broker does not answer, or refuses.

    """
    answer = await _ask(client, f"$JS.API.STREAM.INFO.{stream}", {}, stream)
    error = answer.get("error")
    if error is not None and error.get("code") == NOT_FOUND:
        return None
    return _accepted(answer, stream)


async def save(client: Client, stream: str, path: Path, say: Callable[[str], object]) -> Saved:
    """Write a snapshot of a stream, without its consumers, to a new file and force it to the disk.

    Raises:
        BackupError: no answer, a refusal, or a snapshot that broke off.

    """
    chunks: asyncio.Queue[Msg] = asyncio.Queue()
    inbox = client.new_inbox()
    subscription = await client.subscribe(inbox, cb=chunks.put)
    try:
        request = {
            "deliver_subject": inbox,
            "no_consumers": True,
            "chunk_size": CHUNK_BYTES,
            "window_size": WINDOW_BYTES,
            "jsck": True,
        }
        answer = await _ask(client, f"$JS.API.STREAM.SNAPSHOT.{stream}", request, stream)
        begun = _accepted(answer, stream)
        size, digest = await _receive(client, chunks, path, stream, say)
    finally:
        await subscription.unsubscribe()
    return Saved(config=begun["config"], state=begun["state"], size=size, sha256=digest)


async def _receive(
    client: Client, chunks: asyncio.Queue[Msg], path: Path, stream: str, say: Callable[[str], object]
) -> tuple[int, str]:
    size, digest = 0, hashlib.sha256()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
    with os.fdopen(descriptor, "wb") as file:
        while True:
            message = await _next(chunks, stream)
            if not message.data:
                _insist_on_end(message, stream)
                break
            file.write(message.data)
            digest.update(message.data)
            size += len(message.data)
            if message.reply:  # Only some chunks ask for an acknowledgement.
                await client.publish(message.reply, b"")
            say(f"{stream}: {size:,} bytes")
        file.flush()
        os.fsync(file.fileno())
    return size, digest.hexdigest()


async def _next(chunks: asyncio.Queue[Msg], stream: str) -> Msg:
    try:
        return await asyncio.wait_for(chunks.get(), SILENCE_S)
    except TimeoutError:
        raise BackupError(f"{stream}: the snapshot broke off; nothing came for {SILENCE_S:g} s. Begin again") from None


def _insist_on_end(message: Msg, stream: str) -> None:
    headers = message.headers or {}
    status = headers.get("Status", ENDED_WELL)
    if status != ENDED_WELL:
        raise BackupError(f"{stream}: the broker ended the snapshot: {status} {headers.get('Description', '')}".strip())


async def restore(
    client: Client, saved: tuple[dict[str, Any], dict[str, Any]], path: Path, say: Callable[[str], object]
) -> dict[str, Any]:
    """Make a stream of (configuration, state) again from its file; return the broker's information about it.

    Raises:
        BackupError: the stream exists, no answer, or the broker refuses what is in the file.

    """
    config, state = saved
    stream: str = config["name"]
    request = {"config": config, "state": state}
    begun = _accepted(await _ask(client, f"$JS.API.STREAM.RESTORE.{stream}", request, stream), stream)
    subject: str = begun["deliver_subject"]
    sent = 0
    for chunk in _chunks(path):
        await _send(client, subject, chunk, stream)
        sent += len(chunk)
        say(f"{stream}: {sent:,} bytes sent")
    return _accepted(await _finish(client, subject, stream), stream)


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


async def _send(client: Client, subject: str, chunk: bytes, stream: str) -> None:
    try:
        reply = await client.request(subject, chunk, timeout=REQUEST_TIMEOUT_S)
    except NatsError as error:
        raise BackupError(
            f"{stream}: a chunk got no answer ({type(error).__name__}); begin the restore again"
        ) from None
    if reply.data:  # An accepted chunk is answered by nothing.
        _accepted(json.loads(reply.data), stream)


async def _finish(client: Client, subject: str, stream: str) -> dict[str, Any]:
    try:
        reply = await client.request(subject, b"", timeout=FINISH_TIMEOUT_S)
    except NatsError as error:
        raise BackupError(f"{stream}: the broker did not finish the restore ({type(error).__name__})") from None
    return json.loads(reply.data)


async def _ask(client: Client, subject: str, body: dict[str, Any], stream: str) -> dict[str, Any]:
    try:
        reply = await client.request(subject, json.dumps(body).encode() if body else b"", timeout=REQUEST_TIMEOUT_S)
    except NatsError as error:
        raise BackupError(
            f"{stream}: no answer to {subject} ({type(error).__name__}); a missing permission looks the same"
        ) from None
    return json.loads(reply.data)


def _accepted(answer: dict[str, Any], stream: str) -> dict[str, Any]:
    error = answer.get("error")
    if error is not None:
        said = f"{error.get('description')} ({error.get('code')}/{error.get('err_code')})"
        raise BackupError(f"{stream}: the broker refuses: {said}")
    return answer

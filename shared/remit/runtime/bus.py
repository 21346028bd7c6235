"""The few broker operations that services use: append, leader read, core publish. Every answer has one meaning here.

Source: design, bus sections 4 and 6 (what each answer to an append means on one node and on three).
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

import nats.errors
import orjson

from remit.errors import PermanentError, RemitError, TransientError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nats.aio.msg import Msg

TIMEOUT_S = 5.0
"""Of every JetStream request; FastStream's own default of 0.5 s reports `unknown` under load (design, bus F11)."""
CONFLICT_CODES = frozenset({10071, 10164})
"""Wrong last sequence; the same while the winner's write is still in flight on three nodes."""
NOT_FOUND_CODE = 10037
NOT_UNDERSTOOD_PAUSE_S = 5.0
"""Half the time in which a changed key file reaches every replica (`trust.LOOK_EVERY_S`)."""
FORBIDDEN_EXTRAS = frozenset({10111, 10166, 10188})
"""Rollup, TTL and schedule headers refused: a bug or an attack, never something to retry."""


class ConflictError(RemitError):
    """Somebody else appended first (or this is our own retry): read by the leader and compare."""


class UnknownOutcomeError(TransientError):
    """No answer: the append may or may not be stored; repeat the same bytes."""


class NotUnderstoodError(TransientError):
    """A stored event may say something that this replica cannot read yet: a kid or a contract newer than its own.

    Passing over it as over junk would let a revocation go unnoticed, so whoever asks has to wait.
    """


@dataclass(frozen=True, slots=True)
class Stored:
    """One stored message by a leader read."""

    subject: str
    seq: int
    body: bytes
    headers: Mapping[str, str]
    time: datetime | None = None
    """When the broker stored it."""


@dataclass(frozen=True, slots=True)
class Appended:
    """The broker's acknowledgement."""

    seq: int
    duplicate: bool


def parse_headers(raw: bytes) -> dict[str, str]:
    """Parse a NATS header block; the first of repeated names wins, as in nats-py.

    A byte that is no UTF-8 costs its own header its meaning, never the message.
    """
    found: dict[str, str] = {}
    for line in raw.split(b"\r\n")[1:]:
        name, separator, value = line.partition(b":")
        if separator:
            found.setdefault(name.strip().decode(errors="replace"), value.strip().decode(errors="replace"))
    return found


class Requester(Protocol):
    """What a bus needs of its connection; a nats-py client has it."""

    async def request(
        self,
        subject: str,
        payload: bytes,
        *,
        timeout: float,  # noqa: ASYNC109  (nats-py's own parameter)
        headers: dict[str, str] | None,
    ) -> Msg:
        """Send one request and return its reply."""
        ...


class Bus:
    """JetStream operations over one connection."""

    def __init__(self, connection: Requester) -> None:
        """Wrap a connection; it need not be up yet."""
        self._connection = connection

    async def _request(self, subject: str, body: bytes, headers: dict[str, str] | None = None) -> dict[str, Any]:
        try:
            reply = await self._connection.request(subject, body, timeout=TIMEOUT_S, headers=headers)
        except (nats.errors.TimeoutError, nats.errors.NoRespondersError, nats.errors.ConnectionClosedError) as error:
            raise UnknownOutcomeError(f"no answer on {subject}: {type(error).__name__}") from None
        except nats.errors.Error as error:
            raise UnknownOutcomeError(f"cannot ask {subject}: {type(error).__name__}") from None
        return orjson.loads(reply.data)

    async def append(self, subject: str, body: bytes, headers: dict[str, str]) -> Appended:
        """Store one message.

        Raises:
            ConflictError: the expected last sequence did not hold.
            UnknownOutcomeError: no answer; may be stored.
            TransientError: refused for now (no space, quota, no leader).
            PermanentError: the broker refuses this message for ever.

        """
        answer = await self._request(subject, body, headers)
        error = answer.get("error")
        if error is None:
            return Appended(seq=answer["seq"], duplicate=bool(answer.get("duplicate")))
        code = error.get("err_code")
        if code in CONFLICT_CODES:
            raise ConflictError(f"{subject}: wrong last sequence ({code})")
        text = f"{subject}: broker answered {error.get('code')}/{code}: {error.get('description')}"
        if code in FORBIDDEN_EXTRAS or error.get("code") == 400:
            raise PermanentError(text)
        raise TransientError(text)

    async def leader_read(self, stream: str, query: dict[str, Any]) -> Stored | None:
        """Return what `STREAM.MSG.GET` finds, answered by the stream leader, or None.

        `query` is `{"last_by_subj": s}` or `{"seq": n, "next_by_subj": s}`.
        """
        answer = await self._request(f"$JS.API.STREAM.MSG.GET.{stream}", orjson.dumps(query))
        error = answer.get("error")
        if error is not None:
            if error.get("err_code") == NOT_FOUND_CODE:
                return None
            raise TransientError(f"leader read of {stream}: {error.get('code')}/{error.get('err_code')}")
        message = answer["message"]
        return Stored(
            subject=message["subject"],
            seq=message["seq"],
            body=base64.b64decode(message.get("data", "")),
            headers=parse_headers(base64.b64decode(message.get("hdrs", ""))),
            time=datetime.fromisoformat(message["time"]),
        )

    async def consumer_info(self, stream: str, durable: str) -> dict[str, Any] | None:
        """Return the raw answer of `CONSUMER.INFO`, or None when stream or consumer does not exist."""
        return await self._info(f"CONSUMER.INFO.{stream}.{durable}")

    async def stream_info(self, stream: str) -> dict[str, Any] | None:
        """Return the raw answer of `STREAM.INFO`, or None when the stream does not exist."""
        return await self._info(f"STREAM.INFO.{stream}")

    async def _info(self, what: str) -> dict[str, Any] | None:
        answer = await self._request(f"$JS.API.{what}", b"")
        error = answer.get("error")
        if error is None:
            return answer
        if error.get("code") == 404:
            return None
        raise TransientError(f"{what}: {error.get('description')}")

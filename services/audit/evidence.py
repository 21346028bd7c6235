"""What went wrong beside the ledger: dead letters of the services, and the broker's advisories that it gave up a delivery.

Both are kept as they came; what is read out of them is for people to find them by.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from remit.projection.fields import clean, clean_or_none

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from remit.runtime.delivery import Inbound
    from services.audit.database import Fence

_LETTER = """
INSERT INTO audit.rejected (seq, at, service, code, detail, source_stream, source_seq, source_subject, agent, letter)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT (seq) DO NOTHING
"""
_ADVISORY = """
INSERT INTO audit.advisory (seq, at, kind, stream, consumer, stream_seq, deliveries, reason)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (seq) DO NOTHING
"""
_INT8 = 2**63 - 1


class EvidenceStore:
    """Insert-only tables `rejected` and `advisory`; a repeated delivery meets its primary key."""

    def __init__(self, fence: Fence, *, alarm: Callable[[str], None]) -> None:
        """Write through the fence; `alarm` counts by kind."""
        self._fence, self._alarm = fence, alarm

    async def keep_letters(self, messages: Sequence[Inbound]) -> None:
        """Keep messages of DLQ."""
        await self._keep(_LETTER, [_letter(message) for message in messages])
        for _ in messages:
            self._alarm("dead_letter")

    async def keep_advisories(self, messages: Sequence[Inbound]) -> None:
        """Keep messages of ADVISORIES."""
        await self._keep(_ADVISORY, [_advisory(message) for message in messages])
        for _ in messages:
            self._alarm("advisory")

    async def _keep(self, statement: str, rows: list[tuple[Any, ...]]) -> None:
        async with self._fence.transaction() as connection:
            await connection.executemany(statement, rows)


def _letter(message: Inbound) -> tuple[Any, ...]:
    said = _object(message.body)
    subject = _text(said.get("subject"))
    # `in.propose.<agent>`: the broker wrote that subject, so it names who sent the proposal.
    agent = subject.removeprefix("in.propose.") if subject and subject.startswith("in.propose.") else None
    return (
        message.seq,
        message.time,
        clean(message.subject.removeprefix("dlq.")),
        _text(said.get("code")) or "unreadable",
        _text(said.get("detail")),
        _text(said.get("stream")),
        _number(said.get("seq")),
        subject,
        agent,
        message.body,
    )


def _advisory(message: Inbound) -> tuple[Any, ...]:
    said = _object(message.body)
    kind = next((k for k in ("MAX_DELIVERIES", "MSG_TERMINATED") if f".{k}." in message.subject), "other")
    return (
        message.seq,
        message.time,
        kind.lower(),
        _text(said.get("stream")),
        _text(said.get("consumer")),
        _number(said.get("stream_seq")),
        _number(said.get("deliveries")),
        _text(said.get("reason")),
    )


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _text(value: object) -> str | None:
    return clean_or_none(value if isinstance(value, str) else None)


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and abs(value) <= _INT8 else None

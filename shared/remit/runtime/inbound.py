"""One message as it came, whatever layer brought it: services never see a client library's type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from nats.aio.msg import Msg


@dataclass(frozen=True, slots=True)
class Inbound:
    """One message as it came, before anything in it is believed."""

    subject: str
    body: bytes
    headers: Mapping[str, str]
    seq: int | None = None
    time: datetime | None = None
    delivered: int = 1
    reply: str | None = None
    stream: str | None = None


def inbound_from(msg: Msg) -> Inbound:
    """Take a JetStream or core message apart."""
    if msg.reply.startswith("$JS.ACK."):
        meta = msg.metadata
        return Inbound(
            subject=msg.subject, body=msg.data, headers=msg.headers or {}, seq=meta.sequence.stream, time=meta.timestamp,
            delivered=meta.num_delivered or 1, stream=meta.stream,
        )  # fmt: skip
    return Inbound(subject=msg.subject, body=msg.data, headers=msg.headers or {}, reply=msg.reply or None)

"""A stream in memory that keeps the broker's promises an append relies on, and breaks them on request."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from remit.runtime.bus import Appended, Bus, ConflictError, Stored, UnknownOutcomeError
from tests.support.factories import NOW

if TYPE_CHECKING:
    from remit.envelope import Recorded


@dataclass
class MemoryBus(Bus):
    """Compare-and-set per subject filter, message ids remembered for ever."""

    stored: list[Stored] = field(default_factory=list[Stored])
    ids: dict[str, int] = field(default_factory=dict[str, int])
    lose_acks: int = 0
    """So many acknowledgements get lost after the message was stored."""
    reads: int = 0

    def put(self, recorded: Recorded, **headers: str) -> Recorded:
        """Store an event of somebody else's."""
        self._store(recorded.signed.subject, recorded.signed.body, {**recorded.signed.headers(), **headers})
        return recorded

    def junk(self, subject: str, **headers: str) -> None:
        """Store something that is no event."""
        self._store(subject, b"{}", {name.replace("_", "-"): value for name, value in headers.items()})

    def _store(self, subject: str, body: bytes, headers: dict[str, str]) -> int:
        seq = len(self.stored) + 1
        self.stored.append(Stored(subject, seq, body, headers, time=NOW + timedelta(seconds=seq)))
        return seq

    async def append(self, subject: str, body: bytes, headers: dict[str, str]) -> Appended:
        message_id = headers.get("Nats-Msg-Id")
        if message_id in self.ids:
            return Appended(self.ids[message_id], duplicate=True)
        prefix = subject.rsplit(".", 1)[0] + "."
        last = next((s.seq for s in reversed(self.stored) if s.subject.startswith(prefix)), 0)
        if last != int(headers["Nats-Expected-Last-Subject-Sequence"]):
            raise ConflictError(subject)
        seq = self._store(subject, body, headers)
        if message_id:
            self.ids[message_id] = seq
        if self.lose_acks:
            self.lose_acks -= 1
            raise UnknownOutcomeError(subject)
        return Appended(seq, duplicate=False)

    async def leader_read(self, stream: str, query: dict[str, Any]) -> Stored | None:
        assert stream in {"ACTIONS", "REMITS"}
        self.reads += 1
        prefix = str(query["next_by_subj"]).removesuffix(">")
        return next((s for s in self.stored if s.seq >= query["seq"] and s.subject.startswith(prefix)), None)

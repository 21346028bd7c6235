"""Cut a client's byte stream into the messages of its protocol, so that a proxy can break off at a chosen one.

Only what a client sends is read, and only as far as its messages' borders and names. Source: PostgreSQL manual, chapter 53
(frontend/backend protocol); NATS client protocol reference (PUB, HPUB).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

SSL_REQUEST, GSS_REQUEST, CANCEL_REQUEST = 80877103, 80877104, 80877102
"""Codes of the untyped packets that may come before the start-up message; the server answers the first two with one byte."""
READY_FOR_QUERY = ord("Z")


@dataclass(frozen=True, slots=True)
class Piece:
    """Whole messages of the wire; `names` says what they ask for: statement texts, or subjects."""

    data: bytes
    names: tuple[str, ...] = ()


class Tap(Protocol):
    """Reads one connection's way to the server, and knows when an answer is complete."""

    def feed(self, data: bytes) -> Iterator[Piece]:
        """Yield what is complete; the rest stays until more comes."""
        ...

    def is_answered(self, answer: bytes) -> bool:
        """Return whether these bytes, read from the last request on, hold its whole answer."""
        ...


@dataclass(slots=True)
class PostgresTap:
    """A piece ends with `Sync` or a simple query: what it asks for is carried out as a whole."""

    statements: dict[bytes, str] = field(default_factory=dict[bytes, str])
    _started: bool = False
    _buffer: bytes = b""
    _group: bytes = b""
    _names: list[str] = field(default_factory=list[str])

    def feed(self, data: bytes) -> Iterator[Piece]:
        """Yield start-up packets and groups of messages."""
        self._buffer += data
        while (size := self._size()) is not None and len(self._buffer) >= size:
            packet, self._buffer = self._buffer[:size], self._buffer[size:]
            if not self._started:
                code = int.from_bytes(packet[4:8], "big")
                self._started = code not in {SSL_REQUEST, GSS_REQUEST, CANCEL_REQUEST}
                yield Piece(packet)
                continue
            self._group += packet
            self._note(packet[:1], packet[5:])
            # Flush asks for answers too, and everything but the extended protocol stands alone.
            if packet[:1] not in b"PBDEC":
                piece = Piece(self._group, tuple(self._names))
                self._group, self._names = b"", []
                yield piece

    def is_answered(self, answer: bytes) -> bool:
        """Return whether a `ReadyForQuery` is among whole messages."""
        while len(answer) >= 5:
            size = 1 + int.from_bytes(answer[1:5], "big")
            if answer[0] == READY_FOR_QUERY:
                return len(answer) >= size
            answer = answer[size:]
        return False

    def _size(self) -> int | None:
        header = 5 if self._started else 4
        if len(self._buffer) < header:
            return None
        return header - 4 + int.from_bytes(self._buffer[header - 4 : header], "big")

    def _note(self, kind: bytes, body: bytes) -> None:
        """Remember what a prepared statement says; name what is carried out, not what is only parsed."""
        if kind == b"Q":
            self._names.append(_text(body))
        elif kind == b"P":
            name, _, rest = body.partition(b"\0")
            self.statements[name] = _text(rest)
        elif kind == b"B":
            _portal, _, rest = body.partition(b"\0")
            self._names.append(self.statements.get(rest.partition(b"\0")[0], ""))


@dataclass(slots=True)
class NatsTap:
    """A piece is one protocol line with its payload; a publish is named by its subject."""

    _buffer: bytes = b""

    def feed(self, data: bytes) -> Iterator[Piece]:
        """Yield whole lines, publishes with their payload."""
        self._buffer += data
        while (end := self._buffer.find(b"\r\n")) >= 0:
            words = self._buffer[:end].split()
            is_publish = bool(words) and words[0].upper() in {b"PUB", b"HPUB"}
            size = end + 2 + (int(words[-1]) + 2 if is_publish else 0)
            if len(self._buffer) < size:
                return
            piece, self._buffer = self._buffer[:size], self._buffer[size:]
            yield Piece(piece, (words[1].decode(errors="replace"),) if is_publish else ())

    def is_answered(self, answer: bytes) -> bool:
        """Return whether a message came back; the broker numbers no requests, so the first one counts."""
        return any(line.startswith((b"MSG ", b"HMSG ")) for line in answer.split(b"\r\n"))


def _text(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode(errors="replace")

"""The log of the calls that arrived: one JSON line a call, on disk before the caller hears an answer."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from pathlib import Path

Kind = Literal["effect", "replay", "conflict", "error"]


class Effect(BaseModel):
    """One call as the bank saw it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seq: int = Field(description="Position in the log, from 1.")
    time: AwareDatetime = Field(description="When the bank took the call up.")
    world: int = Field(description="Number of resets before the call.")
    run: str = Field(description="Name given at the last reset.")
    tool: str = Field(description="Tool as called; it may not exist.")
    arguments_digest: str | None = Field(
        description="`sha-256:` over the canonical arguments; null when they have no form."
    )
    idempotency_key: str | None = Field(description="Key the caller sent; null when none.")
    kind: Kind = Field(
        description="`effect`: performed; `replay`: answered from memory; `conflict`: key known with another call; "
        "`error`: refused without effect."
    )
    changes: list[str] = Field(description="JSON pointers into the world that the call changed; empty for a read.")


class EffectLog:
    """An append-only JSON lines file; sequence numbers go on where an existing file ends."""

    def __init__(self, path: Path) -> None:
        """Open the file, readable for the owner only."""
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._seq = self.read().count(b"\n")

    def next_seq(self) -> int:
        """Return the number that the next line must carry."""
        return self._seq + 1

    def append(self, effect: Effect) -> None:
        """Write one line and wait until it is on disk."""
        line = effect.model_dump_json().encode() + b"\n"
        if os.write(self._descriptor, line) != len(line):
            raise OSError(f"effect {effect.seq} was written in part; the disk may be full")
        os.fsync(self._descriptor)
        self._seq = effect.seq

    def read(self) -> bytes:
        """Return the whole log."""
        return self._path.read_bytes()

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

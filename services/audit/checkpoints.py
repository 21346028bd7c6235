"""Signed checkpoints: the chain is recomputed from its rows, and its head goes to a file outside the database.

Whoever cuts or rewrites the ledger later contradicts a line that only the checkpoint key can make.
Source: design, bus section 8 (tamper evidence).
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import structlog

from remit.canonical import b64url_decode
from remit.errors import CanonicalError, ConfigurationError
from remit.ledger_chain import genesis, is_believed, parse_checkpoint, record_digest
from services.audit.chain import TamperError, signed_checkpoint, verified_checkpoint
from services.audit.database import Pool, answering

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime
    from pathlib import Path

    from nacl.signing import SigningKey, VerifyKey

    from remit.ledger_chain import Checkpoint

log = structlog.get_logger("audit.checkpoints")

STREAMS = ("ACTIONS", "REMITS")
MAX_ROWS = 20_000
"""Of one checkpoint; more rows get several, so that memory and each transaction stay bounded."""
LOOK_EVERY_S = 1.0

_CURSOR = "SELECT last_seq FROM audit.progress WHERE stream = $1"
_LAST = "SELECT line FROM audit.checkpoint WHERE stream = $1 ORDER BY seq DESC LIMIT 1"
_KEPT = "SELECT seq FROM audit.checkpoint WHERE stream = $1"
_HEAD_AT = "SELECT chain_hash FROM audit.audit_event WHERE stream = $1 AND stream_seq = $2"
_ROWS = """
SELECT stream_seq, subject, kid, sig, body_sha256, recorded_at, chain_hash FROM audit.audit_event
WHERE stream = $1 AND stream_seq > $2 ORDER BY stream_seq LIMIT $3
"""
_INSERT = """
INSERT INTO audit.checkpoint (stream, seq, chain_head, previous_seq, merkle_root, at, kid, line)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (stream, seq) DO NOTHING
"""
_VERIFIED = "UPDATE audit.progress SET verified_seq = $2, verified_at = $3 WHERE stream = $1"


class CheckpointFile:
    """One file a stream, one line a checkpoint, synced before it counts."""

    def __init__(self, directory: Path, stream: str) -> None:
        """Name the file; nothing is opened yet."""
        self.path = directory / f"{stream.lower()}.jsonl"

    def read(self) -> list[Checkpoint]:
        """Return the checkpoints of the file; a line that a crash left unfinished does not count and is taken off.

        Raises:
            ConfigurationError: the file is not one of checkpoints.

        """
        if not self.path.exists():
            return []
        raw = self.path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        if whole != raw:
            os.truncate(self.path, len(whole))
        try:
            return [parse_checkpoint(line) for line in whole.decode("utf-8", "replace").splitlines()]
        except CanonicalError:
            raise ConfigurationError(
                f"{self.path} holds a line that is no checkpoint; restore it from a copy"
            ) from None

    def append(self, checkpoint: Checkpoint) -> None:
        """Write one line and wait until it is on the disk."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(checkpoint.line().encode())
            file.flush()
            os.fsync(file.fileno())


class Checkpointer:
    """Makes a checkpoint every so many events or seconds, whichever comes first; nothing new, no checkpoint."""

    def __init__(  # noqa: PLR0913  (composed once, in app.py)
        self,
        pool: Pool,
        *,
        directory: Path,
        key: tuple[str, SigningKey],
        trusted: Mapping[str, VerifyKey],
        clock: Callable[[], datetime],
        every_events: int,
        every_s: float,
    ) -> None:
        """Bind the parts; `key` is (kid, Ed25519 key), `trusted` the checkpoint keys of the environment by kid.

        Raises:
            ConfigurationError: nobody would believe what this key signs.

        """
        self._pool, self._clock, self._directory, self._trusted = pool, clock, directory, trusted
        self._kid, self._key = key
        if trusted.get(self._kid) != self._key.verify_key:
            raise ConfigurationError(f"the checkpoint key {self._kid} is not in the key file; sign the key file again")
        self._every_events, self._every_s = every_events, every_s

    async def run(self) -> None:
        """Make checkpoints for ever.

        Raises:
            TamperError: the ledger is not what an earlier checkpoint says, or not what was chained.
            TransientError: Postgres is down or unwilling.

        """
        for stream in STREAMS:
            await self._projected(stream)
        previous = {stream: await self.previous(stream) for stream in STREAMS}
        made_at = dict.fromkeys(STREAMS, self._clock())
        while True:
            for stream in STREAMS:
                waited = (self._clock() - made_at[stream]).total_seconds()
                if await self._is_due(stream, previous[stream][0], waited):
                    previous[stream] = await self.make(stream, previous[stream])
                    made_at[stream] = self._clock()
            await asyncio.sleep(LOOK_EVERY_S)

    async def _projected(self, stream: str) -> None:
        """Wait until the projector has come as far as the newest line outside.

        A database that was restored from a backup stands behind it, and what it lacks is projected again before it can be held
        against anything. One that was cut without setting back the cursor does not wait here.
        """
        outside = await asyncio.to_thread(CheckpointFile(self._directory, stream).read)
        if outside and not is_believed(outside[-1], self._trusted):
            return  # Whoever wrote that line decides nothing here; `previous` says what is wrong with it.
        said = False
        while outside and (last_seq := await self._cursor(stream)) < outside[-1].seq:
            if not said:
                log.warning(
                    "the ledger is older than its checkpoints", stream=stream, seq=last_seq, signed=outside[-1].seq
                )
                said = True
            await asyncio.sleep(LOOK_EVERY_S)

    async def _cursor(self, stream: str) -> int:
        with answering():
            return await self._pool.fetchval(_CURSOR, stream)

    async def previous(self, stream: str) -> tuple[int, bytes]:
        """Return (sequence, chain hash) of the newest checkpoint, after holding it against the ledger.

        Raises:
            TamperError: the ledger ends before it, or holds another chain.

        """
        with answering():
            line = await self._pool.fetchval(_LAST, stream)
        outside = await asyncio.to_thread(CheckpointFile(self._directory, stream).read)
        candidates = [*outside[-1:], *([self._kept(stream, line)] if line else [])]
        if not candidates:
            return 0, genesis(stream)
        for candidate in candidates:
            if not is_believed(candidate, self._trusted):
                raise TamperError(
                    f"{stream}: the checkpoint at {candidate.seq} is not signed by a checkpoint key of this environment; "
                    "run `remit audit verify`"
                )
        newest = max(candidates, key=lambda c: c.seq)
        head = _raw(newest.chain_head)
        with answering():
            stored = await self._pool.fetchval(_HEAD_AT, stream, newest.seq)
        if stored != head:
            raise TamperError(
                f"{stream}: the ledger does not hold what the checkpoint at {newest.seq} signed; run `remit audit verify`"
            )
        await self._catch_up(stream, outside)
        return newest.seq, head

    @staticmethod
    def _kept(stream: str, line: str) -> Checkpoint:
        try:
            return parse_checkpoint(line)
        except CanonicalError:
            raise TamperError(
                f"{stream}: the newest checkpoint of the database is not readable; run `remit audit verify`"
            ) from None

    async def _catch_up(self, stream: str, outside: list[Checkpoint]) -> None:
        """Give the table what only the file holds: the file is written first, and a crash may come in between."""
        with answering():
            kept = {row["seq"] for row in await self._pool.fetch(_KEPT, stream)}
            for checkpoint in outside:
                if checkpoint.seq not in kept and is_believed(checkpoint, self._trusted):
                    log.warning("checkpoint was in the file only", stream=stream, seq=checkpoint.seq)
                    await self._pool.execute(_INSERT, *checkpoint.columns(), checkpoint.line())

    async def make(self, stream: str, previous: tuple[int, bytes]) -> tuple[int, bytes]:
        """Recompute the chain since the previous checkpoint, sign its head, write the file, then the table.

        Raises:
            TamperError: a row is missing or is not what was chained.

        """
        with answering():
            rows = await self._pool.fetch(_ROWS, stream, previous[0], MAX_ROWS)
        links = [(seq, record_digest(*message), stored) for seq, *message, stored in map(tuple, rows)]
        unsigned = verified_checkpoint(previous, links, stream=stream, at=self._clock(), kid=self._kid)
        checkpoint = signed_checkpoint(unsigned, self._key)
        await asyncio.to_thread(CheckpointFile(self._directory, stream).append, checkpoint)
        with answering():
            async with self._pool.acquire() as connection, connection.transaction():
                await connection.execute(_INSERT, *checkpoint.columns(), checkpoint.line())
                await connection.execute(_VERIFIED, stream, checkpoint.seq, checkpoint.at)
        log.info("checkpoint", stream=stream, seq=checkpoint.seq, head=checkpoint.chain_head)
        return checkpoint.seq, _raw(checkpoint.chain_head)

    async def _is_due(self, stream: str, previous_seq: int, waited_s: float) -> bool:
        fresh = await self._cursor(stream) - previous_seq
        return fresh >= self._every_events or (fresh > 0 and waited_s >= self._every_s)


def _raw(digest: str) -> bytes:
    return b64url_decode(digest.removeprefix("sha-256:"))

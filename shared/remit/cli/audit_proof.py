"""The proof behind `remit audit verify`: one snapshot of the database, held against checkpoints, the stream, and itself.

The two streams are proved in one snapshot, because the rows of actions borrow from those of remits.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import deque
from datetime import timedelta
from typing import TYPE_CHECKING

from remit.cli.audit_effects import compare_effects, find_untold, may_read_effects
from remit.cli.audit_models import compare_actions, compare_all_actions, compare_remits
from remit.cli.output import REFUSED, UNKNOWN, CliError
from remit.clock import now
from remit.errors import CanonicalError, TransientError
from remit.ledger_chain import Checkpoint, Evidence, evidence_from, parse_checkpoint
from remit.ledger_models import EVENT_COLUMNS
from remit.ledger_proof import LedgerRow, Proof, Stream, Verifier

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    import asyncpg

    from remit.ledger_models import RemitFold
    from remit.runtime.bus import Bus
    from remit.runtime.keys import Trust

PREFETCH = 500
CONCURRENT_READS = 64
SETTLING = timedelta(seconds=30)
"""What is younger may still be on its way from the stream, or from the file, into the database."""
STREAMS: tuple[Stream, ...] = ("ACTIONS", "REMITS")
_LEDGER = f"""
SELECT stream_seq, subject, body, body_sha256, kid, sig, verify_status, chain_hash, recorded_at, {", ".join(EVENT_COLUMNS)}
FROM audit.audit_event WHERE stream = $1 ORDER BY stream_seq
"""
_PROGRESS = "SELECT last_seq, chain_head, verified_seq, verified_at FROM audit.progress WHERE stream = $1"
_CHECKPOINTS = """
SELECT stream, seq, chain_head, previous_seq, merkle_root, at, kid, line FROM audit.checkpoint WHERE stream = $1 ORDER BY seq
"""


def ledger_row(row: asyncpg.Record) -> LedgerRow:
    """Read one ledger row."""
    evidence = Evidence(
        seq=row["stream_seq"], subject=row["subject"], body=row["body"], kid=row["kid"], signature=row["sig"],
        at=row["recorded_at"],
    )  # fmt: skip
    columns = {name: row[name] for name in EVENT_COLUMNS}
    if columns["detail"] is not None:
        columns["detail"] = json.loads(columns["detail"])
    return LedgerRow(
        evidence=evidence, verify_status=row["verify_status"], chain_hash=row["chain_hash"], columns=columns
    )


def checkpoint_lines(path: Path) -> list[Checkpoint]:
    """Return the checkpoints of a file; a last line without its end was never finished and does not count.

    Raises:
        CliError: the file cannot be read, or a line of it is no checkpoint.

    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"cannot read checkpoints from {path}: {type(error).__name__}") from None
    found: list[Checkpoint] = []
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), 1):
        try:
            found.append(parse_checkpoint(line))
        except CanonicalError:
            raise CliError(f"{path}, line {number}: not a checkpoint", REFUSED) from None
    return found


async def prove(
    connection: asyncpg.Connection[asyncpg.Record],
    trust: Trust,
    *,
    checkpoints: list[Checkpoint],
    bus: Bus | None = None,
) -> list[Proof]:
    """Verify both streams' rows and the read models; `checkpoints` are those kept outside, `bus` reads the streams.

    Raises:
        CliError: the stream does not answer, or a row holds a value that no client can read.

    """
    began = now()
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            remits = _StreamProof(connection, "REMITS", trust, outside=checkpoints, bus=bus)
            remits_proof = await remits.run(began)
            await compare_remits(connection, remits.verifier)
            actions = _StreamProof(connection, "ACTIONS", trust, outside=checkpoints, bus=bus)
            return [await actions.run(began, remits.verifier.remits), remits_proof]
    except TransientError as error:
        raise CliError(f"the stream does not answer: {error}", UNKNOWN) from None
    except OverflowError:
        raise CliError(
            "a row of the ledger holds a time outside the calendar; it was not written by audit", REFUSED
        ) from None


class _StreamProof:
    """One stream inside the snapshot; it has a verifier once it runs."""

    verifier: Verifier

    def __init__(
        self,
        connection: asyncpg.Connection[asyncpg.Record],
        stream: Stream,
        trust: Trust,
        *,
        outside: list[Checkpoint],
        bus: Bus | None,
    ) -> None:
        self._connection, self._trust, self._bus = connection, trust, bus
        self._stream: Stream = stream
        self._outside = [c for c in outside if c.stream == stream]

    async def run(self, began: datetime, remits: RemitFold | None = None) -> Proof:
        """Verify every row, then the end of the stream, the cursor, and, given remits, the rows of actions."""
        inside, broken = await self._kept_checkpoints()
        effects_known = await may_read_effects(self._connection)
        self.verifier = Verifier(
            self._stream,
            self._trust.keys,
            checkpoint_keys=self._trust.checkpoint_keys,
            outside=self._outside,
            inside=inside,
        )
        copies = Copies(self._bus, self._stream, self.verifier)
        async for record in self._connection.cursor(_LEDGER, self._stream, prefetch=PREFETCH):
            row = ledger_row(record)
            self.verifier.add(row)
            if record["body_sha256"] != hashlib.sha256(row.evidence.body).digest():
                self.verifier.note(row.seq, "column", "the column body_sha256 is not the digest of the body")
            await copies.compare(row)
            if remits is not None:
                await self._compare(remits, effects_known=effects_known, at_least=PREFETCH)
        await copies.finish(began)
        await self._hold_cursor(inside)
        for seq, problem in broken.items():
            self.verifier.note(seq, "checkpoint", problem)
        proof = self.verifier.finish()
        self._hold_files(inside, began)
        if remits is not None:
            await self._compare(remits, effects_known=effects_known)
            await compare_all_actions(self._connection, self.verifier)
        if remits is not None and effects_known:
            await find_untold(self._connection, self.verifier, settling=SETTLING)
        return proof

    async def _compare(self, remits: RemitFold, *, effects_known: bool, at_least: int = 1) -> None:
        """Compare the actions that are settled so far, once there are enough of them to be worth a query."""
        settled = self.verifier.take_settled(at_least)
        await compare_actions(self._connection, self.verifier, remits, settled)
        if effects_known:
            await compare_effects(self._connection, self.verifier, settled)

    async def _kept_checkpoints(self) -> tuple[list[Checkpoint], dict[int, str]]:
        """Return the checkpoints of the table, and by sequence what is wrong with how they are kept."""
        found, broken = list[Checkpoint](), dict[int, str]()
        for row in await self._connection.fetch(_CHECKPOINTS, self._stream):
            try:
                checkpoint = parse_checkpoint(row["line"])
            except CanonicalError:
                broken[row["seq"]] = "the checkpoint kept in the database is not readable"
                continue
            found.append(checkpoint)
            if checkpoint.columns() != tuple(row)[:-1]:
                broken[row["seq"]] = "the columns of the checkpoint kept in the database are not its signed line"
        return found, broken

    def _hold_files(self, inside: list[Checkpoint], began: datetime) -> None:
        kept = {checkpoint.seq for checkpoint in inside}
        for checkpoint in self._outside:
            if checkpoint.seq not in kept and checkpoint.at < began - SETTLING:
                self.verifier.note(checkpoint.seq, "checkpoint", "the database does not hold this checkpoint any more")

    async def _hold_cursor(self, inside: list[Checkpoint]) -> None:
        """Hold the cursor against the rows, and against the checkpoints of the table."""
        cursor = await self._connection.fetchrow(_PROGRESS, self._stream)
        if cursor is None:
            self.verifier.note(0, "truncated", "the projector's cursor is gone; without it a cut tail cannot be seen")
            return
        self.verifier.expect_end(cursor["last_seq"], cursor["chain_head"])
        if cursor["verified_seq"] > max((checkpoint.seq for checkpoint in inside), default=0):
            missing = (
                f"the cursor knows a checkpoint at {cursor['verified_seq']}, the database does not hold it any more"
            )
            self.verifier.note(cursor["verified_seq"], "checkpoint", missing)
        newest = {checkpoint.seq: checkpoint.at for checkpoint in inside}.get(
            cursor["verified_seq"], cursor["verified_at"]
        )
        if newest != cursor["verified_at"]:
            told = "the cursor names another time of verification than its checkpoint"
            self.verifier.note(cursor["verified_seq"], "checkpoint", told)


class Copies:
    """Compares rows with what the stream's leader holds, many at once; without a bus it compares nothing."""

    def __init__(self, bus: Bus | None, stream: str, verifier: Verifier) -> None:
        """Remember whom to ask and whom to tell."""
        self._bus, self._stream, self._verifier = bus, stream, verifier
        self._asked: deque[tuple[LedgerRow, asyncio.Task[str | None]]] = deque()
        self._last_seq = 0

    async def compare(self, row: LedgerRow) -> None:
        """Ask for one row's message; findings come in the order of the rows."""
        self._last_seq = max(self._last_seq, row.seq)
        if self._bus is None:
            return
        self._asked.append((row, asyncio.create_task(self._difference(self._bus, row))))
        if len(self._asked) >= CONCURRENT_READS:
            await self._settle()

    async def finish(self, began: datetime) -> None:
        """Wait for the rest, then look what the stream holds beyond the last row and should have become a row long ago."""
        while self._asked:
            await self._settle()
        if self._bus is None:
            return
        following = await self._bus.leader_read(self._stream, {"seq": self._last_seq + 1, "next_by_subj": ">"})
        if following is not None and (following.time is None or following.time < began - SETTLING):
            newest = await self._bus.leader_read(self._stream, {"last_by_subj": ">"})
            end = following.seq if newest is None else newest.seq
            detail = f"the rows end at {self._last_seq}, the stream holds {following.seq} to {end}"
            self._verifier.note(self._last_seq + 1, "truncated", detail)
        self._verifier.anchor()

    async def _settle(self) -> None:
        row, task = self._asked.popleft()
        difference = await task
        if difference:
            self._verifier.note(row.seq, "foreign", difference)

    async def _difference(self, bus: Bus, row: LedgerRow) -> str | None:
        held = await bus.leader_read(self._stream, {"seq": row.seq})
        if held is None or held.time is None:
            return "the stream holds no message at this sequence"
        found = evidence_from((held.seq, held.time), held.subject, held.body, held.headers)
        if found == row.evidence:
            return None
        same = found.record == row.evidence.record or found.at == row.evidence.at
        return "the stream holds another message" if same else "the stream stored its message at another time"

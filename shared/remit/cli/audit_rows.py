"""Where `remit audit` reads: the ledger and the read model in Postgres, checkpoint files, and the stream itself.

Everything is read; a ledger is verified inside one snapshot, so that the projector may go on meanwhile.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import nats
import nats.errors
import orjson

from remit.cli.output import UNKNOWN, CliError
from remit.errors import CanonicalError, TransientError
from remit.ledger_chain import Checkpoint, Evidence, evidence_from, parse_checkpoint
from remit.ledger_proof import LedgerRow, Proof, Stream, Verifier
from remit.runtime.bus import Bus
from remit.runtime.keys import read

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from nats.aio.client import Client

    from remit.cli.settings import CliSettings
    from remit.runtime.keys import Trust

CONNECT_TIMEOUT_S = 5.0
PREFETCH = 500
CONCURRENT_READS = 64
STREAMS: tuple[Stream, ...] = ("ACTIONS", "REMITS")
_LEDGER = """
SELECT stream_seq, subject, body, kid, sig, verify_status, chain_hash, event_id, type, remit_id, n,
       COALESCE(action_id, remit_id) AS subject_id
FROM audit.audit_event WHERE stream = $1 ORDER BY stream_seq
"""
_EVENTS = """
SELECT stream_seq, ts, type, n, verify_status, detail, encode(chain_hash, 'hex') AS chain_hash
FROM audit.events WHERE stream = 'ACTIONS' AND action_id = $1 ORDER BY stream_seq
"""
_HEADS = """
SELECT stream, last_seq, chain_head, verified_seq, verified_at, touched_at,
       extract(epoch FROM clock_timestamp() - touched_at)::float8 AS touched_s
FROM audit.progress ORDER BY stream
"""


@asynccontextmanager
async def database(settings: CliSettings) -> AsyncGenerator[asyncpg.Connection[asyncpg.Record]]:
    """Yield a connection.

    Raises:
        CliError: DATABASE_URL is missing, or the database does not answer, or this role may not read what is asked.

    """
    if settings.database_url is None:
        raise CliError("DATABASE_URL is not set; name the database of the ledger")
    try:
        connection = await asyncpg.connect(settings.database_url.get_secret_value(), timeout=CONNECT_TIMEOUT_S)
        try:
            yield connection
        finally:
            await connection.close(timeout=CONNECT_TIMEOUT_S)
    except asyncpg.InsufficientPrivilegeError:
        raise CliError("this database role may not read the ledger; use the role remit_audit or the owner") from None
    except asyncpg.UndefinedTableError:
        raise CliError("this database holds no ledger; run `python -m infra.postgres.migrate`") from None
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise CliError(f"the database does not answer ({type(error).__name__}); check DATABASE_URL", UNKNOWN) from None


def ledger_row(row: asyncpg.Record) -> LedgerRow:
    """Read one ledger row."""
    evidence = Evidence(
        seq=row["stream_seq"], subject=row["subject"], body=row["body"], kid=row["kid"], signature=row["sig"]
    )
    names = ("verify_status", "chain_hash", "event_id", "type", "subject_id", "remit_id", "n")
    return LedgerRow(evidence=evidence, **{name: row[name] for name in names})


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
            raise CliError(f"{path}, line {number}: not a checkpoint", 1) from None
    return found


async def prove(
    connection: asyncpg.Connection[asyncpg.Record],
    stream: Stream,
    trust: Trust,
    *,
    checkpoints: list[Checkpoint],
    bus: Bus | None = None,
) -> Proof:
    """Verify one stream's rows in one snapshot, against checkpoints, the cursor, and the stream itself when `bus` is given."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        kept, damaged = await _kept_checkpoints(connection, stream)
        known = [*checkpoints, *kept]
        verifier = Verifier(stream, trust.keys, checkpoint_key=trust.checkpoint_key, checkpoints=known)
        copies = Copies(bus, stream, verifier)
        async for record in connection.cursor(_LEDGER, stream, prefetch=PREFETCH):
            row = ledger_row(record)
            verifier.add(row)
            await copies.compare(row)
        await copies.finish()
        cursor = await connection.fetchrow("SELECT last_seq, chain_head FROM audit.progress WHERE stream = $1", stream)
        if cursor is not None:
            verifier.expect_end(cursor["last_seq"], cursor["chain_head"])
        for seq in damaged:
            verifier.note(seq, "checkpoint", "the checkpoint kept in the database is not readable")
        return verifier.finish()


async def _kept_checkpoints(
    connection: asyncpg.Connection[asyncpg.Record], stream: str
) -> tuple[list[Checkpoint], list[int]]:
    """Return the checkpoints of the table, and the sequences of those that cannot be read."""
    found, damaged = list[Checkpoint](), list[int]()
    for row in await connection.fetch("SELECT seq, line FROM audit.checkpoint WHERE stream = $1 ORDER BY seq", stream):
        try:
            found.append(parse_checkpoint(row["line"]))
        except CanonicalError:
            damaged.append(row["seq"])
    return found, damaged


class Copies:
    """Compares rows with what the stream's leader holds, many at once; without a bus it compares nothing."""

    def __init__(self, bus: Bus | None, stream: str, verifier: Verifier) -> None:
        """Remember whom to ask and whom to tell."""
        self._bus, self._stream, self._verifier = bus, stream, verifier
        self._asked: deque[tuple[LedgerRow, asyncio.Task[str | None]]] = deque()

    async def compare(self, row: LedgerRow) -> None:
        """Ask for one row's message; findings come in the order of the rows."""
        if self._bus is None:
            return
        self._asked.append((row, asyncio.create_task(self._difference(self._bus, row))))
        if len(self._asked) >= CONCURRENT_READS:
            await self._settle()

    async def finish(self) -> None:
        """Wait for the rest."""
        while self._asked:
            await self._settle()

    async def _settle(self) -> None:
        row, task = self._asked.popleft()
        try:
            difference = await task
        except TransientError as error:
            raise CliError(f"the stream does not answer: {error}", UNKNOWN) from None
        if difference:
            self._verifier.note(row.seq, "foreign", difference)

    async def _difference(self, bus: Bus, row: LedgerRow) -> str | None:
        held = await bus.leader_read(self._stream, {"seq": row.seq})
        if held is None:
            return "the stream holds no message at this sequence"
        if evidence_from(held.seq, held.subject, held.body, held.headers) != row.evidence:
            return "the stream holds another message"
        return None


@asynccontextmanager
async def stream_reader(settings: CliSettings, keys_dir: Path) -> AsyncGenerator[Bus]:
    """Yield a bus that reads ACTIONS and REMITS under the login of audit, the only one here that may.

    Raises:
        CliError: the broker does not answer.

    """
    client: Client | None = None
    try:
        client = await nats.connect(
            settings.nats_url.split(","),
            name="remit-audit-verify",
            nkeys_seed_str=read(keys_dir / "audit" / "nats.nk"),
            inbox_prefix=b"_IBX.audit",
            tls=settings.tls(),
            tls_handshake_first=settings.tls() is not None,
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=int(CONNECT_TIMEOUT_S),
            error_cb=_silent,
        )
    except (nats.errors.Error, OSError, TimeoutError) as error:
        raise CliError(f"the broker does not answer ({type(error).__name__}); check NATS_URL", UNKNOWN) from None
    try:
        yield Bus(client)
    finally:
        await client.close()


async def _silent(_: Exception) -> None:
    """Errors of the connection come back as the result of the request."""


async def story(connection: asyncpg.Connection[asyncpg.Record], action_id: str) -> dict[str, Any]:
    """Return one action's row with its `events` and its remit's `max_calls`, JSON decoded.

    Raises:
        CliError: no such action.

    """
    row = await connection.fetchrow("SELECT * FROM audit.actions_all WHERE action_id = $1", action_id)
    if row is None:
        raise CliError(f"the ledger holds no action {action_id}; ids have 32 hexadecimal characters", 1)
    events = await connection.fetch(_EVENTS, action_id)
    found: dict[str, Any] = dict(row)
    for name in ("args", "votes", "latency_ms"):
        found[name] = json.loads(found[name]) if found[name] else None
    told = [dict(event) | {"detail": json.loads(event["detail"] or "{}")} for event in events]
    return found | {"events": told}


async def heads(connection: asyncpg.Connection[asyncpg.Record]) -> list[dict[str, Any]]:
    """Return where each stream's projection and verification stand."""
    return [dict(row) for row in await connection.fetch(_HEADS)]


def plain(value: object) -> Any:  # noqa: ANN401  (any JSON value)
    """Return a value with times and hashes as text, ready for `print_json`."""
    return orjson.loads(orjson.dumps(value, default=lambda raw: raw.hex() if isinstance(raw, bytes) else str(raw)))

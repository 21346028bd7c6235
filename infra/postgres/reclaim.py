"""Gives a Postgres that was restored from a backup back what it forgot: `python -m infra.postgres.reclaim`.

    DATABASE_URL    of the schema's owner
    NATS_URL        with REMIT_KEYS_DIR, for the operator's login: how far the streams reach
    --hold          before services start: nothing is claimed until --release
    (no option)     while audit projects: wait until it has caught up, then write what the ledger implies
    --release       afterwards: claims go on

Claims are the fence that keeps a call from being made twice, and an older Postgres has lost those of its last hours. The ledger
announces every one of them before the call, so the projected and verified ledger holds them all. A hold withholds audit's
heartbeat, without which no claim commits; audit holds by itself when it finds that it acknowledged more than Postgres knows.
Kill switches are in no stream: look at them between the two steps. Source: design, bus sections 7 and 8.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import asyncpg
import orjson
from pydantic import ValidationError

from infra.nats import snapshot
from infra.nats.backup import connected
from infra.postgres import reclaim_rows, reclaim_rules
from infra.postgres.reclaim_rows import Report
from infra.postgres.reclaim_rules import Event
from infra.postgres.roles import OwnerSettings
from infra.provision import ProvisionSettings
from remit.clock import monotonic
from remit.errors import RemitError

if TYPE_CHECKING:
    from infra.postgres.reclaim_rows import Connection

STREAMS = ("ACTIONS", "REMITS")
LOCK_KEY = 0x52454D43
"""Advisory lock of this program ("REMC" in ASCII)."""
BATCH = 500
POLL_S = 0.5
PROGRESS_EVERY_S = 5.0
CONTRADICTS, REFUSED, INTERRUPTED = 1, 2, 130
"""Exit codes; 130 is what a shell reports for Ctrl-C."""

_HOLD = """
INSERT INTO control.heartbeat (service, at, position) VALUES ('hold', clock_timestamp(), 0)
ON CONFLICT (service) DO UPDATE SET at = excluded.at
"""
_SILENCE = "UPDATE control.heartbeat SET at = 'epoch' WHERE service = 'audit'"
_RECLAIMED = """
INSERT INTO control.heartbeat (service, at, position) VALUES ('reclaimed', clock_timestamp(), $1)
ON CONFLICT (service) DO UPDATE SET at = excluded.at, position = excluded.position
"""
_IS_RECLAIMED = """
SELECT EXISTS (SELECT FROM control.heartbeat AS r JOIN control.heartbeat AS h ON h.service = 'hold'
               WHERE r.service = 'reclaimed' AND r.at > h.at)
"""
_IS_HELD = "SELECT EXISTS (SELECT FROM control.heartbeat WHERE service = 'hold')"
_RELEASE = "DELETE FROM control.heartbeat WHERE service IN ('hold', 'reclaimed')"
_CURSORS = "SELECT stream, last_seq FROM audit.progress"
_IDS = """
SELECT DISTINCT {0} AS id FROM audit.audit_event
WHERE stream = $1 AND verify_status = 'valid' AND {0} > $2 ORDER BY 1 LIMIT $3
"""
_CHAINS = """
SELECT {0} AS id, type, stream_seq, recorded_at, body FROM audit.audit_event
WHERE stream = $1 AND verify_status = 'valid' AND {0} = ANY($2::text[]) ORDER BY stream_seq
"""
_SWITCHES = (
    "SELECT kind, target, reason FROM control.stop WHERE engaged_at IS NOT NULL AND kind <> 'remit' ORDER BY 1, 2"
)
_LAST_SWITCH = "SELECT max(at) FROM control.stop_log"


class ReclaimError(RemitError):
    """The program cannot begin or go on; the message names what is in its way."""


@dataclass(frozen=True, slots=True)
class Ends:
    """How far the streams reach."""

    seqs: dict[str, int]

    @classmethod
    async def ask(cls) -> Ends:
        """Ask the broker under the operator's login.

        Raises:
            ReclaimError: a stream is missing.

        """
        async with connected(ProvisionSettings.model_validate({}), "operator") as client:
            seqs: dict[str, int] = {}
            for stream in STREAMS:
                found = await snapshot.info(client, stream)
                if found is None:
                    raise ReclaimError(f"there is no stream {stream}; restore it first")
                seqs[stream] = found["state"]["last_seq"]
        return cls(seqs)


async def hold(connection: Connection) -> None:
    """Let nothing be claimed until `release`. Where audit runs already, its heartbeat of this instant is taken back too."""
    await connection.execute(_HOLD)
    await connection.execute(_SILENCE)


async def release(connection: Connection) -> None:
    """Let claims go on.

    Raises:
        ReclaimError: nothing was reclaimed since the hold began.

    """
    if not await connection.fetchval(_IS_HELD):
        return
    if not await connection.fetchval(_IS_RECLAIMED):
        raise ReclaimError("claims are held and nothing was reclaimed since; run this program without an option first")
    await connection.execute(_RELEASE)


async def caught_up(connection: Connection, ends: Ends) -> None:
    """Wait until audit has projected as far as the streams reach.

    Raises:
        ReclaimError: Postgres holds more than a stream: then the stream is the older one.

    """
    said_at = float("-inf")
    while True:
        cursors = {row["stream"]: row["last_seq"] for row in await connection.fetch(_CURSORS)}
        behind = {stream: seq for stream, seq in ends.seqs.items() if cursors[stream] < seq}
        for stream, seq in ends.seqs.items():
            if cursors[stream] > seq and not await _has_grown(stream, cursors[stream]):
                raise ReclaimError(
                    f"{stream} ends at {seq}, Postgres has projected {cursors[stream]}: the stream is the older one; "
                    "rebuild the ledger from it first (infra/README.md, Restore)"
                )
        if not behind:
            return
        if monotonic() - said_at >= PROGRESS_EVERY_S:
            said_at = monotonic()
            _say(*(f"{stream}: audit has projected {cursors[stream]} of {seq}" for stream, seq in behind.items()))
        await asyncio.sleep(POLL_S)


async def _has_grown(stream: str, cursor: int) -> bool:
    return (await Ends.ask()).seqs[stream] >= cursor


async def reclaim(connection: Connection, position: int) -> Report:
    """Write what the ledger implies, in one transaction, and note how far.

    Raises:
        ReclaimError: claims are not held, so some might be made meanwhile.

    """
    report = Report()
    async with connection.transaction():
        if not await connection.fetchval(_IS_HELD):
            raise ReclaimError("claims are not held; run this program with --hold first")
        if not await connection.fetchval("SELECT pg_try_advisory_xact_lock($1)", LOCK_KEY):
            raise ReclaimError("another reclaim is at work in this database; wait for it or stop it")
        await _remits(connection, report)
        await _actions(connection, report)
        await reclaim_rows.recount(connection, report)
        await connection.execute(_RECLAIMED, position)
    return report


async def _actions(connection: Connection, report: Report) -> None:
    last = ""
    while ids := await _ids(connection, "ACTIONS", last):
        for action_id, chain in (await _chains(connection, "ACTIONS", ids)).items():
            claim, asked = reclaim_rules.execution(action_id, chain), reclaim_rules.pending(action_id, chain)
            denied = reclaim_rules.block(chain)
            if claim is not None:
                await reclaim_rows.write_execution(connection, claim, report)
            if asked is not None:
                await reclaim_rows.write_pending(connection, asked, report)
            if denied is not None:
                await reclaim_rows.write_block(connection, denied, report)
        last = ids[-1]


async def _remits(connection: Connection, report: Report) -> None:
    last = ""
    while ids := await _ids(connection, "REMITS", last):
        for remit_id, chain in (await _chains(connection, "REMITS", ids)).items():
            found = reclaim_rules.remit(remit_id, chain)
            if found is not None:
                await reclaim_rows.write_remit(connection, found, report)
        last = ids[-1]


async def _ids(connection: Connection, stream: str, after: str) -> list[str]:
    column = "action_id" if stream == "ACTIONS" else "remit_id"
    return [row["id"] for row in await connection.fetch(_IDS.format(column), stream, after, BATCH)]


async def _chains(connection: Connection, stream: str, ids: list[str]) -> dict[str, list[Event]]:
    column = "action_id" if stream == "ACTIONS" else "remit_id"
    chains: dict[str, list[Event]] = {}
    for row in await connection.fetch(_CHAINS.format(column), stream, ids):
        body: dict[str, Any] = orjson.loads(row["body"])
        deadline = body.get("expirytime")
        event = Event(
            type=row["type"], seq=row["stream_seq"], at=row["recorded_at"], data=body["data"],
            deadline=datetime.fromisoformat(deadline) if deadline else None,
        )  # fmt: skip
        chains.setdefault(row["id"], []).append(event)
    return chains


async def _switches(connection: Connection) -> list[str]:
    engaged = await connection.fetch(_SWITCHES)
    newest = await connection.fetchval(_LAST_SWITCH)
    return [
        f"kill switches as this Postgres knows them, last changed {newest or 'never'}; what was changed later is not in it:",
        *(f"  {row['kind']} {row['target']}: engaged ({row['reason']})" for row in engaged),
        "  engage again what is missing, then run this program with --release",
    ]


async def run(options: argparse.Namespace) -> int:
    """Do as the options say and return the exit code."""
    url = OwnerSettings.model_validate({}).database_url.get_secret_value()
    try:
        connection = await asyncpg.connect(url, timeout=5)
    except (OSError, TimeoutError, asyncpg.PostgresError) as error:
        raise ReclaimError(f"Postgres does not take DATABASE_URL ({type(error).__name__})") from None
    try:
        if options.hold:
            await hold(connection)
            _tell("claims are held")
        elif options.release:
            await release(connection)
            _tell("claims go on")
        else:
            return await _reclaim(connection)
    finally:
        await connection.close()
    return 0


async def _reclaim(connection: Connection) -> int:
    ends = await Ends.ask()
    await caught_up(connection, ends)
    report = await reclaim(connection, ends.seqs["ACTIONS"])
    _tell(*report.lines(), *await _switches(connection))
    return CONTRADICTS if report.contradictions else 0


def _tell(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def _say(*lines: str) -> None:
    sys.stderr.write("".join(f"{line}\n" for line in lines))


def main() -> int:
    """Do as the command line says; what was done goes to standard output, progress to standard error."""
    parser = argparse.ArgumentParser(
        prog="python -m infra.postgres.reclaim",
        description="After a restore: write into schema control what the ledger implies.",
        epilog="Exit codes: 0 done, 1 rows contradict the ledger, 2 cannot work, 130 interrupted (nothing was written).",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--hold", action="store_true", help="let nothing be claimed until --release")
    which.add_argument("--release", action="store_true", help="let claims go on, after a reclaim")
    try:
        return asyncio.run(run(parser.parse_args()))
    except ValidationError:
        _say("set DATABASE_URL to the owner's postgresql:// URL, and REMIT_KEYS_DIR to the keys directory")
    except RemitError as error:
        _say(str(error))
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        _say(f"Postgres broke off, nothing was written: {type(error).__name__}; run it again")
    except KeyboardInterrupt:
        _say("interrupted; nothing was written")
        return INTERRUPTED
    return REFUSED


if __name__ == "__main__":
    sys.exit(main())

"""Where `remit audit` reads: the ledger and the read model in Postgres, and the stream itself; nothing is written."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import nats
import nats.errors
import orjson

from remit.cli.output import UNKNOWN, CliError
from remit.runtime.bus import Bus
from remit.runtime.keys import read

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from nats.aio.client import Client

    from remit.cli.settings import CliSettings

CONNECT_TIMEOUT_S = 5.0
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
        raise CliError("this database role may not read the ledger; use the role remit_auditor") from None
    except asyncpg.UndefinedTableError:
        raise CliError("this database holds no ledger; run `python -m infra.postgres.migrate`") from None
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise CliError(f"the database does not answer ({type(error).__name__}); check DATABASE_URL", UNKNOWN) from None


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

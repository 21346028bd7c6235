"""Builds the audit database again from the streams, beside the live one: `python -m services.audit.rebuild [--swap]`.

    DATABASE_URL    of the schema's owner, who may create and rename schemas
    NATS_URL        with REMIT_KEYS_DIR, which holds the operator's login and the public key file

It projects ACTIONS and REMITS from sequence 1 by the code of the service, while the service goes on, compares both ledgers row
by row up to the same sequence, and with `--swap` puts the new one in place in one transaction. Nothing but the schema
`audit_rebuild` is written before that. Source: design, bus section 8.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import asyncpg
import nats
import nats.errors
import structlog
from pydantic import ValidationError

from remit.errors import RemitError
from remit.runtime.bus import Bus
from remit.runtime.keys import load_ring, read
from remit.runtime.settings import ServiceSettings
from remit.runtime.subscriptions import tls_context
from services.audit import twin
from services.audit.refill import Refill, check_durables

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from nats.aio.client import Client

    from services.audit.database import Pool
    from services.audit.twin import Comparison

LOCK_KEY = 0x52454D42
"""Advisory lock of a rebuild ("REMB" in ASCII): two at once would take each other's deliveries."""
CONNECT_TIMEOUT_S = 5
CATCH_UP_WITHIN_S = 6.0
"""How long the live projector may stand still for a swap: less than its statements wait (`postgres.COMMAND_TIMEOUT_S`)."""
SWAP_TRIES = 10
SWAP_PAUSE_S = 1.0
DIFFERENT, REFUSED, INTERRUPTED = 1, 2, 130
"""Exit codes; 130 is what a shell reports for Ctrl-C."""
BUSY = (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError)


class RebuildError(RemitError):
    """The rebuild cannot begin or go on; the message names what is in its way."""


async def rebuild(settings: ServiceSettings, chosen: argparse.Namespace) -> int:
    """Fill the twin, compare, swap when asked to; return the exit code."""
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(_database(settings))
        client = await stack.enter_async_context(_broker(settings))
        await check_durables(Bus(client))
        async with pool.acquire() as connection:
            if not (chosen.go_on and await twin.exists(connection)):
                await twin.make(connection)
        trust = load_ring(settings.keys_dir)
        # A stream that came back from a backup may hold less than the ledger that it is to replace.
        to_the_end: bool = chosen.replace_differing
        async with Refill.open(pool, client, trust, _progress, to_the_end=to_the_end) as refill:
            await refill.catch_up()
            before = await _compared(pool)
            if chosen.swap:
                return await _swap(pool, refill, before, replace=chosen.replace_differing)
        if not chosen.keep:
            async with pool.acquire() as connection:
                await twin.drop(connection)
        return 0 if all(each.is_identical for each in before) else DIFFERENT


async def _compared(pool: Pool) -> list[Comparison]:
    async with pool.acquire() as connection, connection.transaction(isolation="repeatable_read"):
        found = [await twin.compare(connection, stream) for stream in twin.STREAMS]
    _tell(*found)
    return found


async def _swap(pool: Pool, refill: Refill, before: list[Comparison], *, replace: bool) -> int:
    """Let the projector stand still, read the last events, compare them and swap; tried again when it is in the way.

    The bulk was compared before, so the projector waits for the last rows alone.
    """
    for attempt in range(1, SWAP_TRIES + 1):
        await refill.catch_up()
        try:
            async with pool.acquire() as connection, connection.transaction():
                cursors = await twin.hold_live(connection)
                async with asyncio.timeout(CATCH_UP_WITHIN_S):
                    await refill.reach(cursors)
                last = [await twin.compare(connection, each.stream, after=each.seq) for each in before]
                _tell(*last)
                if not (replace or all(each.is_identical for each in (*before, *last))):
                    _tell(
                        "not swapped: the two differ; --replace-differing swaps all the same and keeps the old schema"
                    )
                    return DIFFERENT
                old = await twin.swap(connection)
        except (*BUSY, TimeoutError) as error:
            _progress(f"the live projector is in the way ({type(error).__name__}), attempt {attempt} of {SWAP_TRIES}")
            await asyncio.sleep(SWAP_PAUSE_S)
        else:
            _tell(f"swapped; the old ledger is schema {old}, closed to every role: keep it, or drop it as its owner")
            return 0
    raise RebuildError(f"no quiet moment for the swap in {SWAP_TRIES} attempts; try again with --continue --swap")


@asynccontextmanager
async def _database(settings: ServiceSettings) -> AsyncGenerator[Pool]:
    """Yield a pool of the owner while no other rebuild runs.

    Raises:
        RebuildError: no URL, no answer, or another rebuild is at work.

    """
    if not settings.database_url:
        raise RebuildError("set DATABASE_URL to the owner's postgresql:// URL")
    try:
        pool = await asyncpg.create_pool(
            settings.database_url,
            min_size=1,
            max_size=3,
            timeout=CONNECT_TIMEOUT_S,
            server_settings={"timezone": "UTC"},
        )
    except (OSError, TimeoutError, asyncpg.PostgresError) as error:
        raise RebuildError(f"Postgres does not take DATABASE_URL ({type(error).__name__})") from None
    async with pool, pool.acquire() as connection:
        if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", LOCK_KEY):
            raise RebuildError("another rebuild is at work in this database; wait for it or stop it")
        yield pool


@asynccontextmanager
async def _broker(settings: ServiceSettings) -> AsyncGenerator[Client]:
    """Yield a connection under the operator's key, which may read the rebuild's two durables and reset them.

    Raises:
        RebuildError: the broker does not take it.

    """
    context = tls_context(settings)
    try:
        client = await nats.connect(
            settings.nats_url.split(","),
            name="remit-audit-rebuild",
            nkeys_seed_str=read(settings.keys_dir / "operator" / "nats.nk"),
            inbox_prefix=b"_IBX.operator",
            tls=context,
            tls_handshake_first=context is not None,
            max_reconnect_attempts=-1,
            reconnect_time_wait=1,
            connect_timeout=CONNECT_TIMEOUT_S,
            error_cb=_told,
        )
    except (nats.errors.Error, OSError, TimeoutError) as error:
        raise RebuildError(
            f"NATS does not take the operator's login ({type(error).__name__}); check NATS_URL"
        ) from None
    try:
        yield client
    finally:
        await client.close()


async def _told(error: Exception) -> None:
    """Say what the connection meets: a refused request would otherwise look like a broker that does not answer."""
    sys.stderr.write(f"NATS: {error or type(error).__name__}\n")


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m services.audit.rebuild",
        description="Project both streams from sequence 1 into the schema audit_rebuild and compare it with audit.",
        epilog="Exit codes: 0 identical (or swapped), 1 different, 2 cannot work, 130 interrupted.",
    )
    parser.add_argument("--swap", action="store_true", help="put the new schema in place when both are identical")
    parser.add_argument(
        "--replace-differing", action="store_true", help="with --swap: also when they differ; the old schema is kept"
    )
    parser.add_argument(
        "--continue", dest="go_on", action="store_true",
        help="go on where an interrupted run stopped; never after an upgrade of audit or a migration",
    )  # fmt: skip
    parser.add_argument("--keep", action="store_true", help="without --swap: leave the schema audit_rebuild for a look")
    return parser.parse_args(arguments)


def _quiet() -> None:
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(30),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def _tell(*lines: object) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def _progress(line: object) -> None:
    sys.stderr.write(f"{line}\n")


def main() -> int:
    """Rebuild the audit database; what was found goes to standard output, progress to standard error."""
    chosen = options()
    _quiet()
    try:
        settings = ServiceSettings.model_validate({})
        return asyncio.run(rebuild(settings, chosen))
    except ValidationError:
        _progress("set REMIT_KEYS_DIR to the keys directory")
    except RemitError as error:
        _progress(error)
    except KeyboardInterrupt:
        _progress(
            "interrupted; nothing but the schema audit_rebuild was written: --continue goes on, another run begins anew"
        )
        return INTERRUPTED
    return REFUSED


if __name__ == "__main__":
    sys.exit(main())

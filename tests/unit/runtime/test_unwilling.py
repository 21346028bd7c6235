"""However a lost or unwilling Postgres shows itself in asyncpg, every service takes it for a reason to ask again."""

from __future__ import annotations

import asyncpg
import pytest

from remit.errors import TransientError
from services.audit.database import answering
from services.executor.claims import _answered

SHOWN: tuple[type[Exception], ...] = (
    ConnectionRefusedError,
    ConnectionResetError,
    TimeoutError,
    asyncpg.ConnectionDoesNotExistError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.DiskFullError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.DeadlockDetectedError,
    asyncpg.LockNotAvailableError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)


async def _raises(error: type[Exception]) -> None:
    raise error("as asyncpg says it")


@pytest.mark.parametrize("error", SHOWN)
async def test_it_is_asked_again(error: type[Exception]) -> None:
    with pytest.raises(TransientError):
        await _answered(_raises(error))
    with pytest.raises(TransientError), answering():
        await _raises(error)


async def test_a_statement_that_is_wrong_is_not_asked_again() -> None:
    with pytest.raises(asyncpg.UndefinedTableError):
        await _answered(_raises(asyncpg.UndefinedTableError))

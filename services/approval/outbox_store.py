"""SQL of approval's rows in `control.outbox`: revocations that Postgres knows and the ledger may not.

A row is written in the transaction of the stop it speaks of and deleted when its event is in the ledger.
Source: design, bus section 8 (outbox).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncpg
    from pydantic import BaseModel

    from services.approval.database import Database

    Connection = asyncpg.pool.PoolConnectionProxy[asyncpg.Record]

ACTION_REVOKED, REMIT_REVOKED = "action.revoked", "remit.revoked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Queued:
    """One row: what is true, about which action or remit, under which discriminator of its event id."""

    id: int
    subject_id: str
    event_type: str
    discriminator: str
    data: dict[str, Any]


async def queue(
    connection: Connection, subject_id: str, event_type: str, data: BaseModel, discriminator: str = "1"
) -> None:
    """Add a row to the transaction of `connection`."""
    draft = {"data": data.model_dump(mode="json", exclude_none=True), "expirytime": None}
    await connection.execute(
        "INSERT INTO control.outbox (service, subject_id, event_type, discriminator, draft)"
        " VALUES ('approval', $1, $2, $3, $4::jsonb)",
        subject_id,
        event_type,
        discriminator,
        json.dumps(draft),
    )


async def undone_for(connection: Connection, subject_id: str) -> list[Queued]:
    """Return the rows of one action or remit, inside the transaction of `connection`."""
    return [_queued(row) for row in await connection.fetch(f"{_UNDONE} AND subject_id = $1 ORDER BY id", subject_id)]


class OutboxStore:
    """What the relay reads and ticks off."""

    def __init__(self, database: Database) -> None:
        """Use a database that is attached later."""
        self._db = database

    async def undone(self, *, after_id: int, older_than_s: float, limit: int) -> list[Queued]:
        """Return rows beyond an id whose event may not be in the ledger yet, the oldest first."""
        rows = await self._db.fetch(
            f"{_UNDONE} AND id > $1 AND created_at < clock_timestamp() - make_interval(secs => $2) ORDER BY id LIMIT $3",
            after_id,
            older_than_s,
            limit,
        )
        return [_queued(row) for row in rows]

    async def undone_for(self, subject_id: str) -> list[Queued]:
        """Return the rows of one action or remit."""
        async with self._db.transaction() as connection:
            return await undone_for(connection, subject_id)

    async def done(self, row: Queued) -> None:
        """Delete a row whose event is in the ledger: what it said stands there and in the stop it came from."""
        await self._db.execute("DELETE FROM control.outbox WHERE id = $1", row.id)


_UNDONE = (
    "SELECT id, subject_id, event_type, discriminator, draft FROM control.outbox"
    " WHERE service = 'approval' AND done_at IS NULL"
)


def _queued(row: asyncpg.Record) -> Queued:
    return Queued(
        id=row["id"],
        subject_id=row["subject_id"],
        event_type=row["event_type"],
        discriminator=row["discriminator"],
        data=json.loads(row["draft"])["data"],
    )

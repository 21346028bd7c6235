"""SQL of remits and their budgets in schema `control`.

A remit ends by its stop row, which every claim reads under a lock; the event that says so waits in the outbox of the
same transaction. Source: design, bus sections 7 and 8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from remit.events import RemitRevoked
from remit.remits import Human
from services.approval.authority import human_target
from services.approval.outbox_store import REMIT_REVOKED, queue, undone_for

if TYPE_CHECKING:
    from datetime import datetime

    from remit.remits import RemitDocument
    from services.approval.database import Database
    from services.approval.outbox_store import Queued


@dataclass(frozen=True, slots=True)
class RemitRow:
    """What approval needs of a remit's row; `human_email` is as the ID token of the grant said."""

    human: Human
    digest: str
    expires_at: datetime
    human_email: str | None


@dataclass(frozen=True, slots=True)
class Spent:
    """A remit without calls left."""

    remit_id: str
    digest: str
    used: int


@dataclass(frozen=True, slots=True)
class Created:
    """What is stored under a remit's id, by whichever command came first."""

    digest: str
    is_stopped: bool


class RemitStore:
    """Remits and their budgets."""

    def __init__(self, database: Database) -> None:
        """Use a database that is attached later."""
        self._db = database

    async def find(self, remit_id: str) -> RemitRow | None:
        """Return a remit's row."""
        rows = await self._db.fetch(
            "SELECT human_iss, human_sub, digest, expires_at, human_email FROM control.remit WHERE remit_id = $1",
            remit_id,
        )
        if not rows:
            return None
        row = rows[0]
        human = Human(iss=row["human_iss"], sub=row["human_sub"])
        return RemitRow(human, row["digest"], row["expires_at"], row["human_email"])

    async def create(self, document: RemitDocument, digest: str, *, email: str | None) -> Created:
        """Store remit, budgets and stop rows in one transaction; return what is stored under this id."""
        budgets = [(0, document.max_calls)] + [
            (number, grant.max_calls or document.max_calls) for number, grant in enumerate(document.grants, 1)
        ]
        stops = [
            ("human", human_target(document.human)),
            ("agent", document.agent_id),
            ("remit", document.remit_id),
        ]
        async with self._db.transaction() as connection:
            # granted_seq 0: the event follows the commit, because its sequence is not known before.
            await connection.execute(
                "INSERT INTO control.remit (remit_id, human_iss, human_sub, agent_id, digest, granted_seq,"
                " not_before, expires_at, max_calls, document, human_email)"
                " VALUES ($1, $2, $3, $4, $5, 0, $6, $7, $8, $9::jsonb, $10)"
                " ON CONFLICT (remit_id) DO NOTHING",
                document.remit_id,
                document.human.iss,
                document.human.sub,
                document.agent_id,
                digest,
                document.not_before,
                document.expires_at,
                document.max_calls,
                document.model_dump_json(exclude_none=True),
                email,
            )
            await connection.executemany(
                "INSERT INTO control.budget (remit_id, grant_no, max_calls) VALUES ($1, $2, $3)"
                " ON CONFLICT (remit_id, grant_no) DO NOTHING",
                [(document.remit_id, number, calls) for number, calls in budgets],
            )
            await connection.executemany(_INSERT_STOP, stops)
            stored = await connection.fetchrow(
                "SELECT r.digest, s.engaged_at IS NOT NULL AS stopped FROM control.remit AS r"
                " JOIN control.stop AS s ON s.kind = 'remit' AND s.target = r.remit_id WHERE r.remit_id = $1",
                document.remit_id,
            )
        if stored is None:
            raise LookupError(f"remit {document.remit_id} is not there right after it was stored")
        return Created(stored["digest"], stored["stopped"])

    async def note_granted(self, remit_id: str, seq: int) -> bool:
        """Note the stream sequence of the granting event; return whether the remit was revoked meanwhile."""
        rows = await self._db.fetch(
            "UPDATE control.remit SET granted_seq = $2 WHERE remit_id = $1 RETURNING EXISTS"
            " (SELECT FROM control.stop WHERE kind = 'remit' AND target = $1 AND engaged_at IS NOT NULL) AS stopped",
            remit_id,
            seq,
        )
        return bool(rows) and rows[0]["stopped"]

    async def end(self, remit_id: str, *, digest: str, reason: str, by: Human) -> list[Queued]:
        """Stop a remit for good, waiting for claims in progress under it; return what is still to be recorded.

        Stop row and event are one transaction: whatever crashes next, the ledger learns who took it back. The first
        revocation stands; a later one changes nothing.
        """
        async with self._db.transaction() as connection:
            await connection.execute(_INSERT_STOP, "remit", remit_id)
            status = await connection.execute(_ENGAGE_ONCE, remit_id, reason, by.iss, by.sub)
            await connection.execute(
                "UPDATE control.remit SET ended_at = coalesce(ended_at, clock_timestamp()),"
                " ended_reason = coalesce(ended_reason, 'revoked') WHERE remit_id = $1",
                remit_id,
            )
            if status == "UPDATE 1":
                data = RemitRevoked(remit_digest=digest, by=by, cause=reason)
                await queue(connection, remit_id, REMIT_REVOKED, data)
            return await undone_for(connection, remit_id)

    async def is_over(self, remit_id: str) -> bool:
        """Return whether the remit's time has passed, so that nothing could be granted under its id any more."""
        query = "SELECT FROM control.remit WHERE remit_id = $1 AND expires_at > clock_timestamp()"
        return not await self._db.fetch(query, remit_id)

    async def spent(self, limit: int) -> list[Spent]:
        """Return remits without calls left whose end was not noted yet."""
        rows = await self._db.fetch(
            "SELECT r.remit_id, r.digest, b.used FROM control.remit AS r"
            " JOIN control.budget AS b ON b.remit_id = r.remit_id AND b.grant_no = 0"
            " WHERE r.ended_at IS NULL AND r.granted_seq > 0 AND b.used >= b.max_calls"
            " ORDER BY r.remit_id LIMIT $1",
            limit,
        )
        return [Spent(row["remit_id"], row["digest"], row["used"]) for row in rows]

    async def note_exhausted(self, remit_id: str) -> None:
        """Note that a remit ended because its calls are spent."""
        await self._db.execute(
            "UPDATE control.remit SET ended_at = clock_timestamp(), ended_reason = 'exhausted'"
            " WHERE remit_id = $1 AND ended_at IS NULL",
            remit_id,
        )

    async def note_expired(self) -> int:
        """Note the end of remits whose time is over; return how many."""
        return await self._db.execute(
            "UPDATE control.remit SET ended_at = expires_at, ended_reason = 'expired'"
            " WHERE ended_at IS NULL AND expires_at <= clock_timestamp()"
        )


_INSERT_STOP = "INSERT INTO control.stop (kind, target) VALUES ($1, $2) ON CONFLICT (kind, target) DO NOTHING"
_ENGAGE_ONCE = (
    "UPDATE control.stop SET engaged_at = clock_timestamp(), reason = $2, by_iss = $3, by_sub = $4"
    " WHERE kind = 'remit' AND target = $1 AND engaged_at IS NULL"
)

"""SQL of remits, budgets and stop rows in schema `control`.

A claim locks stop rows in the order global, human, agent, tool, remit; each statement here locks one of them
and waits for the claims that hold it, so that no claim commits after a revocation has returned.
Source: design, bus section 7.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from remit.remits import Human
from services.approval.authority import human_target

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from remit.remits import RemitDocument
    from services.approval.database import Database

Stop = tuple[str, str]
"""Kind and target of a stop row."""


@dataclass(frozen=True, slots=True)
class RemitRow:
    """What approval needs of a remit's row."""

    human: Human
    digest: str
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Spent:
    """A remit without calls left."""

    remit_id: str
    digest: str
    used: int


class RemitStore:
    """Remits, their budgets, and every kill switch."""

    def __init__(self, database: Database) -> None:
        """Use a database that is attached later."""
        self._db = database

    async def engaged(self) -> frozenset[Stop]:
        """Return the engaged stop rows."""
        rows = await self._db.fetch("SELECT kind, target FROM control.stop WHERE engaged_at IS NOT NULL")
        return frozenset((row["kind"], row["target"]) for row in rows)

    async def find(self, remit_id: str) -> RemitRow | None:
        """Return a remit's row."""
        rows = await self._db.fetch(
            "SELECT human_iss, human_sub, digest, expires_at FROM control.remit WHERE remit_id = $1", remit_id
        )
        if not rows:
            return None
        row = rows[0]
        return RemitRow(Human(iss=row["human_iss"], sub=row["human_sub"]), row["digest"], row["expires_at"])

    async def create(self, document: RemitDocument, digest: str) -> str:
        """Store remit, budgets and stop rows in one transaction; return the digest stored under this id."""
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
                " not_before, expires_at, max_calls, document)"
                " VALUES ($1, $2, $3, $4, $5, 0, $6, $7, $8, $9::jsonb)"
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
            )
            await connection.executemany(
                "INSERT INTO control.budget (remit_id, grant_no, max_calls) VALUES ($1, $2, $3)"
                " ON CONFLICT (remit_id, grant_no) DO NOTHING",
                [(document.remit_id, number, calls) for number, calls in budgets],
            )
            await connection.executemany(_INSERT_STOP, stops)
            stored = await connection.fetchval(
                "SELECT digest FROM control.remit WHERE remit_id = $1", document.remit_id
            )
        return str(stored)

    async def note_granted(self, remit_id: str, seq: int) -> None:
        """Note the stream sequence of the granting event."""
        await self._db.execute("UPDATE control.remit SET granted_seq = $2 WHERE remit_id = $1", remit_id, seq)

    async def ensure_stops(self, stops: Iterable[Stop]) -> None:
        """Make stop rows for what was registered; a claim without its rows is refused."""
        async with self._db.transaction() as connection:
            await connection.executemany(_INSERT_STOP, sorted(stops))

    async def engage(self, stop: Stop, *, reason: str, by: Human) -> bool:
        """Engage a switch, waiting for claims in progress; False when there is no such row.

        A human's row is made if need be: a person can be stopped before their first remit.
        """
        if stop[0] == "human":
            await self.ensure_stops([stop])
        touched = await self._db.execute(_ENGAGE, *stop, reason, by.iss, by.sub)
        return touched == 1

    async def lift(self, stop: Stop, *, reason: str, by: Human) -> bool:
        """Release a switch; False when there is no such row."""
        touched = await self._db.execute(
            "UPDATE control.stop SET engaged_at = NULL, reason = $3, by_iss = $4, by_sub = $5"
            " WHERE kind = $1 AND target = $2",
            *stop,
            reason,
            by.iss,
            by.sub,
        )
        return touched == 1

    async def end(self, remit_id: str, *, reason: str, by: Human) -> None:
        """Stop a remit for good, waiting for claims in progress under it."""
        async with self._db.transaction() as connection:
            await connection.execute(_INSERT_STOP, "remit", remit_id)
            await connection.execute(_ENGAGE, "remit", remit_id, reason, by.iss, by.sub)
            await connection.execute(
                "UPDATE control.remit SET ended_at = coalesce(ended_at, clock_timestamp()),"
                " ended_reason = coalesce(ended_reason, 'revoked') WHERE remit_id = $1",
                remit_id,
            )

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
_ENGAGE = (
    "UPDATE control.stop SET engaged_at = coalesce(engaged_at, clock_timestamp()), reason = $3, by_iss = $4,"
    " by_sub = $5 WHERE kind = $1 AND target = $2"
)

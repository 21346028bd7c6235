"""SQL of kill switches in schema `control`; a trigger logs every change to `control.stop_log`.

A claim locks stop rows in the order global, human, agent, tool, remit, behind a shared advisory lock; whoever changes
them takes that lock exclusively and so waits for the claims in progress: no claim commits after a stop has returned.
`tool.*` stands for every action of a tool, also those that are registered later. Source: design, bus section 7.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    import asyncpg

    from remit.remits import Human
    from services.approval.database import Database

Stop = tuple[str, str]
"""Kind and target of a stop row."""
Lifted = Literal["lifted", "unknown", "held"]
"""`held`: the switch of the whole tool is engaged and must be lifted first."""


def whole_tool(stop: Stop) -> str | None:
    """Return the tool that a stop names as a whole (`bank` or `bank.*`), or None; tool names hold no dot."""
    kind, target = stop
    tool, _, action = target.partition(".")
    return tool if kind == "tool" and action in {"", "*"} else None


class StopStore:
    """The switches, and what was registered to be switched off."""

    def __init__(self, database: Database) -> None:
        """Use a database that is attached later."""
        self._db = database

    async def engaged(self) -> frozenset[Stop]:
        """Return the engaged stop rows."""
        rows = await self._db.fetch("SELECT kind, target FROM control.stop WHERE engaged_at IS NOT NULL")
        return frozenset((row["kind"], row["target"]) for row in rows)

    async def is_engaged(self, stop: Stop) -> bool:
        """Return whether this very switch is engaged now."""
        query = "SELECT FROM control.stop WHERE kind = $1 AND target = $2 AND engaged_at IS NOT NULL"
        return bool(await self._db.fetch(query, *stop))

    async def ensure(self, stops: Iterable[Stop]) -> None:
        """Make stop rows for what was registered; actions of a stopped tool start engaged.

        A claim without its rows is refused. The shared lock orders this against somebody stopping the tool right now.
        """
        kinds, targets = zip(*sorted(stops), strict=True)
        async with self._db.transaction() as connection:
            await connection.execute(_LOCK_SHARED)
            await connection.execute(_ENSURE, list(kinds), list(targets))

    async def engage(self, stop: Stop, *, reason: str, by: Human) -> int:
        """Engage a switch, waiting for claims in progress; return how many rows it stops, 0 when there are none.

        A human's row is made if need be: a person can be stopped before their first remit.
        """
        if stop[0] == "human":
            await self.ensure([stop])
        tool = whole_tool(stop)
        if tool is None:
            return await self._db.execute(_ENGAGE, *stop, reason, by.iss, by.sub)
        async with self._db.transaction() as connection:
            await connection.execute(_LOCK)
            if not await connection.fetchval(_ACTIONS_OF, tool):
                return 0
            at = await connection.fetchval(_ENGAGE_TOOL, f"{tool}.*", reason, by.iss, by.sub)
            await connection.execute(_ENGAGE_ACTIONS, tool, at, reason, by.iss, by.sub)
            return int(await connection.fetchval(_ACTIONS_OF, tool))

    async def lift(self, stop: Stop, *, reason: str, by: Human) -> Lifted:
        """Release a switch. Lifting a whole tool leaves actions stopped that were stopped by themselves."""
        tool = whole_tool(stop)
        async with self._db.transaction() as connection:
            await connection.execute(_LOCK)
            if tool is None:
                return await _lift_one(connection, stop, reason=reason, by=by)
            row = await connection.fetchrow(_ENGAGED_AT, "tool", f"{tool}.*")
            if row is None:
                return "unknown"
            at: datetime | None = row["engaged_at"]
            await connection.execute(_LIFT_ACTIONS, tool, at, reason, by.iss, by.sub)
        return "lifted"


async def _lift_one(
    connection: asyncpg.pool.PoolConnectionProxy[asyncpg.Record], stop: Stop, *, reason: str, by: Human
) -> Lifted:
    kind, target = stop
    if kind == "tool" and await connection.fetchval(_ENGAGED_AT, kind, f"{target.partition('.')[0]}.*"):
        return "held"
    status = await connection.execute(
        "UPDATE control.stop SET engaged_at = NULL, reason = $3, by_iss = $4, by_sub = $5"
        " WHERE kind = $1 AND target = $2",
        *stop,
        reason,
        by.iss,
        by.sub,
    )
    return "lifted" if status == "UPDATE 1" else "unknown"


_LOCK = "SELECT pg_advisory_xact_lock('control.stop'::regclass::oid::bigint)"
"""The queue that claims wait in; taken before a statement that must see every row written so far."""
_LOCK_SHARED = "SELECT pg_advisory_xact_lock_shared('control.stop'::regclass::oid::bigint)"
_ENSURE = """
INSERT INTO control.stop (kind, target, engaged_at, reason, by_iss, by_sub)
SELECT k.kind, k.target, w.engaged_at, w.reason, w.by_iss, w.by_sub
FROM unnest($1::text[], $2::text[]) AS k (kind, target)
LEFT JOIN control.stop AS w ON k.kind = 'tool' AND w.kind = 'tool' AND w.target = split_part(k.target, '.', 1) || '.*'
    AND w.engaged_at IS NOT NULL
ORDER BY k.kind, k.target
ON CONFLICT (kind, target) DO NOTHING
"""
# An action that its tool's switch stopped gets a time of its own: lifting the tool will then not release it.
_ENGAGE = """
UPDATE control.stop AS s
SET engaged_at = CASE
        WHEN s.engaged_at = (SELECT w.engaged_at FROM control.stop AS w
                             WHERE s.kind = 'tool' AND w.kind = 'tool' AND w.target = split_part($2, '.', 1) || '.*')
        THEN clock_timestamp() ELSE coalesce(s.engaged_at, clock_timestamp()) END,
    reason = $3, by_iss = $4, by_sub = $5
WHERE s.kind = $1 AND s.target = $2
"""
_ENGAGED_AT = "SELECT engaged_at FROM control.stop WHERE kind = $1 AND target = $2"
_ACTIONS_OF = """
SELECT count(*) FROM control.stop WHERE kind = 'tool' AND starts_with(target, $1 || '.') AND target <> $1 || '.*'
"""
_ENGAGE_TOOL = """
INSERT INTO control.stop AS s (kind, target, engaged_at, reason, by_iss, by_sub)
VALUES ('tool', $1, clock_timestamp(), $2, $3, $4)
ON CONFLICT (kind, target) DO UPDATE SET engaged_at = coalesce(s.engaged_at, excluded.engaged_at),
    reason = excluded.reason, by_iss = excluded.by_iss, by_sub = excluded.by_sub
RETURNING engaged_at
"""
_ENGAGE_ACTIONS = """
UPDATE control.stop SET engaged_at = $2, reason = $3, by_iss = $4, by_sub = $5
WHERE kind = 'tool' AND starts_with(target, $1 || '.') AND engaged_at IS NULL
"""
_LIFT_ACTIONS = """
UPDATE control.stop SET engaged_at = NULL, reason = $3, by_iss = $4, by_sub = $5
WHERE kind = 'tool' AND starts_with(target, $1 || '.') AND engaged_at = $2
"""

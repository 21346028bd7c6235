"""What the projector writes and reads back, one transaction a batch: ledger rows, read models, cursor and heartbeat together.

Source: design, bus section 8; the cost of each way to write in design, speed (COPY for the ledger, set-based upserts).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from remit import tables
from remit.errors import TransientError
from remit.ledger_chain import Evidence, record_digest
from remit.projection.encoding import to_json
from remit.runtime.crash import crash_point
from services.audit.project import KeptRow
from services.audit.remit_rows import write_remit

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import asyncpg

    from services.audit.database import Connection, Fence
    from services.audit.project import ActionBatch, Batch, RemitBatch

LIVE = "audit"
"""The schema that everybody reads."""
CHANNEL = "remit_approvals"
"""The dashboard listens here; a hint that `audit.cursor` has a newer version, never data."""
EVENT_COLUMNS = [name for name in tables.audit_event.columns.keys() if name != "body_sha256"]  # noqa: SIM118  (a collection of columns)
_FROM_REMIT = ("human", "human_iss", "human_sub", "task", "task_shape")
_ACTION_COLUMNS: list[str] = list(tables.actions_all.columns.keys())

_MOVE = """
UPDATE audit.progress SET last_seq = $3, chain_head = $4, approvals_seq = approvals_seq + $5, touched_at = clock_timestamp()
WHERE stream = $1 AND last_seq = $2 AND epoch = $6 RETURNING epoch || ':' || approvals_seq AS version
"""
# A hold stops every claim (migration 0005); `infra.postgres.reclaim` lifts it, and one that begins anew asks for another reclaim.
_NOT_HELD = "NOT EXISTS (SELECT FROM control.heartbeat WHERE service = 'hold')"
_HOLD = """
WITH held AS (
    INSERT INTO control.heartbeat (service, at, position) VALUES ('hold', clock_timestamp(), $1)
    ON CONFLICT (service) DO UPDATE SET at = excluded.at, position = greatest(heartbeat.position, excluded.position)
)
UPDATE control.heartbeat SET at = 'epoch' WHERE service = 'audit'
"""
_MOVE_AND_BEAT = f"""
WITH moved AS ({_MOVE}), beat AS (
    INSERT INTO control.heartbeat (service, at, position) SELECT 'audit', clock_timestamp(), $3 WHERE {_NOT_HELD}
    ON CONFLICT (service) DO UPDATE SET at = excluded.at, position = excluded.position
)
SELECT version FROM moved
"""
_BEAT = f"""
WITH touched AS (UPDATE audit.progress SET touched_at = clock_timestamp())
INSERT INTO control.heartbeat (service, at, position)
SELECT 'audit', clock_timestamp(), last_seq FROM audit.progress WHERE stream = 'ACTIONS' AND {_NOT_HELD}
ON CONFLICT (service) DO UPDATE SET at = excluded.at, position = excluded.position
"""
# A proposal may name somebody else's remit: only the remit's own agent is shown with its human and task.
_UPSERT_ACTIONS = f"""
INSERT INTO audit.actions_all ({", ".join(_ACTION_COLUMNS)})
SELECT {", ".join(f"coalesce(r.{c}, m.{c})" if c in _FROM_REMIT else f"r.{c}" for c in _ACTION_COLUMNS)}
FROM json_populate_recordset(NULL::audit.actions_all, $1::json) AS r
LEFT JOIN audit.remits AS m ON m.remit_id = r.remit_id AND m.agent_id = r.agent_id
ON CONFLICT (action_id) DO UPDATE SET {", ".join(f"{c} = excluded.{c}" for c in _ACTION_COLUMNS if c != "action_id")}
"""
_USE = """
UPDATE audit.grants AS g SET used = g.used + u.n, last_used_at = greatest(g.last_used_at, u.at)
FROM (SELECT remit_id, grant_no, count(*) AS n, max(at) AS at
      FROM unnest($1::text[], $2::integer[], $3::timestamptz[]) AS x (remit_id, grant_no, at) GROUP BY 1, 2) AS u
WHERE g.remit_id = u.remit_id AND g.grant_no = u.grant_no
"""
_SEEN = """
WITH seen AS (
    SELECT agent_id, min(name) AS name, remit_id, max(at) AS at
    FROM unnest($1::text[], $2::text[], $3::text[], $4::timestamptz[]) AS x (agent_id, name, remit_id, at)
    GROUP BY agent_id, remit_id
), recent AS (
    UPDATE audit.remits AS r SET last_action_at = greatest(r.last_action_at, s.at)
    FROM seen AS s WHERE r.remit_id = s.remit_id AND r.agent_id = s.agent_id
)
INSERT INTO audit.agents (agent_id, name, state, last_seen)
SELECT agent_id, min(name), 'unknown', max(at) FROM seen GROUP BY agent_id
ON CONFLICT (agent_id) DO UPDATE SET last_seen = greatest(agents.last_seen, excluded.last_seen)
"""
ROWS_OF = {
    stream: f"""
    SELECT {column} AS id, stream_seq, subject, body, kid, sig, recorded_at, verify_status, chain_hash
    FROM audit.audit_event WHERE stream = '{stream}' AND {column} = ANY($1::text[]) ORDER BY stream_seq
    """
    for stream, column in (("ACTIONS", "action_id"), ("REMITS", "remit_id"))
}


@dataclass(frozen=True, slots=True)
class Position:
    """Where a projection stands."""

    last_seq: int
    head: bytes


def in_schema(statement: str, schema: str) -> str:
    """Return one of our statements for another schema than `audit`: each names its tables as `audit.<table>`."""
    return statement.replace(f"{LIVE}.", f"{schema}.")


class Store:
    """The projection in Postgres, written through the fence only.

    The rows of another schema than `audit` are a rebuild's: nobody reads them yet, so nothing is announced and no heartbeat
    says that evidence is being written.
    """

    def __init__(self, fence: Fence, *, schema: str = LIVE) -> None:
        """Write through the connection that holds the lock."""
        self._fence, self._schema = fence, schema
        self._epochs: dict[str, str] = {}
        """Of each stream when its cursor was read; a rebuild that is put in place changes it."""

    async def position(self, stream: str) -> Position:
        """Return the cursor of a stream."""
        [row] = await self._fetch("SELECT last_seq, chain_head, epoch FROM audit.progress WHERE stream = $1", stream)
        self._epochs[stream] = row["epoch"]
        return Position(row["last_seq"], row["chain_head"])

    async def record_at(self, stream: str, seq: int) -> bytes | None:
        """Return the digest of the message that the ledger holds at a sequence."""
        query = "SELECT subject, kid, sig, body_sha256, recorded_at FROM audit.audit_event WHERE stream = $1 AND stream_seq = $2"
        found = await self._fetch(query, stream, seq)
        return record_digest(*found[0]) if found else None

    async def rows_of(self, stream: str, ids: Iterable[str]) -> dict[str, list[KeptRow]]:
        """Return the ledger rows of actions or remits by id, in stream order; unknown ids are absent."""
        found: dict[str, list[KeptRow]] = {}
        wanted = list(ids)
        for row in await self._fetch(ROWS_OF[stream], wanted) if wanted else []:
            found.setdefault(row["id"], []).append(kept(row))
        return found

    async def commit_actions(self, batch: ActionBatch) -> None:
        """Write one batch of ACTIONS and move the cursor.

        Raises:
            TransientError: Postgres is unwilling, or the cursor is not where this batch begins.

        """
        async with self._fence.transaction() as connection:
            version = await self._move(connection, "ACTIONS", batch, approvals=int(batch.approvals_changed))
            await self._copy(connection, batch)
            rows = batch.rows
            if rows:
                await connection.execute(self._ours(_UPSERT_ACTIONS), to_json(rows))
            if batch.uses:
                await connection.execute(self._ours(_USE), *_columns(batch.uses))
            if batch.seen:
                await connection.execute(self._ours(_SEEN), *_columns(batch.seen))
            if batch.approvals_changed and self._is_live:
                await connection.execute("SELECT pg_notify($1, $2)", CHANNEL, version)
            crash_point("audit", "P")

    async def commit_remits(self, batch: RemitBatch) -> None:
        """Write one batch of REMITS and move its cursor.

        Raises:
            TransientError: Postgres is unwilling, or the cursor is not where this batch begins.

        """
        async with self._fence.transaction() as connection:
            await self._move(connection, "REMITS", batch, approvals=0)
            await self._copy(connection, batch)
            for row, grants in batch.changes:
                await write_remit(connection, row, grants, ours=self._ours)

    async def beat(self) -> None:
        """Say that the projector lives, without anything to project."""
        async with self._fence.transaction() as connection:
            await connection.execute(_BEAT)

    async def hold(self, position: int) -> None:
        """Let nothing be claimed from now on, until somebody has seen to what Postgres forgot up to `position`."""
        async with self._fence.transaction() as connection:
            await connection.execute(_HOLD, position)

    async def is_held(self) -> bool:
        """Return whether claims are held."""
        return bool(await self._fence.fetch("SELECT FROM control.heartbeat WHERE service = 'hold'"))

    @property
    def _is_live(self) -> bool:
        return self._schema == LIVE

    def _ours(self, statement: str) -> str:
        return in_schema(statement, self._schema)

    async def _fetch(self, query: str, *arguments: Any) -> list[asyncpg.Record]:  # noqa: ANN401  (SQL values)
        return await self._fence.fetch(self._ours(query), *arguments)

    async def _move(self, connection: Connection, stream: str, batch: Batch, *, approvals: int) -> str:
        beats = self._is_live and stream == "ACTIONS"
        epoch = self._epochs[stream]
        arguments = (stream, batch.first_seq - 1, batch.last_seq, batch.head, approvals, epoch)
        version: str | None = await connection.fetchval(self._ours(_MOVE_AND_BEAT if beats else _MOVE), *arguments)
        if version is None:
            raise TransientError(
                f"{stream}: the cursor is not at {batch.first_seq - 1} of this ledger; another projector moved it, "
                "or a rebuild was put in its place"
            )
        return version

    async def _copy(self, connection: Connection, batch: Batch) -> None:
        records = [[_value(row.get(name), name) for name in EVENT_COLUMNS] for row in batch.events]
        await connection.copy_records_to_table(
            "audit_event", schema_name=self._schema, columns=EVENT_COLUMNS, records=records
        )


def _value(value: Any, column: str) -> Any:  # noqa: ANN401  (a column value)
    return to_json(value) if column == "detail" and value is not None else value


def _columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    """Turn rows into the arrays that `unnest` takes."""
    return [list(column) for column in zip(*rows, strict=True)]


def kept(row: asyncpg.Record) -> KeptRow:
    """Read one ledger row back."""
    evidence = Evidence(
        seq=row["stream_seq"], subject=row["subject"], body=row["body"], kid=row["kid"], signature=row["sig"],
        at=row["recorded_at"],
    )  # fmt: skip
    return KeptRow(evidence, row["verify_status"], row["chain_hash"])

"""A superuser at the ledger: changes whatever it likes inside one transaction, asks the verifier, and takes everything back."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from remit.cli.audit_proof import checkpoint_lines, prove
from remit.ledger_chain import genesis, link, record_digest
from remit.runtime.bus import Bus
from remit.runtime.keys import load_trust

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    import asyncpg

    from remit.ledger_chain import Checkpoint
    from remit.ledger_proof import Finding, Proof
    from tests.support.audit_stage import AuditStage

EVENTS = "audit.audit_event"
ACTIONS = "stream = 'ACTIONS' AND stream_seq"
CONSTRAINTS = """
SELECT format('ALTER TABLE %s DROP CONSTRAINT %I', conrelid::regclass, conname) FROM pg_constraint
WHERE connamespace IN ('audit'::regnamespace, 'control'::regnamespace) AND contype IN ('c', 'u')
"""
NULLABLE = """
SELECT format('ALTER TABLE %I.%I ALTER %I DROP NOT NULL', table_schema, table_name, column_name)
FROM information_schema.columns AS c JOIN information_schema.tables AS t USING (table_schema, table_name)
WHERE table_schema = 'audit' AND table_type = 'BASE TABLE' AND is_nullable = 'NO'
  AND NOT EXISTS (SELECT FROM information_schema.key_column_usage AS k
                  WHERE (k.table_schema, k.table_name, k.column_name) = (c.table_schema, c.table_name, c.column_name))
"""
COLUMNS = """
SELECT attname, format_type(atttypid, NULL) FROM pg_attribute
WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""
CHANGED = {
    "text": "coalesce({0}, '') || 'x'",
    "bytea": "coalesce({0}, '') || '\\x00'",
    "bigint": "coalesce({0}, 0) + 1000",
    "integer": "coalesce({0}, 0) + 1",
    "smallint": "coalesce({0}, 0) + 1",
    "boolean": "NOT coalesce({0}, false)",
    "jsonb": "jsonb_build_array({0})",
    "text[]": "array_append({0}, 'x')",
    "timestamp with time zone": "coalesce({0}, clock_timestamp()) - interval '1 microsecond'",
}
"""The smallest change of a value, by type."""
BECOME_ALMIGHTY = "SET session_replication_role = replica"
"""Triggers do not fire any more."""


@dataclass
class Superuser:
    """Who may do anything to the copy it is given; `outside` are the checkpoints it cannot reach."""

    stage: AuditStage
    connection: asyncpg.Connection[asyncpg.Record]
    outside: list[Checkpoint]

    async def do(self, *statements: str) -> None:
        """Execute SQL."""
        for statement in statements:
            await self.connection.execute(statement)

    async def lift_limits(self) -> None:
        """Drop every check and uniqueness but the keys, and what is generated becomes an ordinary column."""
        for query in (CONSTRAINTS, NULLABLE):
            for (statement,) in await self.connection.fetch(query):
                await self.connection.execute(statement)
        await self.connection.execute(f"ALTER TABLE {EVENTS} ALTER body_sha256 DROP EXPRESSION")

    async def change(self, table: str, column: str, where: str) -> None:
        """Change one column a little."""
        [kind] = [kind for name, kind in await self.connection.fetch(COLUMNS, table) if name == column]
        done = await self.connection.execute(
            f"UPDATE {table} SET {column} = {CHANGED[kind].format(column)} WHERE {where}"
        )
        assert done == "UPDATE 1", f"{table}.{column}: {done}"

    @asynccontextmanager
    async def trial(self) -> AsyncGenerator[None]:
        """Take back what happens inside the block."""
        transaction = self.connection.transaction()
        await transaction.start()
        try:
            yield
        finally:
            await transaction.rollback()

    async def rechain(self, *, start: bytes | None = None, keeps_checkpoints: bool = False) -> None:
        """Rewrite every link of ACTIONS so that it fits, and drop what would contradict it inside the database."""
        query = (
            f"SELECT stream_seq, subject, kid, sig, body, recorded_at FROM {EVENTS} WHERE stream = 'ACTIONS' ORDER BY 1"
        )
        head, last = start or genesis("ACTIONS"), 0
        for last, subject, kid, sig, body, at in map(tuple, await self.connection.fetch(query)):
            digest = await self.connection.fetchval("SELECT sha256($1::bytea)", body)
            head = link(head, last, record_digest(subject, kid, sig, digest, at))
            await self.connection.execute(f"UPDATE {EVENTS} SET chain_hash = $2 WHERE {ACTIONS} = $1", last, head)
        cursor = "UPDATE audit.progress SET chain_head = $1, last_seq = $2 WHERE stream = 'ACTIONS'"
        await self.connection.execute(cursor, head, last)
        if not keeps_checkpoints:
            await self.do(
                "DELETE FROM audit.checkpoint WHERE stream = 'ACTIONS'",
                "UPDATE audit.progress SET verified_seq = 0, verified_at = NULL WHERE stream = 'ACTIONS'",
            )

    async def proofs(self, *, files: bool = True, stream: bool = False) -> dict[str, Proof]:
        """Return what the verifier says, by stream."""
        proofs = await prove(
            self.connection,
            load_trust(self.stage.keys),
            checkpoints=self.outside if files else [],
            bus=Bus(self.stage.clients["audit"]) if stream else None,  # type: ignore[arg-type]  # more parameters
        )
        return {proof.stream: proof for proof in proofs}

    async def first(self, of: str = "ACTIONS", *, files: bool = True, stream: bool = False) -> Finding | None:
        """Return the first bad row of a stream."""
        return (await self.proofs(files=files, stream=stream))[of].first


def outside_of(stage: AuditStage) -> list[Checkpoint]:
    """Return the checkpoints that were kept outside the database."""
    return [found for path in sorted(stage.checkpoints.glob("*.jsonl")) for found in checkpoint_lines(path)]


@asynccontextmanager
async def superuser(stage: AuditStage, connection: asyncpg.Connection[asyncpg.Record]) -> AsyncGenerator[Superuser]:
    """Yield the superuser in a transaction that is taken back."""
    transaction = connection.transaction(isolation="repeatable_read")
    await transaction.start()
    try:
        await connection.execute(BECOME_ALMIGHTY)
        yield Superuser(stage, connection, outside_of(stage))
    finally:
        await transaction.rollback()


async def columns_of(connection: Any, table: str) -> list[str]:
    """Return the names of a table's columns."""
    return [name for name, _ in await connection.fetch(COLUMNS, table)]

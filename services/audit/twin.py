"""A second schema made like `audit`, filled by a rebuild, compared with it, and put in its place in one transaction.

Its shape and its privileges are read from the catalogue, so whatever the migrations made of `audit` is what the twin has.
Everything here runs as the owner of the schema. Source: design, bus section 8 (rebuild).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from remit.clock import now
from remit.ledger_chain import genesis, spelled
from services.audit.store import CHANNEL, LIVE, in_schema

if TYPE_CHECKING:
    from services.audit.database import Connection

TWIN = "audit_rebuild"
STREAMS = ("REMITS", "ACTIONS")
"""In the order in which they are read: rows of actions borrow from those of remits."""
LOCK_WAIT = "5s"
"""How long the projector may hold up a swap with its batch before the swap is tried again."""

_QUALIFIED = re.compile(rf"\b{LIVE}\.(?=[a-z_])")
_TABLES = """
SELECT c.relname AS name, coalesce(array_to_string(c.reloptions, ', '), '') AS options FROM pg_class AS c
WHERE c.relnamespace = $1::regnamespace AND c.relkind = 'r' ORDER BY c.oid
"""
_DEFINITIONS = (
    """
    SELECT format('ALTER TABLE audit.%I ADD CONSTRAINT %I %s', c.relname, k.conname, pg_get_constraintdef(k.oid))
    FROM pg_constraint AS k JOIN pg_class AS c ON c.oid = k.conrelid
    WHERE k.connamespace = $1::regnamespace AND k.contype IN ('p', 'u') ORDER BY k.oid
    """,
    """
    SELECT pg_get_indexdef(i.indexrelid) FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
    WHERE c.relnamespace = $1::regnamespace AND NOT EXISTS (SELECT 1 FROM pg_constraint AS k WHERE k.conindid = c.oid)
    ORDER BY i.indexrelid
    """,
    "SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = $1::regnamespace ORDER BY oid",
    """
    SELECT format('REVOKE ALL ON FUNCTION audit.%I(%s) FROM PUBLIC', proname, pg_get_function_identity_arguments(oid))
    FROM pg_proc WHERE pronamespace = $1::regnamespace ORDER BY oid
    """,
    """
    SELECT pg_get_triggerdef(t.oid) FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid
    WHERE c.relnamespace = $1::regnamespace AND NOT t.tgisinternal ORDER BY t.oid
    """,
    """
    SELECT format('CREATE VIEW audit.%I AS %s', relname, pg_get_viewdef(oid)) FROM pg_class
    WHERE relnamespace = $1::regnamespace AND relkind = 'v' ORDER BY oid
    """,
)
_GRANTED = """
SELECT format('GRANT %s ON audit.%I TO %I', a.privilege_type, c.relname, pg_get_userbyid(a.grantee))
FROM pg_class AS c, aclexplode(c.relacl) AS a
WHERE c.relnamespace = $1::regnamespace AND a.grantee NOT IN (0, c.relowner)
UNION ALL
SELECT format('GRANT %s (%I) ON audit.%I TO %I', a.privilege_type, t.attname, c.relname, pg_get_userbyid(a.grantee))
FROM pg_class AS c JOIN pg_attribute AS t ON t.attrelid = c.oid, aclexplode(t.attacl) AS a
WHERE c.relnamespace = $1::regnamespace AND a.grantee NOT IN (0, c.relowner)
UNION ALL
SELECT format('GRANT %s ON SCHEMA audit TO %I', a.privilege_type, pg_get_userbyid(a.grantee))
FROM pg_namespace AS n, aclexplode(n.nspacl) AS a WHERE n.oid = $1::regnamespace AND a.grantee NOT IN (0, n.nspowner)
"""
_WRITTEN = (
    "progress, audit_event, checkpoint, rejected, advisory, actions_all, remits, grants, grant_width, tools, agents"
)
"""Tables that somebody writes while audit runs, the cursor first: each batch begins there."""
# What comes from no event of the two streams: signed checkpoints, dead letters, advisories, and what was shown of the registry.
_CARRIED = (
    """
    INSERT INTO audit_rebuild.checkpoint SELECT c.* FROM audit.checkpoint AS c
    JOIN audit_rebuild.audit_event AS e ON e.stream = c.stream AND e.stream_seq = c.seq AND e.chain_hash = c.chain_head
    """,
    "INSERT INTO audit_rebuild.rejected SELECT * FROM audit.rejected",
    "INSERT INTO audit_rebuild.advisory SELECT * FROM audit.advisory",
    "INSERT INTO audit_rebuild.tools SELECT * FROM audit.tools",
    "INSERT INTO audit_rebuild.grant_width SELECT * FROM audit.grant_width",
    """
    INSERT INTO audit_rebuild.agents SELECT * FROM audit.agents
    ON CONFLICT (agent_id) DO UPDATE SET
        name = excluded.name, client_id = excluded.client_id, owner = excluded.owner, runtime = excluded.runtime,
        model = excluded.model, config_digest = excluded.config_digest, state = excluded.state,
        bundle_version = excluded.bundle_version
    """,
    """
    UPDATE audit_rebuild.progress AS r SET verified_seq = p.verified_seq, verified_at = p.verified_at
    FROM audit.progress AS p WHERE p.stream = r.stream AND EXISTS
        (SELECT 1 FROM audit_rebuild.checkpoint AS c WHERE c.stream = r.stream AND c.seq = p.verified_seq)
    """,
)
_RANGE = "stream = $1 AND stream_seq > $2 AND stream_seq <= $3"
_EVIDENCE = "stream_seq, subject, kid, sig, body_sha256, recorded_at, chain_hash"
_DIFFERING = f"""
SELECT count(*) AS rows, min(coalesce(l.stream_seq, r.stream_seq)) AS first
FROM (SELECT {_EVIDENCE} FROM audit.audit_event WHERE {_RANGE}) AS l
FULL JOIN (SELECT {_EVIDENCE} FROM audit_rebuild.audit_event WHERE {_RANGE}) AS r USING (stream_seq)
WHERE (l.subject, l.kid, l.sig, l.body_sha256, l.recorded_at, l.chain_hash)
    IS DISTINCT FROM (r.subject, r.kid, r.sig, r.body_sha256, r.recorded_at, r.chain_hash)
"""
_JUDGED = f"""
SELECT count(*) FROM audit.audit_event AS l JOIN audit_rebuild.audit_event AS r USING (stream, stream_seq)
WHERE {_RANGE} AND l.verify_status <> r.verify_status
"""
_CURSORS = """
SELECT least(l.last_seq, r.last_seq) AS seq, l.last_seq AS live_seq, r.last_seq AS twin_seq, r.chain_head AS twin_head
FROM audit.progress AS l JOIN audit_rebuild.progress AS r USING (stream) WHERE stream = $1
"""
_HEAD = "SELECT chain_hash FROM audit.audit_event WHERE stream = $1 AND stream_seq = $2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One stream of both schemas, held against each other up to the lower cursor."""

    stream: str
    after: int
    seq: int
    """Rows beyond `after` up to here were compared, and here heads were taken: the lower of the two cursors."""
    live_head: bytes | None
    twin_head: bytes | None
    live_seq: int
    twin_seq: int
    differing: int
    """Rows that are missing on one side or whose evidence or link differs."""
    first: int | None
    """Sequence of the first of them."""
    judged: int
    """Rows with the same evidence that this program judges otherwise than it was judged then."""

    @property
    def is_identical(self) -> bool:
        """Whether the twin is the same chain."""
        return self.live_head == self.twin_head and self.differing == 0

    def __str__(self) -> str:
        """Return what was found, for people."""
        verdict = "identical" if self.is_identical else "DIFFERENT"
        lines = [
            f"{self.stream}: {verdict} in rows {self.after + 1} to {self.seq} (live {self.live_seq}, rebuilt {self.twin_seq})"
        ]
        lines += [f"  {who:<9}{spelled(head) if head else 'no row'}" for who, head in self._heads]
        if self.differing:
            lines.append(f"  {self.differing} rows differ, the first is {self.first}")
        if self.judged:
            lines.append(f"  {self.judged} rows with the same evidence are judged otherwise than they were then")
        return "\n".join(lines)

    @property
    def _heads(self) -> tuple[tuple[str, bytes | None], ...]:
        return ("live", self.live_head), ("rebuilt", self.twin_head)


async def make(connection: Connection) -> None:
    """Make the twin, empty, in place of one that an earlier run left."""
    async with connection.transaction():
        await connection.execute(f"DROP SCHEMA IF EXISTS {TWIN} CASCADE")
        await connection.execute(f"CREATE SCHEMA {TWIN}")
        for table in await connection.fetch(_TABLES, LIVE):
            options = f" WITH ({table['options']})" if table["options"] else ""
            like = f"LIKE {LIVE}.{table['name']} INCLUDING ALL EXCLUDING INDEXES"
            await connection.execute(f"CREATE TABLE {TWIN}.{table['name']} ({like}){options}")
        for definitions in _DEFINITIONS:
            for (statement,) in await connection.fetch(definitions, LIVE):
                await connection.execute(_QUALIFIED.sub(f"{TWIN}.", statement))
        for stream in STREAMS:
            await connection.execute(
                f"INSERT INTO {TWIN}.progress (stream, chain_head) VALUES ($1, $2)", stream, genesis(stream)
            )


async def exists(connection: Connection) -> bool:
    """Return whether an earlier run left a twin."""
    return bool(await connection.fetchval("SELECT to_regnamespace($1) IS NOT NULL", TWIN))


async def drop(connection: Connection) -> None:
    """Remove the twin."""
    await connection.execute(f"DROP SCHEMA IF EXISTS {TWIN} CASCADE")


async def compare(connection: Connection, stream: str, *, after: int = 0) -> Comparison:
    """Hold both schemas' rows of a stream beyond a sequence against each other."""
    [cursors] = await connection.fetch(_CURSORS, stream)
    seq: int = cursors["seq"]
    [rows] = await connection.fetch(_DIFFERING, stream, after, seq)
    live = await connection.fetchval(_HEAD, stream, seq)
    twin = await connection.fetchval(in_schema(_HEAD, TWIN), stream, seq)
    return Comparison(
        stream=stream,
        after=after,
        seq=seq,
        live_head=live if seq else genesis(stream),
        twin_head=twin if seq else genesis(stream),
        live_seq=cursors["live_seq"],
        twin_seq=cursors["twin_seq"],
        differing=rows["rows"],
        first=rows["first"],
        judged=await connection.fetchval(_JUDGED, stream, after, seq),
    )


async def hold_live(connection: Connection) -> dict[str, int]:
    """Keep every writer of `audit` waiting until this transaction ends; return the cursors, which stand still now.

    Readers go on.
    """
    await connection.execute(f"SET LOCAL lock_timeout = '{LOCK_WAIT}'")
    tables = ", ".join(f"{LIVE}.{table.strip()}" for table in _WRITTEN.split(","))
    await connection.execute(f"LOCK TABLE {tables} IN EXCLUSIVE MODE")
    return {row["stream"]: row["last_seq"] for row in await connection.fetch("SELECT * FROM audit.progress")}


async def swap(connection: Connection) -> str:
    """Put the twin in the place of `audit` and return what the old schema is called now; part of the caller's transaction.

    The old schema is kept, closed to every role: whether it is evidence or waste is for a person to say.
    """
    for statement in _CARRIED:
        await connection.execute(statement)
    old = f"audit_until_{now():%Y%m%d_%H%M%S}"
    granted = [statement for (statement,) in await connection.fetch(_GRANTED, LIVE)]
    await connection.execute(f"ALTER SCHEMA {LIVE} RENAME TO {old}")
    await connection.execute(f"ALTER SCHEMA {TWIN} RENAME TO {LIVE}")
    for statement in granted:
        await connection.execute(statement)
        if " ON SCHEMA " in statement:
            role = statement.rsplit(" TO ", 1)[1]
            await connection.execute(f"REVOKE ALL ON SCHEMA {old} FROM {role}")
    version = "SELECT epoch || ':' || approvals_seq FROM audit.progress WHERE stream = 'ACTIONS'"
    await connection.execute("SELECT pg_notify($1, $2)", CHANNEL, await connection.fetchval(version))
    return old

"""Schema `audit` in a real Postgres: insert-only for everybody, each role its least, every page's query answered."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from sqlalchemy import MetaData, create_engine
from sqlalchemy.dialects import postgresql

from infra.postgres.roles import ROLES, apply_roles, role_url, scram_verifier
from remit import tables
from remit.errors import ConfigurationError
from tests.support import factories as f
from tests.support.ledger_stream import StreamWriter
from tests.support.postgres import fresh_database, postgres
from tests.support.projection import projection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy import Table

pytestmark = pytest.mark.timeout(60)

POSTGRES = postgresql.dialect()
PASSWORDS = {role: f"pw-{role}" for role in ROLES}


@pytest.fixture(scope="module")
async def url(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """A database that holds one remit and a few actions."""
    async with postgres(tmp_path_factory.mktemp("pg")) as server, fresh_database(server) as url:
        await apply_roles(url, PASSWORDS)
        await apply_roles(url, PASSWORDS)  # Safe to repeat.
        actions, remits = StreamWriter(), StreamWriter("REMITS")
        remits.remit("granted")
        for number in range(5):
            actions.audited(actions.action(f"done-{number}", *f.EXECUTED_PATH), f"done-{number}")
        actions.action("asked", "proposed", "evaluated", "approval_requested")
        async with projection(role_url(url, "remit_audit", PASSWORDS["remit_audit"])) as projector:
            await projector.project(actions)
            await projector.project(remits)
        yield url


async def as_role(url: str, role: str, query: str, *arguments: Any) -> str:
    """Return the value of a query as a role, or the name of the error."""
    connection = await asyncpg.connect(role_url(url, role, PASSWORDS[role]))
    try:
        return str(await connection.fetchval(query, *arguments))
    except asyncpg.PostgresError as error:
        return type(error).__name__
    finally:
        await connection.close()


def reflected(url: str) -> dict[str, Table]:
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    metadata = MetaData()
    for schema in ("control", "audit"):
        metadata.reflect(engine, schema=schema, views=True)
    engine.dispose()
    return dict(metadata.tables)


async def test_the_tables_are_those_of_the_migrations(url: str) -> None:
    found = reflected(url)
    assert found.keys() == tables.METADATA.tables.keys()
    for name, table in tables.METADATA.tables.items():
        ours = {c.name: c.type.compile(POSTGRES) for c in table.columns}
        assert {c.name: c.type.compile(POSTGRES) for c in found[name].columns} == ours, name
        views = {"audit.actions", "audit.events", "audit.cursor", "audit.switches"}
        if name not in views:
            assert {c.name for c in found[name].primary_key} == {c.name for c in table.primary_key}, name


CHANGES = (
    "UPDATE audit.{} SET stream = 'ACTIONS'",
    "UPDATE audit.{} SET stream = 'ACTIONS' WHERE false",
    "DELETE FROM audit.{}",
    "TRUNCATE audit.{}",
)


@pytest.mark.parametrize("table", ["audit_event", "checkpoint"])
@pytest.mark.parametrize("change", CHANGES)
async def test_the_ledger_is_insert_only_even_for_its_owner(url: str, table: str, change: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="insert-only"):
            await connection.execute(change.format(table))
    finally:
        await connection.close()


@pytest.mark.parametrize("role", sorted(ROLES))
@pytest.mark.parametrize("change", CHANGES)
async def test_no_role_may_change_the_ledger(url: str, role: str, change: str) -> None:
    assert await as_role(url, role, change.format("audit_event")) in {
        "InsufficientPrivilegeError", "ReadOnlySQLTransactionError",
    }  # fmt: skip


REFUSED = "InsufficientPrivilegeError"


@pytest.mark.parametrize(
    ("role", "query", "answer"),
    [
        ("remit_dashboard", "SELECT body FROM audit.audit_event", REFUSED),
        ("remit_dashboard", "SELECT letter FROM audit.rejected", REFUSED),
        ("remit_dashboard", "SELECT count(*) FROM control.execution", REFUSED),
        (
            "remit_dashboard",
            "INSERT INTO audit.advisory (seq, at, kind) VALUES (1, now(), 'x')",
            "ReadOnlySQLTransactionError",
        ),
        ("remit_dashboard", "SELECT pg_sleep(4)", "QueryCanceledError"),
        ("remit_dashboard", "SELECT count(code) FROM audit.rejected", "0"),
        ("remit_dashboard", "SELECT kind FROM audit.switches", "global"),
        ("remit_executor", "UPDATE control.stop SET engaged_at = NULL", REFUSED),
        ("remit_executor", "SELECT kind FROM control.stop FOR SHARE", REFUSED),
        ("remit_executor", "UPDATE control.budget SET used = 0", REFUSED),
        ("remit_executor", "SELECT count(*) FROM audit.actions_all", REFUSED),
        (
            "remit_executor",
            "SELECT control.claim('a','b','c',1,1,'d','e','f',1.0,now(),'h','a','t',-60.0)",
            "evidence_stale",
        ),
        ("remit_executor", "INSERT INTO control.heartbeat VALUES ('audit', now(), 1)", REFUSED),
        ("remit_approval", "SELECT count(*) FROM audit.actions_all", REFUSED),
        ("remit_approval", "SELECT control.claim('a','b','c',1,1,'d','e','f',1.0,now(),'h','a','t',60.0)", REFUSED),
        ("remit_audit", "UPDATE control.stop SET engaged_at = NULL", REFUSED),
        ("remit_audit", "INSERT INTO control.execution (action_id) VALUES ('x')", REFUSED),
        ("remit_audit", "DELETE FROM audit.actions_all", REFUSED),
    ],
)
async def test_each_role_has_its_least(url: str, role: str, query: str, answer: str) -> None:
    assert await as_role(url, role, query) == answer


async def test_every_role_needs_a_password(url: str) -> None:
    with pytest.raises(ConfigurationError, match="remit_audit"):
        await apply_roles(url, {name: "x" for name in ROLES if name != "remit_audit"})
    with pytest.raises(ConfigurationError, match="ASCII"):
        scram_verifier("pässword")
    wrong = role_url(url, "remit_audit", "wrong")
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(wrong)


START = f.NOW - timedelta(days=1)
QUERIES: dict[str, tuple[str, tuple[Any, ...], int]] = {
    "queue": (
        (
            "SELECT action_id, version, tool, action, tier, agent_id, human, shape_digest, expires_at FROM audit.actions_all"
            " WHERE approval_status = 'requested' AND approver_group && $1 ORDER BY tier DESC, expires_at LIMIT 50"
        ),
        (["payments"],),
        1,
    ),
    "card_last": (
        (
            "SELECT args, approver, decided_at FROM audit.actions WHERE agent_id = $1 AND tool = 'bank' AND action = 'send_money'"
            " AND approval_status = 'approved' ORDER BY proposed_at DESC LIMIT 1"
        ),
        (f.AGENT.id,),
        1,
    ),
    "card_history": (
        (
            "SELECT approval_status, count(*), max(decided_at) FROM audit.actions WHERE agent_id = $1 AND tool = 'bank'"
            " AND action = 'send_money' AND verdict = 'ask' AND proposed_at >= $2 GROUP BY 1"
        ),
        (f.AGENT.id, START),
        2,
    ),
    "remits": (
        (
            "SELECT r.remit_id, r.task, r.human, r.agent_id, r.expires_at, r.max_calls, sum(g.used) calls, count(*) grants"
            " FROM audit.remits r JOIN audit.grants g USING (remit_id) WHERE r.expires_at > $1 AND r.ended_at IS NULL"
            " GROUP BY r.remit_id ORDER BY r.expires_at LIMIT 100"
        ),
        (START,),
        1,
    ),
    "today": (
        (
            "SELECT count(*) n, count(DISTINCT agent_id), count(*) FILTER (WHERE match = 'match'),"
            " percentile_cont(.5) WITHIN GROUP (ORDER BY wait_ms) FROM audit.actions WHERE proposed_at >= $1"
        ),
        (START,),
        1,
    ),
    "tasks": (
        (
            "WITH r AS (SELECT remit_id, task, human, agent_id, last_action_at FROM audit.remits WHERE last_action_at >= $1"
            " ORDER BY last_action_at DESC LIMIT 50) SELECT r.*, count(*) FROM r JOIN audit.actions a USING (remit_id)"
            " GROUP BY 1, 2, 3, 4, 5"
        ),
        (START,),
        1,
    ),
    "task_events": (
        "SELECT * FROM audit.events WHERE remit_id = $1 AND (ts, stream_seq) > ($2, 0) ORDER BY ts, stream_seq LIMIT 500",
        (f.REMIT.remit_id, START),
        44,
    ),
    "repeated_blocks": (
        (
            "SELECT r.task_shape, a.rule_id, count(*) FROM audit.actions a JOIN audit.remits r USING (remit_id)"
            " WHERE a.verdict = 'deny' AND a.proposed_at >= $1 GROUP BY 1, 2"
        ),
        (START,),
        0,
    ),
    "reviewers": (
        (
            "SELECT approver, count(*), avg((review_ms < 2000)::int) FROM audit.actions_all WHERE verdict = 'ask'"
            " AND decided_at >= $1 GROUP BY 1"
        ),
        (START,),
        1,
    ),
    "permissions": (
        (
            "SELECT g.agent_id, g.shape_digest, sum(g.used), w.res_used FROM audit.grants g LEFT JOIN audit.grant_width w"
            " USING (agent_id, tool, action, shape_digest) WHERE g.granted_at >= $1 AND g.revoked_at IS NULL GROUP BY 1, 2, 4"
        ),
        (START,),
        1,
    ),
    "tools": (
        (
            "SELECT t.tool, s.engaged_at IS NOT NULL stopped FROM audit.tools t LEFT JOIN audit.switches s ON s.kind = 'tool'"
            " AND s.target = t.tool || '.' || t.action"
        ),
        (),
        0,
    ),
    "agents": (
        (
            "SELECT g.agent_id, g.owner, g.model, g.state, count(r.*), g.last_seen FROM audit.agents g LEFT JOIN audit.remits r"
            " ON r.agent_id = g.agent_id AND r.expires_at > $1 AND r.ended_at IS NULL GROUP BY 1, 2, 3, 4, 6"
        ),
        (START,),
        1,
    ),
    "cursor": (
        "SELECT epoch || ':' || approvals_seq, last_seq, chain_head, verified_at, touched_at FROM audit.cursor",
        (),
        1,
    ),
}


@pytest.mark.parametrize("name", QUERIES)
async def test_the_dashboard_s_queries_run_as_its_role(url: str, name: str) -> None:
    query, arguments, rows = QUERIES[name]
    connection = await asyncpg.connect(role_url(url, "remit_dashboard", PASSWORDS["remit_dashboard"]))
    try:
        assert len(await connection.fetch(query, *arguments)) == rows
    finally:
        await connection.close()


async def test_the_queue_and_the_work_lists_use_their_indices(url: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("SET enable_seqscan = off")
        for query, index in (
            (QUERIES["queue"][0].replace("$1", "'{payments}'"), "actions_queue"),
            ("SELECT 1 FROM audit.actions_all WHERE terminal IS NULL ORDER BY last_event_at", "actions_unfinished"),
            ("SELECT 1 FROM audit.actions_all WHERE args_digest LIKE 'sha-256:fe%'", "actions_by_digest_prefix"),
        ):
            plan = "\n".join(row[0] for row in await connection.fetch(f"EXPLAIN {query}"))
            assert index in plan, plan
    finally:
        await connection.close()

"""Every read of the dashboard on a real Postgres, as its own read-only role, and the live signal behind it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING

import asyncpg
import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import DBAPIError

from dashboard.live import LiveSignal
from dashboard.model.card import exact_call
from dashboard.model.search import parse
from dashboard.model.viewer import Viewer
from dashboard.queries import Queries
from infra.local.postgres_server import PostgresServer
from infra.postgres.migrate import migrate
from infra.postgres.roles import ROLES, apply_roles, role_url
from remit.canonical import digest
from remit.clock import now
from tests.support import dashboard_rows as rows
from tests.support.dashboard_stage import PASSWORD, bump, insert

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from sqlalchemy import URL

ISSUER = "http://localhost:9000"
EMMA, DANA = f"{ISSUER}|emma", f"{ISSUER}|dana"
SPAN = (now() - timedelta(days=1), now() + timedelta(days=1))
"""Read at import: the rows come minutes later when the whole suite runs."""


@pytest.fixture(scope="module")
async def database_url(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    async with PostgresServer(tmp_path_factory.mktemp("postgres")) as server:
        url = await server.create_database("remit")
        await migrate(url)
        await apply_roles(url, dict.fromkeys(ROLES, PASSWORD))
        connection = await asyncpg.connect(url)
        await seed(connection)
        yield url
        await connection.close()


async def seed(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    old = {"recipient": "UK12345678901234567890", "amount": 12, "subject": "Bill"}
    await insert(connection, "remits", rows.remit(EMMA))
    for number, name in enumerate(("read_file", "send_money"), 1):
        await insert(connection, "grants", rows.grant(number, EMMA, name, used=2 - number))
    await insert(connection, "tools", rows.tool("send_money", "Send {amount} to {recipient}"))
    await insert(connection, "agents", rows.agent())
    asked = [
        rows.action(1, EMMA),
        rows.action(2, EMMA, tier=4, approver_group=["security"]),
        rows.action(3, EMMA, canary=True),
    ]
    done = [
        rows.executed(10, EMMA, DANA, args=old, args_digest=digest(old)),
        rows.by_rule(11, EMMA),
        rows.blocked(12, EMMA),
    ]
    for row in (*asked, *done):
        await insert(connection, "actions_all", row)
    await connection.execute(
        "update control.stop set engaged_at = now(), reason = 'drill', by_iss = $1, by_sub = 'otto'", ISSUER
    )


@pytest.fixture(scope="module")
def dashboard_url(database_url: str) -> URL:
    return make_url(role_url(database_url, "remit_dashboard", PASSWORD)).set(drivername="postgresql+psycopg")


@pytest.fixture(scope="module")
def queries(dashboard_url: URL) -> Iterator[Queries]:
    found = Queries(create_engine(dashboard_url))
    yield found
    found.close()


def person(sub: str, *roles: str) -> Viewer:
    return Viewer(iss=ISSUER, sub=sub, name=sub, roles=frozenset(roles), expires_at=now())


def test_the_queue_is_by_group_or_own_task_and_the_riskiest_comes_first(queries: Queries) -> None:
    assert [item.risk for item in queries.queue(None)] == ["T4", "T3", "T3"]
    assert [item.risk for item in queries.queue(person("emma"))] == ["T4", "T3", "T3"]
    assert [item.risk for item in queries.queue(person("dana", "security"))] == ["T4"]
    assert queries.queue(person("dana", "nobody")) == []


def test_an_action_comes_back_whole(queries: Queries) -> None:
    row = queries.action(f"{1:032x}")
    assert row is not None
    assert (row.name, row.risk, row.round, row.approvers) == ("bank.send_money", "T3", 1, ("payments",))
    assert exact_call(row).fidelity == "whole"
    assert queries.action("f" * 32) is None


def test_votes_are_people(queries: Queries) -> None:
    row = queries.action(f"{10:032x}")
    assert row is not None
    assert [vote.human for vote in row.votes] == [DANA]


def test_history_compares_with_the_last_approved_call_and_not_with_itself(queries: Queries) -> None:
    row = queries.action(f"{1:032x}")
    assert row is not None
    found = queries.history(row)
    assert (found.approved, found.denied, found.waiting_alike) == (1, 0, 1)
    assert found.previous_args["amount"] == 12


def test_remits_carry_their_use(queries: Queries) -> None:
    [row] = queries.remits(EMMA)
    assert (row.calls, row.grants, row.unused) == (1, 2, 1)
    assert queries.remits(DANA) == []
    assert queries.remit(rows.REMIT) == row
    assert [grant.name for grant in queries.grants(rows.REMIT)] == ["bank.read_file", "bank.send_money"]


def test_numbers_of_a_range_leave_canaries_out(queries: Queries) -> None:
    row = queries.today(*SPAN)
    assert (row.n, row.by_rule, row.asked, row.blocked, row.matched) == (5, 1, 3, 1, 2)
    assert row.wait_p50_ms == 11_000
    assert sum(count.n for count in queries.verdicts(*SPAN, timedelta(minutes=30))) == row.n
    assert sum(tool.n for tool in queries.top_tools(*SPAN)) == row.n
    assert [found.stage for found in queries.latency(*SPAN)] == ["policy", "approval", "tokens", "executor", "total"]


@pytest.mark.parametrize(
    ("typed", "count"),
    [
        ("", 6),
        (f"{10:032x}", 1),
        (rows.REMIT, 6),
        (rows.AGENT, 6),
        ("read_file", 1),
        ("emma", 6),
        (f"tok_{10:032x}", 1),
        (digest({"file_path": "bill-december-2023.txt"}), 1),
        (digest({"file_path": "bill-december-2023.txt"})[8:20], 1),
        ("%", 0),
        ("_e", 0),
        ("_f", 1),
        ("' or 1=1 --", 0),
    ],
)
def test_a_search_finds_what_was_meant(queries: Queries, typed: str, count: int) -> None:
    assert len(queries.search(parse(typed))) == count


def test_the_rest_reads(queries: Queries) -> None:
    assert queries.cursor().version.endswith(":0")
    assert queries.events(f"{1:032x}") == []
    [switch] = queries.switches()
    assert (switch.kind, switch.target, switch.by) == ("global", "*", f"{ISSUER}|otto")
    [agent] = queries.agents()
    assert (agent.open_remits, agent.is_stopped) == (1, False)
    info = queries.tool("bank.send_money")
    assert info is not None
    assert info.summary == "Send {amount} to {recipient}"
    assert queries.tool("bank.unknown") is None
    [registered] = queries.registry()
    assert (registered.name, registered.sinks) == ("bank.send_money", ("recipient",))


@pytest.mark.parametrize(
    "statement",
    [
        "update audit.actions_all set approval_status = 'approved'",
        "delete from audit.remits",
        "select body from audit.audit_event",
        "select * from control.budget",
    ],
)
def test_the_dashboard_role_only_reads_and_sees_no_bodies(dashboard_url: URL, statement: str) -> None:
    engine = create_engine(dashboard_url)
    with engine.begin() as connection:
        connection.execute(text("set transaction read write"))
        with pytest.raises(DBAPIError, match="permission denied"):
            connection.execute(text(statement))
        connection.rollback()
    engine.dispose()


async def test_a_committed_change_wakes_whoever_waits(database_url: str, dashboard_url: URL) -> None:
    signal = LiveSignal(dashboard_url)
    running = asyncio.create_task(signal.run())
    writer = await asyncpg.connect(database_url)
    try:
        first = await asyncio.wait_for(signal.after(""), 10)
        await bump(writer)
        second = await asyncio.wait_for(signal.after(first), 10)
        assert int(second.rpartition(":")[2]) == int(first.rpartition(":")[2]) + 1
        await writer.execute("select pg_notify('remit_approvals', 'forged')")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(signal.after(second), 0.5)
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        await writer.close()


async def test_a_lost_connection_is_found_again(database_url: str, dashboard_url: URL) -> None:
    signal = LiveSignal(dashboard_url)
    running = asyncio.create_task(signal.run())
    writer = await asyncpg.connect(database_url)
    try:
        first = await asyncio.wait_for(signal.after(""), 10)
        await writer.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'remit_dashboard' and query like '%LISTEN%'"
            " or usename = 'remit_dashboard' and query like '%approvals_seq%'"
        )
        await bump(writer)  # nobody listens now: the read after the reconnect finds it
        await asyncio.wait_for(signal.after(first), 10)
        assert signal.is_listening
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        await writer.close()

"""What each role's own login may do in the database, and above all what it may not."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import asyncpg
import pytest

from infra.postgres.migrate import migrate
from infra.postgres.roles import ROLES, apply_roles, role_url
from tests.support import execution as x
from tests.support import factories as f
from tests.support.postgres import postgres

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

REFUSED, READ_ONLY = "InsufficientPrivilegeError", "ReadOnlySQLTransactionError"
STOPS = "'control.stop'::regclass::oid::bigint"
FORMS = ("lock", "lock_shared", "xact_lock", "xact_lock_shared")
LOCKS = [f"pg_{attempt}advisory_{form}" for attempt in ("", "try_") for form in FORMS]


@pytest.fixture(scope="module")
async def server_url(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    async with postgres(tmp_path_factory.mktemp("postgres")) as url:
        yield url


@pytest.fixture(scope="module")
async def on(server_url: str) -> AsyncIterator[x.Claims]:
    """A database with one claim in flight, and one outbox row of each service."""
    async with x.claimable(server_url) as found:
        order = x.order_of()
        await found.store.claim(order, "clm-1")
        for service in ("executor", "approval"):
            await found.pool.execute(
                "INSERT INTO control.outbox (service, subject_id, event_type, discriminator, draft)"
                " VALUES ($1, $1, 'executed', '1', '{}')",
                service,
            )
        yield found


async def ask(url: str, role: str, query: str) -> str:
    """Return the first value or the command's tag of a query as a role, rolled back; or the name of the error."""
    connection = await asyncpg.connect(role_url(url, role, x.PASSWORDS[role]))
    try:
        transaction = connection.transaction()
        await transaction.start()
        try:
            if query.startswith("SELECT"):
                return str(await connection.fetchval(query))
            return await connection.execute(query)
        finally:
            await transaction.rollback()
    except asyncpg.PostgresError as error:
        return type(error).__name__
    finally:
        await connection.close()


NEEDED = {
    "remit_approval": {"pg_advisory_xact_lock(1)", "pg_advisory_xact_lock_shared(1)"},
    "remit_audit": {"pg_try_advisory_lock(1)"},
}
"""One form each, by bigint."""


@pytest.mark.parametrize("role", sorted(ROLES))
async def test_no_login_takes_an_advisory_lock_that_is_not_its_own(on: x.Claims, role: str) -> None:
    for name in LOCKS:
        for arguments in ("1", "1, 1"):
            call = f"{name}({arguments})"
            found = await ask(on.url, role, f"SELECT {call}")
            assert (found == REFUSED) == (call not in NEEDED.get(role, set())), (call, found)


async def test_the_dashboard_s_login_holds_up_neither_claims_nor_revocations(on: x.Claims) -> None:
    assert await ask(on.url, "remit_dashboard", f"SELECT pg_advisory_lock({STOPS})") == REFUSED
    async with asyncio.timeout(5.0):
        assert await on.store.claim(x.order_of(key="beside"), "clm") == "claimed"
        assert (
            await ask(on.url, "remit_approval", "UPDATE control.stop SET reason = 'drill' WHERE kind = 'tool'")
        ) == "UPDATE 1"


INSERT_OUTBOX = (
    "INSERT INTO control.outbox (service, subject_id, event_type, discriminator, draft)"
    " VALUES ('{}', 'a', '{}', '1', '{{}}')"
)
MAY: list[tuple[str, str, str]] = [
    # Approval counts no calls, and of an execution it makes only a refusal and ends only a doubt.
    ("remit_approval", "UPDATE control.budget SET used = 0", REFUSED),
    ("remit_approval", "UPDATE control.budget SET max_calls = 1000000", REFUSED),
    ("remit_approval", "DELETE FROM control.budget", REFUSED),
    ("remit_approval", "UPDATE control.execution SET claim_id = 'mine'", REFUSED),
    ("remit_approval", "UPDATE control.execution SET deadline = now()", REFUSED),
    ("remit_approval", "DELETE FROM control.execution", REFUSED),
    ("remit_approval", "UPDATE control.execution SET state = 'failed' WHERE state = 'unknown'", "UPDATE 0"),
    (
        "remit_approval",
        "INSERT INTO control.execution (action_id, remit_id, state, reason) VALUES ('b', 'r', 'refused', 'revoked')",
        "INSERT 0 1",
    ),
    (
        "remit_approval",
        "INSERT INTO control.execution (action_id, remit_id, state, claim_id, jti) VALUES ('b', 'r', 'in_flight', 'c', 'j')",
        REFUSED,
    ),
    ("remit_approval", "SELECT count(*) FROM control.outbox", "1"),
    ("remit_approval", "DELETE FROM control.outbox", "DELETE 1"),
    ("remit_approval", INSERT_OUTBOX.format("approval", "action.revoked"), "INSERT 0 1"),
    ("remit_approval", INSERT_OUTBOX.format("executor", "executed"), "INSERT 0 1"),
    ("remit_approval", INSERT_OUTBOX.format("executor", "started"), REFUSED),
    ("remit_approval", INSERT_OUTBOX.format("audit", "audited"), REFUSED),
    ("remit_approval", "UPDATE control.outbox SET done_at = now()", REFUSED),
    ("remit_approval", "SELECT control.take_over('a', 'b', 'c', 'd', 1, 60)", REFUSED),
    ("remit_approval", "SELECT control.may_send('a', 'b', now(), 1, 60)", REFUSED),
    # The executor makes and changes claims by the fence's functions alone.
    (
        "remit_executor",
        "INSERT INTO control.execution (action_id, remit_id, state) VALUES ('b', 'r', 'in_flight')",
        REFUSED,
    ),
    *(
        ("remit_executor", f"UPDATE control.execution SET {column} = NULL", REFUSED)
        for column in ("claim_id", "jti", "args_digest", "remit_id", "grant_no", "request", "executor", "reason")
    ),
    ("remit_executor", "UPDATE control.execution SET attempt = 2", REFUSED),
    ("remit_executor", "UPDATE control.execution SET claimed_at = now()", REFUSED),
    ("remit_executor", "DELETE FROM control.execution", REFUSED),
    ("remit_executor", "UPDATE control.execution SET deadline = now() WHERE claim_id = 'clm-1'", "UPDATE 1"),
    ("remit_executor", "SELECT engaged_at FROM control.stop", REFUSED),
    ("remit_executor", "SELECT used FROM control.budget", REFUSED),
    ("remit_executor", "SELECT control.spend('r', 1)", REFUSED),
    ("remit_executor", "SELECT control.stopped('h', 'a', 't', 'r')", REFUSED),
    ("remit_executor", "SELECT control.refuse('b', 'r', 1, 'c', 'e', 'stopped')", "True"),
    ("remit_executor", "SELECT count(*) FROM control.outbox", "1"),
    ("remit_executor", "DELETE FROM control.outbox", "DELETE 1"),
    ("remit_executor", INSERT_OUTBOX.format("executor", "executed"), "INSERT 0 1"),
    ("remit_executor", INSERT_OUTBOX.format("approval", "action.revoked"), REFUSED),
    ("remit_executor", "UPDATE control.outbox SET service = 'approval'", REFUSED),
    ("remit_executor", "SELECT letter FROM audit.rejected", REFUSED),
    # The auditor reads the evidence and changes nothing.
    ("remit_auditor", "SELECT count(body) FROM audit.audit_event", "0"),
    ("remit_auditor", "SELECT count(line) FROM audit.checkpoint", "0"),
    ("remit_auditor", "SELECT count(letter) FROM audit.rejected", "0"),
    ("remit_auditor", "SELECT count(*) FROM audit.actions_all", "0"),
    ("remit_auditor", "SELECT count(*) FROM audit.progress", "2"),
    ("remit_auditor", "SELECT state FROM control.execution", "in_flight"),
    ("remit_auditor", "SELECT count(*) FROM control.outbox", "2"),
    ("remit_auditor", "SELECT service FROM control.heartbeat", "audit"),
    ("remit_auditor", "SELECT count(*) FROM control.remit", REFUSED),
    ("remit_auditor", "UPDATE audit.progress SET last_seq = 0", READ_ONLY),
    ("remit_auditor", "UPDATE control.heartbeat SET at = now()", READ_ONLY),
    ("remit_auditor", "DELETE FROM control.outbox", READ_ONLY),
    ("remit_dashboard", "SELECT count(*) FROM control.outbox", REFUSED),
    ("remit_dashboard", "SELECT count(*) FROM control.stop", REFUSED),
    ("remit_audit", "SELECT count(*) FROM control.outbox", REFUSED),
    ("remit_audit", "SELECT count(*) FROM control.execution", REFUSED),
]


@pytest.mark.parametrize(("role", "query", "answer"), MAY, ids=[f"{role}: {query[:60]}" for role, query, _ in MAY])
async def test_each_login_has_its_least(on: x.Claims, role: str, query: str, answer: str) -> None:
    assert await ask(on.url, role, query) == answer


async def test_the_auditor_cannot_write_even_where_it_lifts_its_own_read_only_setting(on: x.Claims) -> None:
    connection = await asyncpg.connect(role_url(on.url, "remit_auditor", x.PASSWORDS["remit_auditor"]))
    await connection.execute("SET default_transaction_read_only = off")
    for query in (
        "UPDATE audit.progress SET last_seq = 0",
        "DELETE FROM control.outbox",
        "DELETE FROM audit.audit_event",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(query)
    await connection.close()


@pytest.fixture
async def owned(server_url: str) -> AsyncIterator[tuple[str, str]]:
    """One database by the URL of its plain owner, who may make roles, and by that of a superuser."""
    async with x.claimable(server_url):
        pass  # makes the roles of the cluster, which the plain owner is then allowed to administer
    admin = await asyncpg.connect(server_url)
    await admin.execute("CREATE ROLE plain_owner LOGIN CREATEROLE PASSWORD 'owner-of-a-test'")
    await admin.execute(f"GRANT {', '.join(ROLES)} TO plain_owner WITH ADMIN OPTION")
    await admin.execute("CREATE DATABASE owned OWNER plain_owner")
    try:
        superuser = f"{server_url.rsplit('/', 1)[0]}/owned"
        yield role_url(superuser, "plain_owner", "owner-of-a-test"), superuser
    finally:
        await admin.execute("DROP DATABASE owned WITH (FORCE)")
        await admin.execute("DROP OWNED BY plain_owner")
        await admin.execute("DROP ROLE plain_owner")
        await admin.close()


async def test_an_owner_without_superuser_rights_is_warned_and_gets_a_working_database(
    owned: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    plain, superuser = owned
    await migrate(plain)
    await apply_roles(plain, x.PASSWORDS)
    assert "any login of this database can take advisory locks" in capsys.readouterr().err
    assert await ask(plain, "remit_dashboard", "SELECT pg_try_advisory_lock(1)") == "True"
    await apply_roles(superuser, x.PASSWORDS)
    assert await ask(plain, "remit_dashboard", "SELECT pg_try_advisory_lock(1)") == REFUSED
    await migrate(plain)
    await apply_roles(plain, x.PASSWORDS)
    assert "warning" not in capsys.readouterr().err
    assert await claims_and_revokes(plain)


async def claims_and_revokes(url: str) -> bool:
    owner = await asyncpg.create_pool(url, min_size=1, max_size=2)
    await x.admit_claims(owner)
    await owner.close()
    async with x.pool_of(url, "remit_executor", size=2) as login:
        store = x.ClaimStore(replica="e", evidence_max_age_s=60.0)
        store.attach(login)
        claimed = await store.claim(x.order_of(), "clm") == "claimed"
    stopped = await ask(
        url, "remit_approval", f"UPDATE control.stop SET engaged_at = now() WHERE target = '{f.AGENT.id}'"
    )
    return claimed and stopped == "UPDATE 1"

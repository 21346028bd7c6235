"""A person's no at the last fence: what was denied is neither claimed nor repeated nor continued, and the rest goes on."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from infra.postgres.migrate import MIGRATIONS, asyncpg_url, migrate
from remit.reasons import Reason
from services.approval.store import Block
from services.executor.claims import CLAIMED
from services.executor.decide import read_order, refusal_of
from tests.support import execution as x
from tests.support import factories as f
from tests.support.fence import Fence, fenced, order_under
from tests.support.postgres import postgres

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy import Connection

CLASS, OTHER = "echo.say|", "echo.say|UK1"
FATE = "SELECT state, reason FROM control.execution WHERE action_id = $1"
USED = "SELECT used FROM control.budget WHERE remit_id = $1 AND grant_no = 0"
SESSIONS = ("run-1", "run-2")


@pytest.fixture(scope="module")
async def server_url(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    async with postgres(tmp_path_factory.mktemp("postgres")) as url:
        yield url


@pytest.fixture(scope="module")
async def on(server_url: str) -> AsyncIterator[Fence]:
    async with fenced(server_url) as found:
        yield found


async def deny(
    on: Fence, remit_id: str, block_class: str = CLASS, *, session: str = "run-1", seconds: float = 3600.0
) -> None:
    block = Block(remit_id=remit_id, session=session, block_class=block_class, reason="no", by=f.DANA, seconds=seconds)
    await on.actions.block(block)


@pytest.mark.parametrize("session", SESSIONS)
async def test_what_was_denied_is_refused_in_the_claim_whatever_the_session(on: Fence, session: str) -> None:
    remit_id = f"rem_denied_{session}"
    await on.admit(remit_id)
    await deny(on, remit_id, session=session)
    order = order_under(remit_id, session)
    assert await on.store.claim(order, "clm") == Reason.BLOCKED
    assert await on.pool.fetchrow(FATE, order.action_id) == ("refused", "blocked")
    assert await on.pool.fetchval(USED, remit_id) == 0


async def test_another_resource_another_remit_and_a_block_that_ended_pass(on: Fence) -> None:
    for remit_id in ("rem_one", "rem_two"):
        await on.admit(remit_id)
    await deny(on, "rem_one")
    await deny(on, "rem_one", OTHER, seconds=-1.0)
    assert await on.store.claim(replace(order_under("rem_one", "ended"), block_class=OTHER), "clm") == CLAIMED
    assert await on.store.claim(replace(order_under("rem_one", "third"), block_class="echo.say|UK2"), "clm") == CLAIMED
    assert await on.store.claim(order_under("rem_two", "other"), "clm") == CLAIMED
    assert await on.store.claim(order_under("rem_one", "same"), "clm") == Reason.BLOCKED


OLD = """
SELECT control.claim($1, $2, $3, 1, 1, $4, 'clm', 'executor-old', 30, clock_timestamp() + interval '1 minute', $5, $6,
                     'echo.say', 60, 'nonce')
"""


@pytest.mark.parametrize(
    ("denied", "answer"), [(None, CLAIMED), (CLASS, Reason.BLOCKED), ("echo.ask|", Reason.BLOCKED)]
)
async def test_an_executor_that_names_no_class_is_held_up_by_any_block_of_the_remit(
    on: Fence, denied: str | None, answer: str
) -> None:
    remit_id = f"rem_old_{denied}"
    await on.admit(remit_id)
    if denied:
        await deny(on, remit_id, denied)
    order = order_under(remit_id, remit_id)
    arguments = (order.action_id, order.jti, remit_id, order.args_digest, order.human, order.agent)
    assert await on.store._pool.fetchval(OLD, *arguments) == answer


async def test_a_denied_call_is_neither_repeated_nor_sent_late_nor_continued(on: Fence) -> None:
    await on.admit("rem_repeat")
    denied, other = (order_under("rem_repeat", key) for key in ("repeat-denied", "repeat-other"))
    other = replace(other, block_class=OTHER)
    for order in (denied, other):
        assert await on.store.claim(order, "clm") == CLAIMED
        assert await on.store.may_send(order, "clm")
    await deny(on, "rem_repeat")
    rows = [await on.store.row(order.action_id) for order in (denied, other)]
    assert [await on.store.may_send(order, "clm") for order in (denied, other)] == [False, True]
    assert all(rows)
    taken = [await on.store.take_over(row, claim_id="clm.2", deadline_s=30.0) for row in rows if row]
    assert taken == [False, True]


async def test_no_like_claim_commits_after_a_denial_returned(on: Fence) -> None:
    """Denials race with claims: no claim that was begun under a block is held."""
    told: Counter[str] = Counter()
    for run in range(6):
        remit_id = f"rem_race_{run}"
        await on.admit(remit_id)
        returned = asyncio.Event()

        async def claims(worker: int, remit_id: str = remit_id, returned: asyncio.Event = returned) -> None:
            number, left = 0, 3
            while left:
                is_late = returned.is_set()
                answer = await on.store.claim(order_under(remit_id, f"{remit_id}-{worker}-{number}"), "clm")
                assert not is_late or answer == Reason.BLOCKED
                told[answer] += 1
                number, left = number + 1, left - is_late

        async def denial(remit_id: str = remit_id, returned: asyncio.Event = returned) -> int:
            await asyncio.sleep(0.01)
            await deny(on, remit_id)
            returned.set()
            return await on.pool.fetchval(HELD, remit_id)

        held, *_ = await asyncio.gather(denial(), *(claims(worker) for worker in range(4)))
        assert await on.pool.fetchval(HELD, remit_id) == held
        assert await on.pool.fetchval(AFTER, remit_id) == 0
    assert set(told) == {CLAIMED, Reason.BLOCKED}


HELD = "SELECT count(*) FROM control.execution WHERE remit_id = $1 AND state = 'in_flight'"
AFTER = f"{HELD} AND claimed_at > (SELECT created_at FROM control.block WHERE remit_id = $1)"


def test_the_order_names_what_a_denial_would_have_named() -> None:
    action = x.action_of(x.tool_entry())
    order = read_order(x.tokenized_state(action), x.bundle_of(x.tool_entry()))
    assert getattr(order, "block_class", None) == CLASS
    assert refusal_of("blocked").reason is Reason.BLOCKED


def upgrade(connection: Connection, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


@pytest.fixture
async def before(server_url: str, on: Fence) -> AsyncIterator[str]:
    """A database as it was before blocks were part of the fence, with the executor's right to claim."""
    assert on  # its database made the roles
    admin = await asyncpg.connect(server_url)
    await admin.execute("CREATE DATABASE before_blocks")
    url = f"{server_url.rsplit('/', 1)[0]}/before_blocks"
    engine = create_async_engine(asyncpg_url(url))
    async with engine.begin() as connection:
        await connection.run_sync(upgrade, "0003")
        await connection.execute(text("GRANT EXECUTE ON FUNCTION control.claim TO remit_executor"))
    await engine.dispose()
    yield url
    await admin.execute("DROP DATABASE before_blocks WITH (FORCE)")
    await admin.close()


async def test_who_could_claim_before_the_upgrade_can_claim_after_it_and_nobody_else(before: str) -> None:
    """Executors go on while the schema is upgraded under them, before the roles are applied again."""
    await migrate(before)
    owner = await asyncpg.connect(before)
    try:
        found: list[Any] = await owner.fetch(MAY_CLAIM)
    finally:
        await owner.close()
    assert [tuple(row) for row in found] == [("remit_executor", 16)]


MAY_CLAIM = """
SELECT r.rolname, p.pronargs FROM pg_roles AS r, pg_proc AS p
WHERE p.pronamespace = 'control'::regnamespace AND p.proname = 'claim' AND r.rolname LIKE 'remit_%'
  AND has_function_privilege(r.rolname, p.oid, 'EXECUTE')
"""

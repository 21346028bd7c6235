"""The claim on a real Postgres: every refusal, every race, and what becomes of rows afterwards."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from remit.errors import TransientError
from remit.reasons import Reason
from services.approval.database import Database
from services.approval.stop_store import StopStore
from services.approval.store import ActionStore
from services.executor.claims import CLAIMED, EVIDENCE_STALE, EXISTS, ClaimStore
from services.executor.rows import Refusal
from tests.support import execution as x
from tests.support import factories as f
from tests.support.postgres import postgres

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import asyncpg

    from services.approval.stop_store import Stop

    Pool = asyncpg.Pool[asyncpg.Record]


@pytest.fixture(scope="module")
async def server_url(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    async with postgres(tmp_path_factory.mktemp("postgres")) as url:
        yield url


@pytest.fixture
async def on(server_url: str) -> AsyncIterator[x.Claims]:
    async with x.claimable(server_url) as found:
        yield found


@pytest.fixture
def pool(on: x.Claims) -> Pool:
    """The owner's connections: the stage hands."""
    return on.pool


@pytest.fixture
def store(on: x.Claims) -> ClaimStore:
    """The executor's store, logged in as the executor."""
    return on.store


@pytest.fixture
async def approval(on: x.Claims) -> AsyncIterator[Database]:
    """Approval's database, logged in as approval."""
    async with x.pool_of(on.url, "remit_approval") as login:
        found = Database()
        found.attach(login)
        yield found


async def used(pool: Pool) -> list[int]:
    rows = await pool.fetch("SELECT used FROM control.budget ORDER BY grant_no")
    return [row["used"] for row in rows]


async def state_of(pool: Pool, action_id: str) -> tuple[str, str | None]:
    row = await pool.fetchrow("SELECT state, reason FROM control.execution WHERE action_id = $1", action_id)
    assert row is not None
    return row["state"], row["reason"]


async def test_a_claim_is_in_flight_with_a_deadline_and_spends_both_budgets(pool: Pool, store: ClaimStore) -> None:
    order = x.order_of()
    assert await store.claim(order, "clm-1") == CLAIMED
    row = await pool.fetchrow("SELECT *, deadline - claimed_at AS span FROM control.execution")
    assert row is not None
    assert (row["state"], row["jti"], row["claim_id"]) == ("in_flight", order.jti, "clm-1")
    assert row["args_digest"] == order.args_digest
    assert row["span"].total_seconds() == pytest.approx(order.deadline_s, abs=0.1)
    assert await used(pool) == [1, 1]


async def test_a_second_claim_of_an_action_changes_nothing(pool: Pool, store: ClaimStore) -> None:
    order = x.order_of()
    await store.claim(order, "clm-1")
    assert await store.claim(order, "clm-2") == EXISTS
    row = await store.row(order.action_id)
    assert row is not None
    assert row.claim_id == "clm-1"
    assert await used(pool) == [1, 1]


REFUSALS: list[tuple[str, Reason, str]] = [
    ("global stop", Reason.STOPPED, "UPDATE control.stop SET engaged_at = now() WHERE kind = 'global'"),
    ("human stop", Reason.STOPPED, "UPDATE control.stop SET engaged_at = now() WHERE kind = 'human'"),
    ("agent stop", Reason.STOPPED, "UPDATE control.stop SET engaged_at = now() WHERE kind = 'agent'"),
    ("tool stop", Reason.STOPPED, "UPDATE control.stop SET engaged_at = now() WHERE kind = 'tool'"),
    ("remit stop", Reason.REMIT_REVOKED, "UPDATE control.stop SET engaged_at = now() WHERE kind = 'remit'"),
    ("no stop row", Reason.STOP_ROW_MISSING, "DELETE FROM control.stop WHERE kind = 'tool'"),
    ("remit ended", Reason.REMIT_REVOKED, "UPDATE control.remit SET ended_at = now(), ended_reason = 'revoked'"),
    ("remit spent", Reason.BUDGET_EXHAUSTED, "UPDATE control.remit SET ended_at = now(), ended_reason = 'exhausted'"),
    ("remit over", Reason.REMIT_EXPIRED, "UPDATE control.remit SET expires_at = clock_timestamp()"),
    ("remit early", Reason.REMIT_NOT_YET_VALID, "UPDATE control.remit SET not_before = now() + interval '1 hour'"),
    ("another human", Reason.FOREIGN_REMIT, "UPDATE control.remit SET human_sub = 'mallory'"),
    ("another agent", Reason.FOREIGN_REMIT, "UPDATE control.remit SET agent_id = 'spiffe://other'"),
    ("no remit", Reason.UNKNOWN_REMIT, "WITH b AS (DELETE FROM control.budget) DELETE FROM control.remit"),
    ("total spent", Reason.BUDGET_EXHAUSTED, "UPDATE control.budget SET used = max_calls WHERE grant_no = 0"),
    ("grant spent", Reason.BUDGET_EXHAUSTED, "UPDATE control.budget SET used = max_calls WHERE grant_no = 1"),
    ("no grant row", Reason.BUDGET_EXHAUSTED, "DELETE FROM control.budget WHERE grant_no = 1"),
]


@pytest.mark.parametrize(("case", "reason", "statement"), REFUSALS, ids=[case for case, _, _ in REFUSALS])
async def test_a_refused_claim_is_stored_with_its_reason_and_spends_nothing(
    pool: Pool, store: ClaimStore, case: str, reason: Reason, statement: str
) -> None:
    await pool.execute(statement)
    before, order = await used(pool), x.order_of(key=case)
    assert await store.claim(order, "clm-1") == reason
    assert await state_of(pool, order.action_id) == ("refused", reason)
    assert await used(pool) == before


async def test_an_expired_token_is_refused_by_the_database_clock(pool: Pool, store: ClaimStore) -> None:
    order = x.order_of(expires_at=datetime.now(UTC) - timedelta(milliseconds=1))
    assert await store.claim(order, "clm-1") == Reason.TOKEN_EXPIRED
    assert await state_of(pool, order.action_id) == ("refused", Reason.TOKEN_EXPIRED)


async def test_a_token_of_another_action_is_a_replay(pool: Pool, store: ClaimStore) -> None:
    first = x.order_of(key="first")
    stolen = x.order_of(key="second", jti=first.jti)
    assert await store.claim(first, "clm-1") == CLAIMED
    assert await store.claim(stolen, "clm-2") == Reason.TOKEN_REPLAYED
    assert await state_of(pool, stolen.action_id) == ("refused", Reason.TOKEN_REPLAYED)
    assert await used(pool) == [1, 1]


@pytest.mark.parametrize(
    "statement", ["DELETE FROM control.heartbeat", "UPDATE control.heartbeat SET at = now() - interval '61 s'"]
)
async def test_without_fresh_evidence_nothing_is_stored(pool: Pool, store: ClaimStore, statement: str) -> None:
    await pool.execute(statement)
    assert await store.claim(x.order_of(), "clm-1") == EVIDENCE_STALE
    assert await pool.fetchval("SELECT count(*) FROM control.execution") == 0


async def test_fifty_racing_claims_of_one_action_have_one_winner(pool: Pool, store: ClaimStore) -> None:
    order = x.order_of()
    answers = await asyncio.gather(*(store.claim(order, f"clm-{n}") for n in range(50)))
    assert Counter(answers) == {CLAIMED: 1, EXISTS: 49}
    row = await store.row(order.action_id)
    assert row is not None
    assert row.claim_id == f"clm-{answers.index(CLAIMED)}"
    assert await used(pool) == [1, 1]


async def test_a_budget_is_never_overspent(pool: Pool, store: ClaimStore) -> None:
    await pool.execute("UPDATE control.budget SET max_calls = 7 WHERE grant_no = 1")
    answers = await asyncio.gather(*(store.claim(x.order_of(key=str(n)), "clm") for n in range(40)))
    assert Counter(answers) == {CLAIMED: 7, Reason.BUDGET_EXHAUSTED: 33}
    assert await used(pool) == [7, 7]


KINDS: list[Stop] = [
    ("global", "*"),
    ("human", f"{f.EMMA.iss}|{f.EMMA.sub}"),
    ("agent", f.AGENT.id),
    ("tool", "echo.say"),
    ("remit", f.REMIT.remit_id),
]
COMMITTED = "SELECT count(*) FROM control.execution WHERE state = 'in_flight'"


class Switchboard:
    """Engages and lifts switches of all five kinds through approval's own store, and counts claims that commit meanwhile."""

    def __init__(self, switches: StopStore, pool: Pool) -> None:
        self.switches, self.pool, self.late = switches, pool, 0

    async def turn(self, stop: Stop) -> None:
        assert await self.switches.engage(stop, reason="drill", by=f.DANA)
        # The revoke has returned: whatever commits from now on is late, also a claim that was under way when it came.
        before = await self.pool.fetchval(COMMITTED)
        await asyncio.sleep(0.02)
        self.late += await self.pool.fetchval(COMMITTED) - before
        await self.switches.lift(stop, reason="drill", by=f.DANA)
        await asyncio.sleep(0.01)

    async def run_beside(self, work: asyncio.Future[Any]) -> None:
        async with asyncio.timeout(60):
            while not work.done():
                for stop in KINDS:
                    await self.turn(stop)


async def race(store: ClaimStore, switchboard: Switchboard, *, workers: int, each: int) -> Counter[str]:
    async def claims(worker: int) -> Counter[str]:
        orders = (x.order_of(key=f"{worker}-{n}") for n in range(each))
        return Counter([await store.claim(order, f"clm-{order.action_id}") for order in orders])

    work = asyncio.gather(*(claims(worker) for worker in range(workers)))
    _, counted = await asyncio.gather(switchboard.run_beside(work), work)
    return sum(counted, Counter[str]())


async def test_no_claim_commits_after_a_revoke_returned(pool: Pool, store: ClaimStore, approval: Database) -> None:
    """1,008 claims race with stops; nobody deadlocks, and none passes once a stop has returned."""
    switchboard = Switchboard(StopStore(approval), pool)
    total = await race(store, switchboard, workers=16, each=63)
    assert total.total() == 1008
    assert set(total) <= {CLAIMED, Reason.STOPPED, Reason.REMIT_REVOKED}
    assert 0 < total[CLAIMED] < 1008
    assert switchboard.late == 0
    assert await used(pool) == [total[CLAIMED], total[CLAIMED]]


UNFENCED = """
CREATE OR REPLACE FUNCTION control.stopped(p_human text, p_agent text, p_tool text, p_remit_id text) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
    v_engaged bigint;
BEGIN
    SELECT count(*) INTO v_engaged FROM control.stop WHERE engaged_at IS NOT NULL;
    PERFORM pg_sleep(0.005);
    RETURN CASE WHEN v_engaged > 0 THEN 'stopped' END;
END
$$
"""


async def test_the_race_shows_a_fence_that_does_not_hold(pool: Pool, store: ClaimStore, approval: Database) -> None:
    await pool.execute(UNFENCED)
    switchboard = Switchboard(StopStore(approval), pool)
    for _ in range(10):  # a busy machine may let the two sides miss each other
        await race(store, switchboard, workers=16, each=30)
        if switchboard.late:
            break
        await pool.execute("DELETE FROM control.execution")
    assert switchboard.late > 0


async def test_a_revoke_of_one_action_and_its_claim_have_one_winner(store: ClaimStore, approval: Database) -> None:
    actions = ActionStore(approval)
    winners: Counter[str] = Counter()
    for n in range(50):
        order = x.order_of(key=str(n))
        revoked = f.REVOKED.model_copy(update={"txn": order.action_id, "remit_id": order.remit_id})
        answer, forestalled = await asyncio.gather(store.claim(order, "clm"), actions.forestall(revoked, "1"))
        assert (answer == CLAIMED) == (forestalled.earlier == ("in_flight", None))
        assert (answer == EXISTS) == (len(forestalled.queued) == 1)
        winners[answer] += 1
    assert set(winners) <= {CLAIMED, EXISTS}


async def test_a_refusal_after_the_announcement_occupies_the_row(store: ClaimStore) -> None:
    order = x.order_of()
    refusal = Refusal(
        action_id=order.action_id, remit_id=order.remit_id, attempt=1, claim_id="clm-0", reason="tool_unreachable"
    )
    assert await store.refuse(refusal)
    assert await store.claim(order, "clm-1") == EXISTS
    assert not await store.refuse(refusal)


class Forgetful(ClaimStore):
    """Loses the answer of its first claim, after the commit."""

    lost = False

    async def _ask(self, arguments: tuple[Any, ...]) -> str:
        answer = await super()._ask(arguments)
        if not self.lost:
            self.lost = True
            raise ConnectionResetError
        return answer


async def forgetful(on: x.Claims, stack: AsyncExitStack) -> ClaimStore:
    found = Forgetful(replica="executor-2", evidence_max_age_s=60.0)
    found.attach(await stack.enter_async_context(x.pool_of(on.url, "remit_executor", size=2)))
    return found


async def test_a_claim_whose_answer_was_lost_is_known_again(on: x.Claims) -> None:
    async with AsyncExitStack() as stack:
        assert await (await forgetful(on, stack)).claim(x.order_of(), "clm-1") == CLAIMED
    assert await used(on.pool) == [1, 1]


async def test_the_same_claim_id_of_another_replica_is_not_taken_for_a_lost_answer(on: x.Claims) -> None:
    assert await on.store.claim(x.order_of(), "clm-1") == CLAIMED
    async with AsyncExitStack() as stack:
        assert await (await forgetful(on, stack)).claim(x.order_of(), "clm-1") == EXISTS


async def test_a_store_without_postgres_asks_to_come_back(store: ClaimStore) -> None:
    await store.close()
    with pytest.raises(TransientError):
        await store.claim(x.order_of(), "clm-1")
    with pytest.raises(TransientError):
        await store.row("0" * 32)
    with pytest.raises(TransientError):
        await ClaimStore(replica="e", evidence_max_age_s=1.0).evidence_age_s()

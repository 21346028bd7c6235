"""The claim on a real Postgres: every refusal, every race, and what becomes of rows afterwards."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from remit.errors import TransientError
from remit.reasons import Outcome, Reason
from services.executor.claims import CLAIMED, EVIDENCE_STALE, EXISTS, ClaimStore, Refusal
from services.executor.results import Answer, Call, executed
from tests.support import execution as x
from tests.support import factories as f
from tests.support.postgres import fresh_database, postgres

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from remit.events import Executed


@pytest.fixture(scope="module")
async def server_url(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    async with postgres(tmp_path_factory.mktemp("postgres")) as url:
        yield url


@pytest.fixture
async def pool(server_url: str) -> AsyncIterator[asyncpg.Pool[asyncpg.Record]]:
    async with fresh_database(server_url) as url, asyncpg.create_pool(url, min_size=4, max_size=20) as found:
        await x.admit_claims(found)
        yield found


@pytest.fixture
def store(pool: asyncpg.Pool[asyncpg.Record]) -> ClaimStore:
    found = ClaimStore(replica="executor-1", evidence_max_age_s=60.0)
    found.attach(pool)
    return found


async def used(pool: asyncpg.Pool[asyncpg.Record]) -> list[int]:
    rows = await pool.fetch("SELECT used FROM control.budget ORDER BY grant_no")
    return [row["used"] for row in rows]


async def state_of(pool: asyncpg.Pool[asyncpg.Record], action_id: str) -> tuple[str, str | None]:
    row = await pool.fetchrow("SELECT state, reason FROM control.execution WHERE action_id = $1", action_id)
    assert row is not None
    return row["state"], row["reason"]


async def test_a_claim_is_in_flight_with_a_deadline_and_spends_both_budgets(
    pool: asyncpg.Pool[asyncpg.Record], store: ClaimStore
) -> None:
    order = x.order_of()
    assert await store.claim(order, "clm-1") == CLAIMED
    row = await pool.fetchrow("SELECT *, deadline - claimed_at AS span FROM control.execution")
    assert row is not None
    assert (row["state"], row["jti"], row["claim_id"]) == ("in_flight", order.jti, "clm-1")
    assert row["args_digest"] == order.args_digest
    assert row["span"].total_seconds() == pytest.approx(order.deadline_s, abs=0.1)
    assert await used(pool) == [1, 1]


async def test_a_second_claim_of_an_action_changes_nothing(
    pool: asyncpg.Pool[asyncpg.Record], store: ClaimStore
) -> None:
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
    pool: asyncpg.Pool[asyncpg.Record], store: ClaimStore, case: str, reason: Reason, statement: str
) -> None:
    await pool.execute(statement)
    before, order = await used(pool), x.order_of(key=case)
    assert await store.claim(order, "clm-1") == reason
    assert await state_of(pool, order.action_id) == ("refused", reason)
    assert await used(pool) == before


async def test_an_expired_token_is_refused_by_the_database_clock(
    pool: asyncpg.Pool[asyncpg.Record], store: ClaimStore
) -> None:
    order = x.order_of(expires_at=datetime.now(UTC) - timedelta(milliseconds=1))
    assert await store.claim(order, "clm-1") == Reason.TOKEN_EXPIRED
    assert await state_of(pool, order.action_id) == ("refused", Reason.TOKEN_EXPIRED)


async def test_a_token_of_another_action_is_a_replay(pool: asyncpg.Pool[asyncpg.Record], store: ClaimStore) -> None:
    first = x.order_of(key="first")
    stolen = x.order_of(key="second", jti=first.jti)
    assert await store.claim(first, "clm-1") == CLAIMED
    assert await store.claim(stolen, "clm-2") == Reason.TOKEN_REPLAYED
    assert await state_of(pool, stolen.action_id) == ("refused", Reason.TOKEN_REPLAYED)
    assert await used(pool) == [1, 1]


@pytest.mark.parametrize(
    "statement", ["DELETE FROM control.heartbeat", "UPDATE control.heartbeat SET at = now() - interval '61 s'"]
)
async def test_without_fresh_evidence_nothing_is_stored(
    pool: asyncpg.Pool[asyncpg.Record], store: ClaimStore, statement: str
) -> None:
    await pool.execute(statement)
    assert await store.claim(x.order_of(), "clm-1") == EVIDENCE_STALE
    assert await pool.fetchval("SELECT count(*) FROM control.execution") == 0


async def test_fifty_racing_claims_of_one_action_have_one_winner(
    pool: asyncpg.Pool[asyncpg.Record], store: ClaimStore
) -> None:
    order = x.order_of()
    answers = await asyncio.gather(*(store.claim(order, f"clm-{n}") for n in range(50)))
    assert Counter(answers) == {CLAIMED: 1, EXISTS: 49}
    row = await store.row(order.action_id)
    assert row is not None
    assert row.claim_id == f"clm-{answers.index(CLAIMED)}"
    assert await used(pool) == [1, 1]


async def test_a_budget_is_never_overspent(pool: asyncpg.Pool[asyncpg.Record], store: ClaimStore) -> None:
    await pool.execute("UPDATE control.budget SET max_calls = 7 WHERE grant_no = 1")
    answers = await asyncio.gather(*(store.claim(x.order_of(key=str(n)), "clm") for n in range(40)))
    assert Counter(answers) == {CLAIMED: 7, Reason.BUDGET_EXHAUSTED: 33}
    assert await used(pool) == [7, 7]


class Switchboard:
    """Engages and lifts stop rows of all five kinds in turn; `in_force` numbers the stop whose statement has returned."""

    def __init__(self, pool: asyncpg.Pool[asyncpg.Record]) -> None:
        self.pool = pool
        self.count = 0
        self.in_force: int | None = None

    async def turn(self, kind: str) -> None:
        self.count += 1
        await self.pool.execute("UPDATE control.stop SET engaged_at = clock_timestamp() WHERE kind = $1", kind)
        self.in_force = self.count
        await asyncio.sleep(0.005)
        self.in_force = None
        await self.pool.execute("UPDATE control.stop SET engaged_at = NULL WHERE kind = $1", kind)
        await asyncio.sleep(0.005)

    async def run_beside(self, work: asyncio.Future[Any]) -> None:
        async with asyncio.timeout(60):
            while not work.done():
                for kind in ("global", "human", "agent", "tool", "remit"):
                    await self.turn(kind)


async def test_no_claim_commits_after_a_revoke_returned(pool: asyncpg.Pool[asyncpg.Record], store: ClaimStore) -> None:
    """1,000 claims race with stops; nobody deadlocks, and a claim that began under a stop in force never passes."""
    switches, late = Switchboard(pool), []

    async def claims(worker: int) -> Counter[str]:
        answers: Counter[str] = Counter()
        for n in range(63):
            before = switches.in_force
            answer = await store.claim(x.order_of(key=f"{worker}-{n}"), f"clm-{worker}-{n}")
            answers[answer] += 1
            if before is not None and before == switches.in_force and answer == CLAIMED:
                late.append(n)
        return answers

    work = asyncio.gather(*(claims(worker) for worker in range(16)))
    _, counted = await asyncio.gather(switches.run_beside(work), work)
    total = sum(counted, Counter[str]())
    assert total.total() == 1008
    assert set(total) <= {CLAIMED, Reason.STOPPED, Reason.REMIT_REVOKED}
    assert 0 < total[CLAIMED] < 1008
    assert late == []
    assert await used(pool) == [total[CLAIMED], total[CLAIMED]]


async def test_a_revoke_of_one_action_and_its_claim_have_one_winner(
    pool: asyncpg.Pool[asyncpg.Record], store: ClaimStore
) -> None:
    async def forestall(action_id: str) -> bool:
        return await pool.fetchval(
            "INSERT INTO control.execution (action_id, remit_id, state, reason) VALUES ($1, $2, 'refused', 'revoked')"
            " ON CONFLICT (action_id) DO NOTHING RETURNING true",
            action_id,
            f.REMIT.remit_id,
        )

    for n in range(50):
        order = x.order_of(key=str(n))
        answer, forestalled = await asyncio.gather(store.claim(order, "clm"), forestall(order.action_id))
        assert (answer == CLAIMED) != bool(forestalled)


def outcome(store_order: Any, claim_id: str, result: Outcome) -> Executed:
    action = store_order.action
    state = x.tokenized_state(action)
    call = Call(claim_id=claim_id, attempt=1, executed_digest=store_order.args_digest, call_ms=1)
    return executed(state, Answer(outcome=result, value={"ok": True}), call, action, now=datetime.now(UTC))


async def test_an_outcome_is_stored_once_and_only_by_who_holds_the_claim(
    pool: asyncpg.Pool[asyncpg.Record], store: ClaimStore
) -> None:
    order = x.order_of()
    await store.claim(order, "clm-1")
    done = outcome(order, "clm-1", Outcome.SUCCEEDED)
    other = done.model_copy(update={"claim_id": "clm-2"})
    assert await store.conclude(action_id=order.action_id, claim_id="clm-2", data=other) is None
    queued = await store.conclude(action_id=order.action_id, claim_id="clm-1", data=done)
    assert queued is not None
    assert queued.discriminator == "1"
    assert await store.conclude(action_id=order.action_id, claim_id="clm-1", data=done) is None
    assert await pool.fetchval("SELECT count(*) FROM control.outbox") == 1
    assert [each.id for each in await store.undone(older_than_s=0.0, limit=5)] == [queued.id]
    await store.mark_done([queued.id])
    assert await store.undone(older_than_s=0.0, limit=5) == []


async def test_a_late_outcome_of_the_same_claim_resolves_an_unknown_once(store: ClaimStore) -> None:
    order = x.order_of()
    await store.claim(order, "clm-1")
    doubt, known = (outcome(order, "clm-1", each) for each in (Outcome.UNKNOWN, Outcome.SUCCEEDED))
    first = await store.conclude(action_id=order.action_id, claim_id="clm-1", data=doubt)
    second = await store.conclude(action_id=order.action_id, claim_id="clm-1", data=known)
    assert first is not None
    assert second is not None
    assert (first.discriminator, second.discriminator) == ("1", "1:resolved")
    assert await store.conclude(action_id=order.action_id, claim_id="clm-1", data=doubt) is None


async def interrupt(pool: asyncpg.Pool[asyncpg.Record]) -> None:
    await pool.execute("UPDATE control.execution SET deadline = clock_timestamp() - interval '1 s'")


async def test_an_interrupted_claim_is_leased_to_one_sweeper(
    pool: asyncpg.Pool[asyncpg.Record], store: ClaimStore
) -> None:
    await store.claim(x.order_of(), "clm-1")
    assert await store.lease_interrupted(5) == []
    await interrupt(pool)
    found = await asyncio.gather(*(store.lease_interrupted(5) for _ in range(5)))
    assert sorted(len(rows) for rows in found) == [0, 0, 0, 0, 1]


async def test_an_interrupted_claim_is_taken_over_once(pool: asyncpg.Pool[asyncpg.Record], store: ClaimStore) -> None:
    await store.claim(x.order_of(), "clm-1")
    await interrupt(pool)
    [row] = await store.lease_interrupted(5)
    assert await store.take_over(row, claim_id="clm-2", deadline_s=5.0)
    assert not await store.take_over(row, claim_id="clm-3", deadline_s=5.0)
    await interrupt(pool)
    [again] = await store.lease_interrupted(5)
    assert again.claim_id == "clm-2"
    assert not await store.take_over(again, claim_id="clm-4", deadline_s=5.0)
    assert await used(pool) == [1, 1]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE control.stop SET engaged_at = now() WHERE kind = 'agent'",
        "UPDATE control.remit SET expires_at = clock_timestamp()",
    ],
)
async def test_nothing_is_taken_over_after_a_revoke(
    pool: asyncpg.Pool[asyncpg.Record], store: ClaimStore, statement: str
) -> None:
    await store.claim(x.order_of(), "clm-1")
    await interrupt(pool)
    await pool.execute(statement)
    [row] = await store.lease_interrupted(5)
    assert not await store.take_over(row, claim_id="clm-2", deadline_s=5.0)


async def test_a_spent_budget_does_not_keep_its_own_call_from_being_repeated(
    pool: asyncpg.Pool[asyncpg.Record], store: ClaimStore
) -> None:
    await store.claim(x.order_of(), "clm-1")
    await pool.execute("UPDATE control.remit SET ended_at = now(), ended_reason = 'exhausted'")
    await interrupt(pool)
    [row] = await store.lease_interrupted(5)
    assert await store.take_over(row, claim_id="clm-2", deadline_s=5.0)


async def test_a_refusal_after_the_announcement_occupies_the_row(store: ClaimStore) -> None:
    order = x.order_of()
    refusal = Refusal(
        action_id=order.action_id, remit_id=order.remit_id, attempt=1, claim_id="clm-0", reason="tool_unreachable"
    )
    assert await store.refuse(refusal)
    assert await store.claim(order, "clm-1") == EXISTS
    assert not await store.refuse(refusal)


async def test_a_store_without_postgres_asks_to_come_back(
    pool: asyncpg.Pool[asyncpg.Record], store: ClaimStore
) -> None:
    await pool.close()
    with pytest.raises(TransientError):
        await store.claim(x.order_of(), "clm-1")
    with pytest.raises(TransientError):
        await store.row("0" * 32)
    with pytest.raises(TransientError):
        await ClaimStore(replica="e", evidence_max_age_s=1.0).evidence_age_s()

"""Outcomes on a real Postgres: stored once, by who holds the claim, whatever they say; and what becomes of interrupted claims."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from remit.errors import TransientError
from remit.reasons import Outcome
from services.executor.results import Answer, Call, executed
from services.executor.rows import LATE
from tests.support import execution as x
from tests.support.postgres import postgres

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import asyncpg

    from remit.events import Executed
    from services.executor.claims import ClaimStore
    from services.executor.decide import Order

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


async def used(pool: Pool) -> list[int]:
    rows = await pool.fetch("SELECT used FROM control.budget ORDER BY grant_no")
    return [row["used"] for row in rows]


def outcome(store_order: Order, claim_id: str, result: Outcome) -> Executed:
    action = store_order.action
    state = x.tokenized_state(action)
    call = Call(claim_id=claim_id, attempt=1, executed_digest=store_order.args_digest, call_ms=1)
    return executed(state, Answer(outcome=result, value={"ok": True}), call, action, now=datetime.now(UTC))


async def test_an_outcome_is_stored_once_and_only_by_who_holds_the_claim(pool: Pool, store: ClaimStore) -> None:
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


async def interrupt(pool: Pool) -> None:
    await pool.execute("UPDATE control.execution SET deadline = clock_timestamp() - interval '1 s'")


async def test_an_interrupted_claim_is_leased_to_one_sweeper(pool: Pool, store: ClaimStore) -> None:
    await store.claim(x.order_of(), "clm-1")
    assert await store.lease_interrupted(5) == []
    await interrupt(pool)
    found = await asyncio.gather(*(store.lease_interrupted(5) for _ in range(5)))
    assert sorted(len(rows) for rows in found) == [0, 0, 0, 0, 1]


async def test_an_interrupted_claim_is_taken_over_once(pool: Pool, store: ClaimStore) -> None:
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
async def test_nothing_is_taken_over_after_a_revoke(pool: Pool, store: ClaimStore, statement: str) -> None:
    await store.claim(x.order_of(), "clm-1")
    await interrupt(pool)
    await pool.execute(statement)
    [row] = await store.lease_interrupted(5)
    assert not await store.take_over(row, claim_id="clm-2", deadline_s=5.0)


async def test_a_spent_budget_does_not_keep_its_own_call_from_being_repeated(pool: Pool, store: ClaimStore) -> None:
    await store.claim(x.order_of(), "clm-1")
    await pool.execute("UPDATE control.remit SET ended_at = now(), ended_reason = 'exhausted'")
    await interrupt(pool)
    [row] = await store.lease_interrupted(5)
    assert await store.take_over(row, claim_id="clm-2", deadline_s=5.0)


NUL = "a\x00b"


def with_nul(order: Order, where: str) -> Executed:
    """Return an outcome with a U+0000 in the session, the resource or the result."""
    data = outcome(order, "clm-1", Outcome.SUCCEEDED)
    agent = data.principal.agent.model_copy(update={"session": NUL})
    changed: dict[str, Any] = {
        "session": {"principal": data.principal.model_copy(update={"agent": agent})},
        "resource": {"action": data.action.model_copy(update={"resource_id": NUL})},
        "result": {"result": {NUL: [NUL]}},
    }
    return data.model_copy(update=changed[where])


@pytest.mark.parametrize("where", ["session", "resource", "result"])
async def test_what_postgres_cannot_store_costs_the_result_but_not_the_outcome(on: x.Claims, where: str) -> None:
    order = x.order_of()
    await on.store.claim(order, "clm-1")
    queued = await on.store.conclude(action_id=order.action_id, claim_id="clm-1", data=with_nul(order, where))
    assert queued is not None
    assert queued.is_stripped
    row = await on.store.row(order.action_id)
    assert row is not None
    assert row.state == Outcome.SUCCEEDED
    [waiting] = await on.store.undone(older_than_s=0.0, limit=5)
    assert (waiting.draft, waiting.row) == (queued.draft, row)
    assert waiting.draft["data"]["result_omitted"] == "schema_violation"
    assert "result" not in waiting.draft["data"]
    assert waiting.draft["data"]["outcome"] == "succeeded"


async def test_a_late_outcome_is_kept_as_evidence_and_never_relayed(on: x.Claims) -> None:
    order = x.order_of()
    await on.store.claim(order, "clm-1")
    late = with_nul(order, "session")
    await on.store.keep_late(late)
    assert await on.store.undone(older_than_s=0.0, limit=5) == []
    [row] = await on.pool.fetch("SELECT * FROM control.outbox")
    assert (row["service"], row["event_type"], row["discriminator"]) == ("executor", LATE, "clm-1")
    assert row["done_at"] is not None
    assert json.loads(row["draft"])["data"]["outcome"] == "succeeded"


async def test_the_outbox_is_read_page_by_page_in_the_order_of_its_transactions(on: x.Claims) -> None:
    orders = [x.order_of(key=str(n)) for n in range(5)]
    for order in orders:
        await on.store.claim(order, "clm-1")
        data = outcome(order, "clm-1", Outcome.SUCCEEDED).model_copy(update={"txn": order.action_id})
        await on.store.conclude(action_id=order.action_id, claim_id="clm-1", data=data)
    seen: list[str] = []
    last = 0
    while page := await on.store.undone(after_id=last, older_than_s=0.0, limit=2):
        seen += [queued.subject_id for queued in page]
        last = page[-1].id
    assert seen == [order.action_id for order in orders]


SINCE_THE_CLAIM = [
    "UPDATE control.stop SET engaged_at = now() WHERE kind = 'global'",
    "UPDATE control.stop SET engaged_at = now() WHERE kind = 'remit'",
    "DELETE FROM control.stop WHERE kind = 'tool'",
    "UPDATE control.remit SET expires_at = clock_timestamp()",
    "UPDATE control.remit SET ended_at = now(), ended_reason = 'revoked'",
    "UPDATE control.heartbeat SET at = now() - interval '61 s'",
    "DELETE FROM control.heartbeat",
    "UPDATE control.execution SET state = 'unknown'",
    "UPDATE control.execution SET claim_id = 'clm-1.2'",
]


@pytest.mark.parametrize("statement", SINCE_THE_CLAIM)
async def test_nothing_is_sent_again_after_what_would_have_stopped_the_claim(on: x.Claims, statement: str) -> None:
    order = x.order_of()
    await on.store.claim(order, "clm-1")
    assert await on.store.may_send(order, "clm-1")
    await on.pool.execute(statement)
    assert not await on.store.may_send(order, "clm-1")


async def test_nothing_is_sent_again_once_the_token_is_over(on: x.Claims) -> None:
    order = x.order_of()
    await on.store.claim(order, "clm-1")
    assert not await on.store.may_send(replace(order, expires_at=datetime.now(UTC)), "clm-1")


async def test_what_may_be_sent_again_is_not_interrupted_meanwhile(on: x.Claims) -> None:
    order = x.order_of()
    await on.store.claim(order, "clm-1")
    await on.pool.execute("UPDATE control.remit SET ended_at = now(), ended_reason = 'exhausted'")
    await interrupt(on.pool)
    assert await on.store.may_send(order, "clm-1")
    assert await on.store.lease_interrupted(5) == []


@pytest.mark.parametrize(
    "statement", ["DELETE FROM control.heartbeat", "UPDATE control.heartbeat SET at = now() - interval '61 s'"]
)
async def test_without_fresh_evidence_a_take_over_waits(on: x.Claims, statement: str) -> None:
    await on.store.claim(x.order_of(), "clm-1")
    await interrupt(on.pool)
    await on.pool.execute(statement)
    [row] = await on.store.lease_interrupted(5)
    with pytest.raises(TransientError, match="evidence gates effect"):
        await on.store.take_over(row, claim_id="clm-2", deadline_s=5.0)
    found = await on.store.row(row.action_id)
    assert found is not None
    assert (found.claim_id, found.state) == ("clm-1", "in_flight")

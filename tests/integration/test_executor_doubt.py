"""The executor between real servers when something came between: a revocation, a broken row, a person's finding, a forger."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from remit.events import ActionExecuted, ActionProposed, ActionStarted
from remit.ids import action_id
from remit.reasons import Outcome
from remit.runtime.ledger import Draft
from services.approval.database import Database
from services.approval.store import ActionStore
from services.executor.decide import claim_id
from services.executor.rows import LATE
from tests.support import execution as x
from tests.support import factories as f
from tests.support.execution_stage import Stage, alarms, staged
from tests.support.postgres import fresh_database, postgres
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    Pool = asyncpg.Pool[asyncpg.Record]

K = action_id("default", "bookkeeper", "k")
PAST = "UPDATE control.execution SET deadline = clock_timestamp() WHERE state = 'in_flight'"


@pytest.fixture(scope="module")
async def server_url(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    async with postgres(tmp_path_factory.mktemp("postgres")) as url:
        yield url


@pytest.fixture
async def database_url(server_url: str) -> AsyncIterator[str]:
    async with fresh_database(server_url) as url:
        yield url


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    async with asyncpg.create_pool(database_url, min_size=1, max_size=4) as found:
        await x.admit_claims(found)
        yield found


@pytest.fixture
async def stage(nats_url: str, database_url: str, keys: Path, pool: Pool) -> AsyncIterator[Stage]:
    assert pool
    async with staged(nats_url, database_url, keys) as found:
        yield found


async def test_a_doubtful_call_is_not_repeated_after_a_revoke_returned(stage: Stage, pool: Pool) -> None:
    stage.tool.status, stage.tool.delay_s = 503, 0.3
    tool = stage.tool_entry(idempotency="key")
    await stage.apply(tool)
    async with stage.running():
        await stage.tokenize(tool, "k")
        await eventually(lambda: len(stage.tool.effects), 1)
        await pool.execute("UPDATE control.stop SET engaged_at = clock_timestamp() WHERE kind = 'agent'")
        data = await stage.until("k", "executed")
    assert (data.outcome, data.error) == (Outcome.UNKNOWN, "http_503")
    assert len(stage.tool.effects) == 1


async def test_announcement_claim_and_outcome_name_one_claim(stage: Stage, pool: Pool) -> None:
    tool = stage.tool_entry()
    await stage.apply(tool)
    announced = await stage.announce(await stage.tokenize(tool, "k"))
    said = announced.must(ActionStarted).data.claim_id
    async with stage.running():
        await stage.redrive("k")
        data = await stage.until("k", "executed")
        await stage.tokenize(tool, "other")
        other = await stage.until("other", "executed")
    assert data.claim_id == said
    assert await pool.fetchval("SELECT claim_id FROM control.execution WHERE action_id = $1", K) == said
    assert other.claim_id == claim_id(other.txn, 1)
    assert other.claim_id == (await stage.ledgers["executor"].read(other.txn)).must(ActionStarted).data.claim_id


async def test_a_row_that_cannot_be_ended_leaves_the_others_and_the_executor_alone(stage: Stage, pool: Pool) -> None:
    tool = stage.tool_entry(timeout_s=6.0)
    await stage.apply(tool)
    broken = action_id("default", "bookkeeper", "broken")
    state = await stage.ledgers["intake"].read(broken)
    about = x.common_of(x.action_of(tool), {"text": "hello"}, broken)
    draft = Draft(event=ActionProposed, data=f.PROPOSED.model_copy(update=about))
    await stage.ledgers["intake"].append(state, draft)
    stage.tool.delay_s = 3.0
    async with stage.running() as service:
        await stage.tokenize(tool, "k")
        await eventually(lambda: len(stage.tool.effects), 1)
        await pool.execute(
            "INSERT INTO control.execution (action_id, remit_id, claim_id, state, deadline) VALUES ($1, 'r', 'clm', 'in_flight',"
            " clock_timestamp() - interval '1 minute')",
            broken,
        )
        await pool.execute(PAST)
        assert (await stage.until("k", "executed")).outcome is Outcome.UNKNOWN
        await eventually(lambda: alarms(service, "interrupted_claim_failed") >= 1, True)
        stage.tool.delay_s = 0.0
        await stage.tokenize(tool, "next")
        assert (await stage.until("next", "executed")).outcome is Outcome.SUCCEEDED
    assert await pool.fetchval("SELECT state FROM control.execution WHERE action_id = $1", broken) == "in_flight"


async def doubtful(stage: Stage, pool: Pool) -> Any:
    """Bring an action in doubt while its call is under way, and return what the ledger says."""
    tool = stage.tool_entry(timeout_s=6.0)
    await stage.apply(tool)
    await stage.tokenize(tool, "k")
    await eventually(lambda: len(stage.tool.effects), 1)
    await pool.execute(PAST)
    data = await stage.until("k", "executed")
    assert data.outcome is Outcome.UNKNOWN
    return data


async def test_a_true_outcome_after_a_person_s_finding_is_kept_and_complained_about(stage: Stage, pool: Pool) -> None:
    stage.tool.delay_s = 4.0
    async with stage.running() as service, x.pool_of(stage.database_url, "remit_approval", size=2) as login:
        data = await doubtful(stage, pool)
        database = Database()
        database.attach(login)
        found = data.model_copy(update={"outcome": Outcome.FAILED, "error": None, "finding": "otto: nothing was paid"})
        assert await ActionStore(database).resolve(K, found, "1:resolved")
        await eventually(lambda: pool.fetchval("SELECT count(*) FROM control.outbox WHERE event_type = $1", LATE), 1)
        assert (await stage.until("k", "executed")).finding == "otto: nothing was paid"
        assert alarms(service, "late_outcome_differs") == 1
        assert alarms(service, "outbox_row_contradicts") == 0
    late = json.loads(await pool.fetchval("SELECT draft FROM control.outbox WHERE event_type = $1", LATE))
    assert late["data"]["outcome"] == "succeeded"
    last = await stage.last("k")
    assert isinstance(last, ActionExecuted)
    assert last.data.outcome is Outcome.FAILED


async def test_a_forged_outbox_row_is_not_signed(stage: Stage, pool: Pool) -> None:
    stage.tool.status = 503
    tool = stage.tool_entry()
    await stage.apply(tool)
    async with stage.running() as service:
        await stage.tokenize(tool, "k")
        data = await stage.until("k", "executed")
        assert data.outcome is Outcome.UNKNOWN
        forged = data.model_copy(update={"outcome": Outcome.SUCCEEDED, "result": "all is well"})
        draft = {"data": forged.model_dump(mode="json", exclude_none=True)}
        await pool.execute(
            "INSERT INTO control.outbox (service, subject_id, event_type, discriminator, draft, created_at)"
            " VALUES ('executor', $1, 'executed', '1:resolved', $2, clock_timestamp() - interval '1 minute')",
            K,
            json.dumps(draft),
        )
        await eventually(lambda: alarms(service, "outbox_row_contradicts") >= 1, True)
        stage.tool.status = 200
        await stage.tokenize(tool, "next")
        assert (await stage.until("next", "executed")).outcome is Outcome.SUCCEEDED
        await asyncio.sleep(0.5)
        assert (await stage.until("k", "executed")).outcome is Outcome.UNKNOWN
    assert await pool.fetchval("SELECT count(*) FROM control.outbox WHERE discriminator = '1:resolved'") == 1

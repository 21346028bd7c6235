"""The executor between real servers: one effect, every refusal said, every crash survived without a second effect."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from remit.events import ActionStarted
from remit.ids import action_id
from remit.reasons import Outcome, Reason
from tests.support import execution as x
from tests.support import factories as f
from tests.support.execution_stage import Stage, staged
from tests.support.postgres import fresh_database, postgres
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
async def server_url(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    async with postgres(tmp_path_factory.mktemp("postgres")) as url:
        yield url


@pytest.fixture
async def database_url(server_url: str) -> AsyncIterator[str]:
    async with fresh_database(server_url) as url:
        yield url


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool[asyncpg.Record]]:
    async with asyncpg.create_pool(database_url, min_size=1, max_size=4) as found:
        await x.admit_claims(found)
        yield found


@pytest.fixture
async def stage(
    nats_url: str, database_url: str, keys: Path, pool: asyncpg.Pool[asyncpg.Record]
) -> AsyncIterator[Stage]:
    assert pool
    async with staged(nats_url, database_url, keys) as found:
        yield found


async def outbox_is_empty(pool: asyncpg.Pool[asyncpg.Record]) -> bool:
    return not await pool.fetchval("SELECT count(*) FROM control.outbox WHERE done_at IS NULL")


async def test_an_action_is_executed_once_and_its_outcome_reaches_the_ledger(
    stage: Stage, pool: asyncpg.Pool[asyncpg.Record]
) -> None:
    tool = stage.tool_entry()
    await stage.apply(tool)
    async with stage.running():
        await stage.tokenize(tool, "k")
        data = await stage.until("k", "executed")
        await eventually(lambda: outbox_is_empty(pool))
    assert data.outcome is Outcome.SUCCEEDED
    assert data.result == {"ok": True, "apiKey": "[redacted]"}
    assert data.redacted_paths == ["/apiKey"]
    assert data.effect_matches_decision
    assert stage.tool.effects == [action_id("default", "bookkeeper", "k")]


async def test_a_hundred_actions_run_beside_one_another(stage: Stage, pool: asyncpg.Pool[asyncpg.Record]) -> None:
    tool = x.tool_entry()
    await stage.apply(tool)
    async with stage.running():
        await asyncio.gather(*(stage.tokenize(tool, str(n)) for n in range(100)))
        done = "SELECT count(*) FROM control.execution WHERE state = 'succeeded'"
        await eventually(lambda: pool.fetchval(done), 100, within_s=30)
        for n in range(100):
            assert (await stage.until(str(n), "executed")).outcome is Outcome.SUCCEEDED


REFUSED: list[tuple[str, dict[str, Any], Reason]] = [
    ("another executor's key", {"cnf": {"jkt": "A" * 43}}, Reason.TOKEN_INVALID),
    ("another audience", {"aud": "https://remit.example/tools/other"}, Reason.TOKEN_INVALID),
    ("another issuer", {"iss": "https://evil.example"}, Reason.TOKEN_INVALID),
    ("another action", {"txn": "0" * 32}, Reason.TOKEN_INVALID),
    ("another jti", {"jti": "tok_other"}, Reason.TOKEN_INVALID),
]


@pytest.mark.parametrize(("case", "claims", "reason"), REFUSED, ids=[case for case, _, _ in REFUSED])
async def test_a_token_that_does_not_fit_ends_the_action(
    stage: Stage, case: str, claims: dict[str, Any], reason: Reason
) -> None:
    assert case
    tool = stage.tool_entry()
    await stage.apply(tool)
    async with stage.running():
        await stage.tokenize(tool, "k", **claims)
        data = await stage.until("k", "refused")
    assert data.reason is reason
    assert stage.tool.effects == []


async def test_a_stopped_agent_gets_nothing_executed(stage: Stage, pool: asyncpg.Pool[asyncpg.Record]) -> None:
    await pool.execute("UPDATE control.stop SET engaged_at = now() WHERE kind = 'agent'")
    tool = stage.tool_entry()
    await stage.apply(tool)
    async with stage.running():
        await stage.tokenize(tool, "k")
        data = await stage.until("k", "refused")
    assert data.reason is Reason.STOPPED
    assert stage.tool.effects == []


async def test_an_unreachable_tool_ends_the_action_before_it_starts(
    stage: Stage, pool: asyncpg.Pool[asyncpg.Record]
) -> None:
    tool = stage.tool_entry().model_copy(update={"endpoint": "http://127.0.0.1:1"})
    await stage.apply(tool)
    async with stage.running():
        await stage.tokenize(tool, "k")
        data = await stage.until("k", "refused")
    assert data.reason is Reason.TOOL_UNREACHABLE
    assert await pool.fetchval("SELECT count(*) FROM control.execution") == 0


async def test_an_expired_token_is_given_back_twice_and_then_refused(stage: Stage) -> None:
    tool = stage.tool_entry()
    await stage.apply(tool)
    asked: list[bytes] = []

    async def on_redrive(message: Any) -> None:
        asked.append(message.data)

    async with stage.running(), stage.listening("redrive.tokens", on_redrive):
        for attempt in (1, 2, 3):
            await stage.tokenize(tool, "k", attempt=attempt, lifetime_s=1, iat=0, nbf=0, exp=1)
            await eventually(lambda: len(asked), min(attempt, 2))
        data = await stage.until("k", "refused")
    assert data.reason is Reason.TOKEN_EXPIRED
    assert asked == [action_id("default", "bookkeeper", "k").encode()] * 2
    assert stage.tool.effects == []


async def test_without_evidence_nothing_starts_until_the_projector_is_back(
    stage: Stage, pool: asyncpg.Pool[asyncpg.Record]
) -> None:
    await pool.execute("UPDATE control.heartbeat SET at = now() - interval '1 hour'")
    tool = stage.tool_entry()
    await stage.apply(tool)
    async with stage.running():
        state = await stage.tokenize(tool, "k")
        await asyncio.sleep(1.0)
        assert (await stage.last("k")) == state.last
        await pool.execute("UPDATE control.heartbeat SET at = now() + interval '1 hour'")
        assert (await stage.until("k", "executed")).outcome is Outcome.SUCCEEDED
    assert len(stage.tool.effects) == 1


async def test_a_refusal_in_the_claim_is_said_even_when_its_first_teller_died(
    stage: Stage, pool: asyncpg.Pool[asyncpg.Record]
) -> None:
    tool = stage.tool_entry()
    await stage.apply(tool)
    await pool.execute(
        "INSERT INTO control.execution (action_id, remit_id, claim_id, state, reason)"
        " VALUES ($1, $2, 'clm-0', 'refused', 'stopped')",
        action_id("default", "bookkeeper", "k"),
        f.REMIT.remit_id,
    )
    async with stage.running():
        await stage.tokenize(tool, "k")
        assert (await stage.until("k", "refused")).reason is Reason.STOPPED


async def test_a_person_s_revocation_is_left_to_approval(stage: Stage, pool: asyncpg.Pool[asyncpg.Record]) -> None:
    tool = stage.tool_entry()
    await stage.apply(tool)
    await pool.execute(
        "INSERT INTO control.execution (action_id, remit_id, state, reason) VALUES ($1, $2, 'refused', 'revoked')",
        action_id("default", "bookkeeper", "k"),
        f.REMIT.remit_id,
    )
    async with stage.running():
        await stage.tokenize(tool, "k")
        await stage.until("k", "started")
        await stage.tokenize(tool, "other")
        await stage.until("other", "executed")
        assert isinstance(await stage.last("k"), ActionStarted)
    assert len(stage.tool.effects) == 1


async def test_what_another_replica_announced_is_refused_only_with_its_row_occupied(
    stage: Stage, pool: asyncpg.Pool[asyncpg.Record]
) -> None:
    tool = stage.tool_entry().model_copy(update={"endpoint": "http://127.0.0.1:1"})
    await stage.apply(tool)
    await stage.announce(await stage.tokenize(tool, "unreachable"))
    await stage.announce(await stage.tokenize(tool, "expired", lifetime_s=1, iat=0, nbf=0, exp=1))
    async with stage.running():
        assert (await stage.until("unreachable", "refused")).reason is Reason.TOOL_UNREACHABLE
        assert (await stage.until("expired", "refused")).reason is Reason.TOKEN_EXPIRED
    rows = await pool.fetch("SELECT state, reason FROM control.execution ORDER BY reason")
    assert [tuple(row) for row in rows] == [("refused", "token_expired"), ("refused", "tool_unreachable")]


@asynccontextmanager
async def process(stage: Stage, crash: str = "") -> AsyncGenerator[asyncio.subprocess.Process]:
    """Run an executor as its own process, dying at a crash point."""
    env = {f"REMIT_{name.upper()}": str(value) for name, value in stage.settings(keys_dir=stage.keys).items()}
    env |= {"PATH": os.environ["PATH"], "REMIT_CRASH": f"executor:{crash}", "REMIT_LOG_LEVEL": "ERROR"}
    child = await asyncio.create_subprocess_exec(sys.executable, "-m", "services.executor", cwd=ROOT, env=env)
    try:
        yield child
    finally:
        if child.returncode is None:
            child.terminate()
        await child.wait()


CRASHES: list[tuple[str, str, set[Outcome], set[int]]] = [
    ("X0", "none", {Outcome.SUCCEEDED}, {1}),
    ("X1", "none", {Outcome.SUCCEEDED}, {1}),
    ("X2", "none", {Outcome.SUCCEEDED, Outcome.UNKNOWN}, {0, 1}),
    ("X3", "none", {Outcome.UNKNOWN}, {0}),
    ("X4", "none", {Outcome.UNKNOWN}, {1}),
    ("X5", "none", {Outcome.UNKNOWN}, {1}),
    ("X6", "none", {Outcome.SUCCEEDED}, {1}),
    ("X7", "none", {Outcome.SUCCEEDED}, {1}),
    ("X3", "key", {Outcome.SUCCEEDED}, {1}),
    ("X5", "key", {Outcome.SUCCEEDED}, {2}),
]


@pytest.mark.parametrize(("point", "idempotency", "outcomes", "effects"), CRASHES)
async def test_a_crash_never_causes_a_second_effect_and_never_hides_a_doubt(
    stage: Stage,
    pool: asyncpg.Pool[asyncpg.Record],
    point: str,
    idempotency: str,
    outcomes: set[Outcome],
    effects: set[int],
) -> None:
    stage.tool.delay_s = 0.5 if point == "X4" else 0.0
    tool = stage.tool_entry(idempotency=idempotency)
    await stage.apply(tool)
    async with process(stage, point) as child:
        await stage.tokenize(tool, "k")
        await eventually(lambda: child.returncode, 9, within_s=30)
    await pool.execute("UPDATE control.execution SET deadline = clock_timestamp() WHERE state = 'in_flight'")
    async with stage.running():
        await stage.redrive("k")
        data = await stage.until("k", "executed", within_s=30)
        await eventually(lambda: outbox_is_empty(pool))
    assert data.outcome in outcomes
    assert len(stage.tool.effects) in effects
    assert len(set(stage.tool.effects)) <= 1
    if data.outcome is Outcome.UNKNOWN:
        assert data.error == "interrupted"


async def test_a_late_answer_of_an_interrupted_call_resolves_the_doubt(
    stage: Stage, pool: asyncpg.Pool[asyncpg.Record]
) -> None:
    stage.tool.delay_s = 2.0
    tool = stage.tool_entry(timeout_s=10.0)
    await stage.apply(tool)
    async with stage.running():
        await stage.tokenize(tool, "k")
        await eventually(lambda: len(stage.tool.effects), 1)
        await pool.execute("UPDATE control.execution SET deadline = clock_timestamp()")
        assert (await stage.until("k", "executed")).outcome is Outcome.UNKNOWN

        async def outcome() -> Outcome:
            return (await stage.until("k", "executed")).outcome

        await eventually(outcome, Outcome.SUCCEEDED)
    assert len(stage.tool.effects) == 1

"""Replicas of one service share the work and never do the same thing twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.live_stage import concluded, live_stage
from tests.support.storm import ONCE, storm_over

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.live_stage import Live

pytestmark = pytest.mark.timeout(90)

SCALE = {"intake": 2, "policy": 3, "executor": 2}
CALLS = 120


@pytest.fixture(scope="module")
async def crowd(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Live]:
    """A stage with replicas."""
    async with live_stage(tmp_path_factory.mktemp("crowd"), scale=SCALE) as running:
        yield running


async def handled(live: Live, instance: str) -> float:
    """Return how many messages of its own durable one instance says it has handled to the end."""
    async with httpx.AsyncClient(trust_env=False) as http:
        text = (await http.get(f"http://127.0.0.1:{live.stage.supervisor.port(instance)}/metrics")).text
    families = text_string_to_metric_families(text)
    samples = [sample for family in families for sample in family.samples]
    own = {"durable": instance.partition("-")[0], "result": "ok"}
    return sum(s.value for s in samples if s.name == "remit_messages_handled_total" and s.labels == own)


async def test_replicas_share_the_work_and_process_no_action_twice(crowd: Live) -> None:
    storm = await storm_over(crowd)
    calls = [crowd.agent.propose("bank.get_balance", {}, remit=storm.remit) for _ in range(CALLS)]
    answers = [concluded(answer) for answer in await asyncio.gather(*calls)]
    assert {answer.outcome for answer in answers} == {"succeeded"}
    await storm.settle()

    instances = [f"{name}-{number}" for name, count in SCALE.items() for number in range(1, count + 1)]
    shares = {instance: await handled(crowd, instance) for instance in instances}
    assert [instance for instance, share in shares.items() if share == 0] == []
    assert {
        name: sum(shares[f"{name}-{n + 1}"] for n in range(count)) for name, count in SCALE.items()
    } == dict.fromkeys(SCALE, CALLS)

    assert await storm.events() == {answer.action_id: Counter(ONCE) for answer in answers}
    assert await storm.effects() == Counter(answer.action_id for answer in answers)
    assert await storm.claims() == (CALLS, CALLS)

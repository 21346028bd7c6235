"""Claims beside people who grant, revoke, deny and stop without a pause: how long they wait, and that nobody deadlocks.

`REMIT_RACE_RUNS` makes it longer. Source: design, bus section 11 (FOR SHARE over the stop rows).
"""

from __future__ import annotations

import asyncio
import os
import statistics
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from remit.clock import monotonic
from remit.ids import fresh_key, remit_id
from remit.reasons import Reason
from services.approval.remit_store import RemitStore
from services.executor.claims import CLAIMED
from tests.security.arena import tell
from tests.support import factories as f
from tests.support.fence import agent_of, fenced, order_under
from tests.support.postgres import postgres

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.support.fence import Fence

SECONDS = min(20.0, 0.25 * int(os.environ.get("REMIT_RACE_RUNS", "8")))
CLAIMERS, PEOPLE = 8, 4
CALM, STOPPED = "rem_calm", "rem_stopped"
DEADLOCKS = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
async def on(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fence]:
    async with postgres(tmp_path_factory.mktemp("postgres")) as url, fenced(url) as found:
        await found.admit(CALM)
        await found.admit(STOPPED)
        yield found


class Beside:
    """What people do while claims run, counted; none of it concerns the remit whose claims are timed."""

    def __init__(self, on: Fence) -> None:
        self.on, self.remits, self.done = on, RemitStore(on.actions._db), Counter[str]()

    async def grant_and_revoke(self) -> None:
        document = f.REMIT.model_copy(update={"remit_id": remit_id(f.EMMA.iss, f.EMMA.sub, fresh_key())})
        await self.remits.create(document, f.REMIT_DIGEST, email=None)
        await self.remits.end(document.remit_id, digest=f.REMIT_DIGEST, reason="x", by=f.EMMA)

    async def stop_and_lift(self) -> None:
        for stop in (("agent", agent_of(STOPPED)), ("remit", STOPPED)):
            await self.on.switches.engage(stop, reason="x", by=f.DANA)
            await self.on.switches.lift(stop, reason="x", by=f.DANA)

    async def deny(self) -> None:
        await self.on.halt(STOPPED, Reason.BLOCKED)

    async def claim_what_is_stopped(self) -> None:
        await self.on.store.claim(order_under(STOPPED, fresh_key()), "clm")

    async def run(self, work: Callable[[], Awaitable[Any]]) -> None:
        while True:
            await work()
            self.done[getattr(work, "__name__", "")] += 1


async def claim_for(on: Fence, seconds: float) -> list[float]:
    """Claim from several tasks for some seconds and return how long each claim took, in milliseconds."""
    spent: list[float] = []
    until = monotonic() + seconds

    async def work() -> None:
        while monotonic() < until:
            begun = monotonic()
            assert await on.store.claim(order_under(CALM, fresh_key()), "clm") == CLAIMED
            spent.append((monotonic() - begun) * 1000)

    await asyncio.gather(*(work() for _ in range(CLAIMERS)))
    return spent


def figures(spent: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(spent, n=100)
    return {
        "claims": len(spent),
        "p50_ms": round(cuts[49], 1),
        "p99_ms": round(cuts[98], 1),
        "max_ms": round(max(spent), 1),
    }


async def test_claims_neither_deadlock_nor_starve_beside_people_who_never_stop(on: Fence) -> None:
    quiet = await claim_for(on, SECONDS)
    beside = Beside(on)
    works = (beside.grant_and_revoke, beside.stop_and_lift, beside.deny, beside.claim_what_is_stopped)
    async with asyncio.timeout(SECONDS * 4 + 20), asyncio.TaskGroup() as group:
        tasks = [group.create_task(beside.run(work)) for work in works for _ in range(PEOPLE // 2)]
        busy = await claim_for(on, SECONDS)
        for task in tasks:
            task.cancel()
    # The server's own count is published with a delay of up to a second.
    await asyncio.sleep(1.1)
    deadlocks = await on.pool.fetchval(DEADLOCKS)
    tell(
        "claim_latency",
        {"quiet": figures(quiet), "busy": figures(busy), "beside": dict(beside.done), "deadlocks": deadlocks},
    )
    assert deadlocks == 0
    assert min(beside.done[work.__name__] for work in works) > 0
    # Generous, for a shared machine: a claim that starves waits for seconds (ARCHITECTURE, decision 12).
    assert max(busy) < 2000.0

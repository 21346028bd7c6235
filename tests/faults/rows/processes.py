"""Rows 1 and 2: the processes die, one at every crash point, and many at random."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

from remit.clock import monotonic
from tests.faults.row import Row
from tests.faults.schedule import POINTS
from tests.faults.world import Options
from tests.support.storm import at_work

if TYPE_CHECKING:
    from tests.faults.row import Trial
    from tests.faults.world import World

ACTIONS_A_CRASH = 6
STRIKES_WITHIN_S = 20.0
NUDGE_S = 0.15


async def every_point(trial: Trial) -> None:
    """Row 1: each service dies at each of its points, once, while calls are under way; exhaustive."""
    async with trial.world() as world:
        for service, points in POINTS.items():
            for point in points:
                await one_crash(trial, world, service, point, nth=trial.random.randint(1, 3))
                await trial.judge(world, whole=False)
            trial.say(f"{service} died at {', '.join(points)}")
        await trial.judge(world)


async def one_crash(trial: Trial, world: World, service: str, point: str, *, nth: int) -> None:
    """Arm a point, propose, and wait until it has struck; more is proposed until it does."""
    world.arm(service, point, nth)
    await world.workload.propose(ACTIONS_A_CRASH)
    deadline = monotonic() + STRIKES_WITHIN_S
    while world.is_armed(service):
        if monotonic() > deadline:
            world.disarm(service)
            trial.check("row 1", ok=False, detail=f"{service} never passed {point} {nth} times")
            return
        await asyncio.sleep(NUDGE_S)
        await world.workload.propose(1, mix=("wire", "send"))
    trial.tally.crashes += 1


async def random_kills(trial: Trial) -> None:
    """Row 2: for a minute, random replicas are killed with two or three of each service."""
    replicas = {name: trial.random.randint(2, 3) for name in ("intake", "policy", "approval", "tokens", "executor")}
    async with trial.world(Options(replicas={**replicas, "audit": 2})) as world:
        async with at_work(world.workload.run(0.05)):
            for _ in range(40):
                await asyncio.sleep(trial.random.uniform(0.2, 1.5))
                service = trial.random.choice([*replicas, "audit"])
                pids = world.services.pids(service)
                if pids:
                    os.kill(trial.random.choice(pids), signal.SIGKILL)
                    trial.tally.crashes += 1
        await world.services.ready(60)
        await trial.judge(world)


ROWS = (
    Row(number=1, title="kill -9 at every crash point of every service", run=every_point, release=True),
    Row(number=2, title="kill -9 of random replicas", run=random_kills),
)

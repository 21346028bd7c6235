"""Thousands of seeded crash runs: `python -m tests.faults.crashes --runs 10000`. Ends with `RESULT crashes {json}`.

A run is the schedule of one seed: one to three services die at a crash point, are killed, or stand still, while a handful of
calls is under way; then every call must come to its end, once, with its claim before its effect. Several runs share a world at
a time and a service is on trial for one of them only; every `--rotate` runs the whole ledger is proved, and a new world begins.
A single seed runs again alone with `--seed N --runs 1`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import math
import os
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from remit.clock import monotonic
from tests.faults.__main__ import STOPPED, concluded, say, until_stopped
from tests.faults.evidence import gather
from tests.faults.invariants import judge
from tests.faults.row import Tally
from tests.faults.schedule import schedule
from tests.faults.workload import Stuck
from tests.faults.world import SERVICES, Options, World
from tests.faults.world_proof import broken_in_the_end
from tests.support.storm import at_work

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults.schedule import Fault, Schedule
    from tests.faults.workload import Sent

SETTLE_S = 90.0
STRIKE_S = 20.0
NUDGE_S = 0.25
POLL_S = 0.25
REPORT_EVERY = 50
WEATHER_S = (4.0, 12.0)
"""Between two faults of a server."""
HARD = 0.7
"""Share of them that are kill -9."""
SMALL = Options(settings={name: {"REMIT_WORKERS": "4", "REMIT_LOG_LEVEL": "ERROR"} for name in SERVICES})


@dataclass(slots=True)
class Campaign:
    """What was run so far, over all worlds."""

    seeds: Iterator[int]
    until: float
    """When no further run begins, by the monotonic clock."""
    rotate: int
    lanes: int
    servers: bool
    keep: bool
    tally: Tally = field(default_factory=Tally)
    points: Counter[str] = field(default_factory=Counter[str])
    began: float = field(default_factory=monotonic)
    starting: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def world(self, number: int) -> None:
        """Run seeds in one world after another until there are none left."""
        for life in itertools.count(1):
            seeds = list(itertools.islice(self.seeds, self.rotate))
            if not seeds or monotonic() > self.until:
                return
            directory = Path(tempfile.mkdtemp(prefix=f"rc{number}-{life}-"))
            before = len(self.tally.violations)
            async with contextlib.AsyncExitStack() as stack:
                async with self.starting:  # alembic migrates one database of a process at a time
                    chance = random.Random(f"world:{seeds[0]}")  # noqa: S311  (reproducible)
                    world = await stack.enter_async_context(World(directory, chance, SMALL))
                async with at_work(*([self._weather(world, seeds[0])] if self.servers else [])):
                    await self._runs(world, seeds)
                await self._prove(world, seeds)
            if len(self.tally.violations) == before and not self.keep:
                shutil.rmtree(directory, ignore_errors=True)
            else:
                say(f"what is left lies in {directory}")

    async def _runs(self, world: World, seeds: list[int]) -> None:
        queue, locks = iter(seeds), {name: asyncio.Lock() for name in SERVICES}

        async def lane() -> None:
            for seed in queue:
                if monotonic() > self.until:
                    return
                await self._run(world, locks, seed)
                if self.tally.runs % REPORT_EVERY == 0:
                    self.report()

        await asyncio.gather(*(lane() for _ in range(self.lanes)))

    async def _run(self, world: World, locks: dict[str, asyncio.Lock], seed: int) -> None:
        chance = random.Random(f"twice:{seed}")  # noqa: S311  (reproducible)
        try:
            await CrashRun(self, world, locks, schedule(seed), chance).run()
        except Exception as error:  # noqa: BLE001  (this seed failed, the others still tell something)
            self.tally.violations.append(f"seed {seed}: {type(error).__name__}: {error}")

    async def _weather(self, world: World, seed: int) -> None:
        """Kill or restart one of the servers again and again, with time between to recover."""
        chance = random.Random(f"weather:{seed}")  # noqa: S311  (reproducible)
        nats, postgres = world.environment.nats, world.environment.postgres
        assert nats is not None
        assert postgres is not None
        while True:
            await asyncio.sleep(chance.uniform(*WEATHER_S))
            server, hard = chance.choice((nats, postgres)), chance.random() < HARD
            self.points[f"{'nats' if server is nats else 'postgres'}:{'kill' if hard else 'restart'}"] += 1
            await (server.kill() if hard else server.stop())
            await asyncio.sleep(chance.random())
            await server.start()

    async def _prove(self, world: World, seeds: list[int]) -> None:
        found: list[str] = []
        try:
            await world.workload.settle(SETTLE_S)
        except Stuck as error:
            found.append(f"I11: {error}")
        # What a later crash or a late redelivery did to an action that was judged long ago shows only now.
        everything = judge(await gather(world, list(world.workload.sent.values())))
        found.extend(f"{invariant}: {detail}" for invariant, detail in everything.violations)
        found.extend([] if everything.effects else ["nothing had an effect"])
        found.extend(f"I5: {detail}" for detail in await broken_in_the_end(world))
        self.tally.violations.extend(f"world of seeds {seeds[0]}-{seeds[-1]}: {each}" for each in found)

    def report(self) -> None:
        """Say how far it is."""
        spent, tally = monotonic() - self.began, self.tally
        say(
            f"{tally.runs} runs, {tally.actions} actions, {tally.crashes} crashes in {spent:.0f} s "
            f"({tally.runs / spent:.1f} runs/s); {len(tally.violations)} violations"
        )


@dataclass(slots=True)
class CrashRun:
    """One seed in a world."""

    campaign: Campaign
    world: World
    locks: dict[str, asyncio.Lock]
    plan: Schedule
    chance: random.Random
    """The run's own, so that a seed makes the same choices whatever runs beside it."""
    sent: list[Sent] = field(default_factory=list["Sent"])

    async def run(self) -> None:
        """Break, propose, wait, judge."""
        async with contextlib.AsyncExitStack() as stack:
            for fault in sorted(
                self.plan.faults, key=lambda fault: fault.service
            ):  # in one order, or two runs wait for each other
                await stack.enter_async_context(self.locks[fault.service])
            async with asyncio.TaskGroup() as group:
                for fault in self.plan.faults:
                    group.create_task(self._inject(fault))
                for action, delay_ms in zip(self.plan.actions, self.plan.delays_ms, strict=True):
                    self._propose(action, delay_ms)
                    await asyncio.sleep(0.005)
        stuck = await self._concluded()
        verdict = judge(await gather(self.world, self.sent))
        if stuck:
            verdict.add("I1", [f"not concluded after {SETTLE_S:g} s: {sorted(stuck)}"])
        self.campaign.tally.add(verdict, f"seed {self.plan.seed}")
        for invariant, detail in verdict.violations:
            say(f"VIOLATION seed {self.plan.seed}: {invariant}: {detail}")

    def _propose(self, action: str, delay_ms: int) -> None:
        number = len(self.world.workload.sent)
        arguments = {"n": number, "note": f"seed {self.plan.seed}", "delay_ms": delay_ms}
        self.sent.append(self.world.workload.begin(action, arguments, chance=self.chance))

    async def _inject(self, fault: Fault) -> None:
        tally, points = self.campaign.tally, self.campaign.points
        if fault.kind == "point":
            self.world.arm(fault.service, fault.point, fault.nth)
            if await self._struck(fault):
                tally.crashes += 1
                points[f"{fault.service}:{fault.point}"] += 1
            return
        await asyncio.sleep(fault.after_s)
        if fault.kind == "kill":
            for pid in self.world.services.pids(fault.service):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    tally.crashes += 1
                    points[f"{fault.service}:kill"] += 1
        else:
            with self.world.paused(fault.service):
                await asyncio.sleep(fault.for_s)
            points[f"{fault.service}:pause"] += 1

    async def _struck(self, fault: Fault) -> bool:
        """Wait until an armed point has struck, with a further call now and then; what is rare is taken back in the end."""
        deadline, pause = monotonic() + STRIKE_S, NUDGE_S
        while self.world.is_armed(fault.service):
            await asyncio.sleep(pause)
            pause *= 1.5
            if monotonic() > deadline:
                self.campaign.points[f"{fault.service}:{fault.point} unreached"] += 1
                return not self.world.disarm(fault.service)
            self._propose("wire" if fault.service == "approval" else "send", 5)
        return True

    async def _concluded(self) -> set[str]:
        deadline = monotonic() + SETTLE_S
        while True:
            open_ones = await self.world.workload.unfinished(self.sent)
            if not open_ones or monotonic() > deadline:
                return open_ones
            await asyncio.sleep(POLL_S)


async def run(options: argparse.Namespace) -> Campaign:
    """Share the seeds among the worlds."""
    seeds, until = iter(range(options.seed, options.seed + options.runs)), monotonic() + options.minutes * 60
    rotate = min(options.rotate, -(-options.runs // options.worlds))
    campaign = Campaign(
        seeds=seeds, until=until, rotate=rotate, lanes=options.lanes, servers=options.servers, keep=options.keep
    )
    await asyncio.gather(*(campaign.world(number) for number in range(1, options.worlds + 1)))
    return campaign


def main() -> int:
    """Parse, run, print the result; exit code 1 when an invariant did not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.crashes", description=__doc__)
    parser.add_argument("--runs", type=int, default=200, help="seeds to run (default 200)")
    parser.add_argument("--seed", type=int, default=1, help="first seed")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no further run after so many minutes")
    parser.add_argument("--worlds", type=int, default=2, help="installations at a time")
    parser.add_argument("--lanes", type=int, default=6, help="runs at a time in each of them")
    parser.add_argument(
        "--rotate", type=int, default=500, help="runs before the ledger is proved and a new world begins"
    )
    parser.add_argument(
        "--servers", action="store_true", help="kill and restart NATS and Postgres too, at random (soak)"
    )
    parser.add_argument("--keep", action="store_true", help="keep the directory of every world")
    options = parser.parse_args()
    campaign = until_stopped(run(options))
    if campaign is None:
        return STOPPED
    say("crashes by point: " + ", ".join(f"{name} {count}" for name, count in sorted(campaign.points.items())))
    figures = {"first_seed": options.seed, **campaign.tally.figures(), "seconds": round(monotonic() - campaign.began)}
    return concluded("soak" if options.servers else "crashes", figures, campaign.tally)


if __name__ == "__main__":
    sys.exit(main())

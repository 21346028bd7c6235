"""A row of the fault matrix, and one seeded run of it: what happened, what was checked, what it came to."""

from __future__ import annotations

import asyncio
import random
import shutil
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.faults.evidence import gather
from tests.faults.invariants import Verdict, judge
from tests.faults.workload import Stuck
from tests.faults.world import Options, World
from tests.faults.world_proof import broken_in_the_end

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from pathlib import Path

SETTLE_S = 60.0
FIGURES = ("runs", "actions", "effects", "crashes", "unknown", "duplicates", "lost", "unrecorded")
USUAL = Options()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One fault: number and title as in the matrix; `run` injects it and judges, `needs` names what the machine must allow."""

    number: int
    title: str
    run: Callable[[Trial], Awaitable[None]]
    release: bool = False
    quick: bool = False
    needs: tuple[str, ...] = ()


@dataclass(slots=True)
class Tally:
    """Sums over runs: what `RESULT faults` prints."""

    runs: int = 0
    actions: int = 0
    effects: int = 0
    unknown: int = 0
    crashes: int = 0
    duplicates: int = 0
    lost: int = 0
    unrecorded: int = 0
    violations: list[str] = field(default_factory=list[str])

    def add(self, verdict: Verdict, where: str) -> None:
        """Add one run."""
        self.runs += 1
        self.actions += verdict.actions
        self.effects += verdict.effects
        self.unknown += verdict.unknown
        self.duplicates += verdict.duplicates
        self.lost += verdict.lost
        self.unrecorded += verdict.unrecorded
        self.violations.extend(f"{where}: {invariant}: {detail}" for invariant, detail in verdict.violations)

    def figures(self) -> dict[str, int]:
        """Return what the result line says, without the time."""
        return {**{name: getattr(self, name) for name in FIGURES}, "invariant_violations": len(self.violations)}

    def add_figures(self, figures: dict[str, int]) -> None:
        """Add what another process's result line says; its violations come line by line."""
        for name in FIGURES:
            setattr(self, name, getattr(self, name) + figures[name])


@dataclass(slots=True)
class Trial:
    """One run of a row under one seed; `random` is its only source of chance."""

    row: Row
    seed: int
    directory: Path
    tally: Tally
    tell: Callable[[str], None]
    keep: bool = False
    random: random.Random = field(init=False)
    _worlds: int = 0

    def __post_init__(self) -> None:
        """Derive the run's randomness from row and seed."""
        self.random = random.Random(f"{self.row.number}:{self.seed}")  # noqa: S311  (reproducible on purpose)

    @property
    def where(self) -> str:
        """How to come back to this run."""
        return f"row {self.row.number} seed {self.seed}"

    def say(self, text: str) -> None:
        """Tell what is going on, one line."""
        self.tell(f"row {self.row.number}: {text}")

    def check(self, invariant: str, ok: bool, detail: str) -> None:
        """Record a violation when something does not hold; the run goes on."""
        if not ok:
            self.tally.violations.append(f"{self.where}: {invariant}: {detail}")
            self.say(f"VIOLATION {invariant}: {detail}")

    @asynccontextmanager
    async def world(self, options: Options = USUAL) -> AsyncGenerator[World]:
        """Start a world of this run's own; its directory goes when nothing was violated."""
        self._worlds += 1
        directory = self.directory / f"w{self._worlds}"
        before = len(self.tally.violations)
        # The workload's chance is its own: which task asks first must not change which faults are drawn.
        chance = random.Random(f"{self.row.number}:{self.seed}:{self._worlds}")  # noqa: S311  (reproducible)
        async with World(directory, chance, options) as running:
            yield running
        if not self.keep and len(self.tally.violations) == before:
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)

    async def judge(self, world: World, *, within_s: float = SETTLE_S, whole: bool = True) -> Verdict:
        """After the heal: wait for liveness, then check every invariant.

        `whole` looks at everything since the world began, at the entire ledger, and whether new calls still have their effect.
        """
        stuck = ""
        try:
            await world.workload.settle(within_s)
        except Stuck as error:
            stuck = str(error)
        fresh = world.workload.take()
        verdict = judge(await gather(world, fresh))
        if stuck:
            verdict.add("I11", [stuck])
        if whole:
            verdict.add("I5", await broken_in_the_end(world))
            verdict.add("I1", await self._useless(world))
            everything = judge(await gather(world, list(world.workload.sent.values())))
            verdict.violations.extend(each for each in everything.violations if each not in verdict.violations)
        self.tally.add(verdict, self.where)
        for invariant, detail in verdict.violations:
            self.say(f"VIOLATION {invariant}: {detail}")
        return verdict

    @staticmethod
    async def _useless(world: World) -> list[str]:
        """Say what is wrong when nothing had an effect so far, or new calls have none: refusing everything is no survival."""
        found = [] if any(each.kind == "effect" for each in await world.effects()) else ["nothing had an effect"]
        calls = await world.workload.propose(2, mix=("send", "pay"))
        try:
            await world.workload.settle(SETTLE_S)
        except Stuck as error:
            return [*found, str(error)]
        done = {each.key for each in await world.effects() if each.kind == "effect"}
        return [
            *found,
            *(f"{call.action} after the heal had no effect" for call in calls if call.action_id not in done),
        ]

"""Rows 21, 30, 38: clocks that are wrong and jump, approvals that outlive every process, event loops that stand still."""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta
from typing import TYPE_CHECKING

from remit.clock import now
from remit.commands import DenyCommand
from tests.faults.rigs import hang
from tests.faults.rigs.clock import Clock
from tests.faults.row import Row
from tests.faults.world import SERVICES, Options
from tests.support.storm import at_work
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from datetime import datetime

    from tests.faults.row import Trial
    from tests.faults.workload import Sent
    from tests.faults.world import World

PACE_S = 0.06
JUDGES = ("tokens", "approval", "executor")
"""Whose clocks go wrong: they make tokens, deadlines and decisions about both."""
WRONG_S = 600.0
SHORT_LIFE_S = 12.0
ASKED_FOR_S = 12.0
"""How long people have in row 21, by approval's own setting."""
PATIENCE_S = 45.0
"""The same in row 30: long enough to be restarted within, short enough to be waited for."""
LOOP_STARVED = 71
STARVED_WITHIN_S = 30.0
CALLED_LATE = """
    select count(*) from control.execution where remit_id = $1 and state <> 'refused' and claimed_at > $2
"""
OPEN = "select count(*) from audit.actions_all where action_id = any($1) and last_type = 'approval_requested'"
OPEN_NOW = "select action_id from audit.actions_all where last_type = 'approval_requested'"
ENDS = """
    select coalesce(terminal, 'nowhere') as ended, count(*) as number from audit.actions_all
    where action_id = any($1) group by 1
"""


async def wrong_clocks(trial: Trial) -> None:
    """Row 21: clocks are ten minutes ahead or behind, one or all of them, and jump back and forth while calls are under way.

    By the servers' time nothing may be claimed after its remit ended, and nothing executed that people agreed to too late.
    """
    clocks = {name: Clock(trial.directory / f"{name}.clock") for name in JUDGES}
    options = Options(
        prefix={name: clock.prefix() for name, clock in clocks.items()},
        settings={"approval": {"REMIT_APPROVAL_TIMEOUT_S": str(ASKED_FOR_S)}},
    )
    async with trial.world(options) as world:
        ends = now() + timedelta(seconds=SHORT_LIFE_S)
        short = await world.grant(expires_at=ends.isoformat())
        unanswered = await world.grant()
        late = [
            world.workload.begin("ask", {"n": n, "note": "nobody answers in time"}, remit=unanswered) for n in range(4)
        ]
        async with at_work(world.workload.run(PACE_S), on_remit(world, short)):
            await eventually(lambda: world.admin.fetchval(OPEN, _ids(late)), len(late), within_s=20)
            set_all(clocks, -WRONG_S)
            await asyncio.sleep(max(0.0, (ends - now()).total_seconds()) + 9)
            trial.say("all clocks ten minutes behind; remit and deadlines have passed by the servers' time")
            world.workload.remits.append(unanswered)  # Dana agrees from now on
            await asyncio.sleep(2)
            await jump_about(trial, clocks)
        await answer_open(world)
        await trial.judge(world)
        called = await world.admin.fetchval(CALLED_LATE, short, ends)
        trial.check("I10", called == 0, f"{called} calls of {short} were claimed after it had ended")
        effects = {effect.key for effect in await world.effects()} & set(_ids(late))
        trial.check("I3", not effects, f"{len(effects)} calls were made although people agreed after their deadline")


async def jump_about(trial: Trial, clocks: dict[str, Clock]) -> None:
    """Move one clock after the other, in the end all ahead and back to the true time."""
    for _ in range(6):
        name, offset = trial.random.choice(JUDGES), trial.random.choice([WRONG_S, -WRONG_S, 0.0])
        clocks[name].set(offset)
        trial.say(f"{name} is {offset:+.0f} s off")
        await asyncio.sleep(trial.random.uniform(1, 3))
    set_all(clocks, WRONG_S)
    await asyncio.sleep(3)
    set_all(clocks, 0)
    await asyncio.sleep(2)


async def answer_open(world: World) -> None:
    """Deny what is still open: Dana's answers were refused while approval's clock said that her login had expired."""
    await asyncio.sleep(1)
    for row in await world.admin.fetch(OPEN_NOW):
        await world.people.command("dana", DenyCommand, action_id=row["action_id"], reason="asked by a wrong clock")


async def on_remit(world: World, remit: str) -> None:
    """Propose for ever on a remit that is about to end."""
    number = 0
    while True:
        number += 1
        world.workload.begin("pay", {"n": number, "note": "on the short remit"}, remit=remit)
        await asyncio.sleep(PACE_S * 3)


def set_all(clocks: dict[str, Clock], offset_s: float) -> None:
    """Move every clock at once."""
    for clock in clocks.values():
        clock.set(offset_s)


def _ids(sent: list[Sent]) -> list[str]:
    return [each.action_id for each in sent]


async def outlived(trial: Trial) -> None:
    """Row 30: open approvals survive the end of every process; what expires while everything is down is refused, never done."""
    options = Options(
        replicas=dict.fromkeys(SERVICES, 1),
        settings={"approval": {"REMIT_APPROVAL_TIMEOUT_S": str(PATIENCE_S)}},
    )
    async with trial.world(options) as world:
        approved, expired = await world.grant(), await world.grant()
        asked = await ask(world, approved)
        await everything_killed(trial, world)
        world.workload.remits.append(approved)
        await world.workload.settle()
        ended = await ends(world, asked)
        trial.check("I1", ended == {"executed": len(asked)}, f"approved after the restart, they ended {ended}")
        asked, at = await ask(world, expired), now()
        await nothing_runs(trial, world, until=at + timedelta(seconds=PATIENCE_S + 1))
        world.workload.remits.append(expired)  # Dana agrees at once, and too late
        await trial.judge(world)
        ended = await ends(world, asked)
        trial.check("I10", ended == {"refused": len(asked)}, f"expired while all was down, they ended {ended}")
        done = {effect.key for effect in await world.effects()} & set(_ids(asked))
        trial.check("I10", not done, f"{len(done)} calls were made after their approval had expired")


async def ask(world: World, remit: str) -> list[Sent]:
    """Begin calls that people must agree to, on a remit whose questions nobody answers yet."""
    asked = [world.workload.begin("ask", {"n": n, "note": "wait"}, remit=remit) for n in range(6)]
    await eventually(lambda: world.admin.fetchval(OPEN, _ids(asked)), len(asked), within_s=20)
    return asked


async def ends(world: World, sent: list[Sent]) -> dict[str, int]:
    """Return how many ended by which event."""
    return {row["ended"]: row["number"] for row in await world.admin.fetch(ENDS, _ids(sent))}


async def everything_killed(trial: Trial, world: World) -> None:
    """Kill the servers and every service in one go, and let them come back."""
    environment = world.environment
    assert environment.postgres is not None
    assert environment.nats is not None
    await environment.postgres.kill()
    await environment.nats.kill()
    await asyncio.gather(*(world.kill(name) for name in SERVICES))
    trial.tally.crashes += len(SERVICES) + 2
    await environment.postgres.start()
    await environment.nats.start()
    await world.services.ready(60)


async def nothing_runs(trial: Trial, world: World, *, until: datetime) -> None:
    """Stop every service and both servers until a moment has passed."""
    environment = world.environment
    assert environment.postgres is not None
    assert environment.nats is not None
    for name in trial.random.sample(SERVICES, len(SERVICES)):
        await world.services.scale(name, 0)
    await environment.nats.stop()
    await environment.postgres.stop()
    await asyncio.sleep(max(0.0, (until - now()).total_seconds()))
    await environment.postgres.start()
    await environment.nats.start()
    for name in trial.random.sample(SERVICES, len(SERVICES)):
        await world.services.scale(name, 1)
    await world.services.ready(60)


async def starved(trial: Trial) -> None:
    """Row 38: the main thread of every service spins or waits for ever; each ends itself with 71 within 30 s and comes back."""
    async with trial.world(Options(natural_time=True, prefix=dict.fromkeys(SERVICES, hang.PREFIX))) as world:
        async with at_work(world.workload.run(PACE_S * 5)):
            await asyncio.sleep(2)
            for name in SERVICES:
                trap = trial.random.choice([hang.SPIN, hang.DEADLOCK])
                for pid in world.services.pids(name):
                    os.kill(pid, trap)
                trial.say(f"{name}: {trap.name}")
            await eventually(lambda: all(world.services.restarts(name) for name in SERVICES), within_s=STARVED_WITHIN_S)
            trial.tally.crashes += len(SERVICES)
            exits = {status.name: status.last_exit for status in world.services.status() if status.name in SERVICES}
            trial.check("I11", set(exits.values()) == {LOOP_STARVED}, f"starved services ended with {exits}")
            await world.services.ready(60)
        await trial.judge(world, within_s=90)


ROWS = (
    Row(
        number=21, title="clocks ten minutes off and jumping back", run=wrong_clocks, release=True, needs=("faketime",)
    ),
    Row(number=30, title="approvals outlive every process; expiry while all is down", run=outlived),
    Row(number=38, title="event loops starved and deadlocked", run=starved, release=True),
)

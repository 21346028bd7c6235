"""Rows 3, 17, 36: zombies that come back, tools that are slow or hang, and a projector that dies in the middle of a batch."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import orjson

from infra.provision import provision
from remit.clock import monotonic
from remit.runtime.settings import ServiceSettings
from services.audit import rebuild
from services.audit.database import LOCK_KEY
from tests.faults import oracle
from tests.faults.compressed import ACK_WAIT_S
from tests.faults.row import Row
from tests.faults.world import Options
from tests.support.servers import connected
from tests.support.storm import at_work
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from tests.faults.row import Trial
    from tests.faults.world import World

PACE_S = 0.1
TAKEOVER_S = 34.0
"""Longer than Postgres leaves an idle session its lock (`audit.database.IDLE_LIMIT`, 30 s)."""
HOLDERS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND objid::bigint = $1 AND classid = 0"
POINTS = ("P", "a", "d", "e")
"""Of the projector: inside its transaction, before it, after its commit, after its acknowledgement."""
SLOW_S = 3 * ACK_WAIT_S
"""A call that the broker would deliver again twice, if nobody said that it is in progress."""
MEMORY_MIB = 96
"""What a service may grow by while calls pile up: an order of magnitude above the messages it may hold."""


async def zombies(trial: Trial) -> None:
    """Row 3: executors are stopped for longer than ack_wait, an active projector for longer than its lock; then they go on."""
    async with trial.world(Options(replicas={"executor": 2, "audit": 2})) as world:
        async with at_work(world.workload.run(PACE_S)):
            await eventually(lambda: holders(world), 1)
            active = await active_projector(world)
            others = asyncio.create_task(stopped_executors(trial, world, for_s=TAKEOVER_S))
            with world.paused(active):
                await others
                await eventually(lambda: moved_on(world), within_s=20)
            trial.say(f"{active} was stopped for {TAKEOVER_S:g} s and more, its standby took over")
            await stopped_executors(trial, world, for_s=4)
        await trial.judge(world)
        trial.check("I5", await holders(world) == 1, "not exactly one projector holds the lock")


async def stopped_executors(trial: Trial, world: World, *, for_s: float) -> None:
    """Stop one executor or the other, each time for longer than the broker waits for it."""
    deadline = monotonic() + for_s
    while monotonic() < deadline:
        with world.paused(trial.random.choice(["executor-1", "executor-2"])):
            await asyncio.sleep(ACK_WAIT_S * trial.random.uniform(1.1, 2))
        trial.tally.crashes += 1
        await asyncio.sleep(trial.random.uniform(0.2, 1))


async def holders(world: World) -> int:
    """Return how many sessions hold the projector's lock."""
    return await world.admin.fetchval(HOLDERS, LOCK_KEY)


async def active_projector(world: World) -> str:
    """Return the instance whose session holds the lock."""
    name = f"""
        SELECT a.application_name FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)
        WHERE locktype = 'advisory' AND granted AND objid::bigint = {LOCK_KEY} AND classid = 0
    """
    return await world.admin.fetchval(name)


async def moved_on(world: World) -> bool:
    """Return whether the evidence is young again."""
    return bool(
        await world.admin.fetchval(
            "SELECT clock_timestamp() - at < interval '3 s' FROM control.heartbeat WHERE service = 'audit'"
        )
    )


async def slow_tool(trial: Trial) -> None:
    """Row 17: calls take three times ack_wait and still are delivered once; more wait than the executor may run at once."""
    with mock.patch.object(oracle, "TIMEOUT_S", 2 * SLOW_S):
        async with trial.world() as world:
            before = await deliveries(world)
            calls = [world.workload.begin("send", slow(number)) for number in range(12)]
            await eventually(lambda: all(call.stored for call in calls))
            await trial.judge(world)
            delivered = await deliveries(world) - before
            trial.check("I2", delivered == len(calls), f"{len(calls)} slow calls were delivered {delivered} times")


def slow(number: int) -> dict[str, object]:
    """Return arguments of a call that takes about `SLOW_S`: the oracle waits for two random parts of its delay."""
    return {"n": number, "note": f"slow {number}", "delay_ms": int(SLOW_S * 1000)}


async def deliveries(world: World) -> int:
    """Return how often the broker delivered a message to the executor, repetitions included."""
    async with connected(world.environment.nats_url, world.environment.keys_dir, "provisioner") as client:
        reply = await client.request("$JS.API.CONSUMER.INFO.ACTIONS.executor", b"", timeout=5)
    return orjson.loads(reply.data)["delivered"]["consumer_seq"]


async def hanging_tool(trial: Trial) -> None:
    """Row 17: the tool accepts connections and never answers, then it goes on; doubt is visible, memory bounded."""
    async with trial.world() as world:
        [pid] = world.services.pids("executor")
        before = memory_mib(pid)
        async with at_work(world.workload.run(PACE_S / 2)):
            for _ in range(2):
                await asyncio.sleep(trial.random.uniform(1, 2))
                with world.paused(oracle.TOOL):
                    await asyncio.sleep(trial.random.uniform(3, 5))
            await asyncio.sleep(1)
        grown = memory_mib(pid) - before
        verdict = await trial.judge(world)
        trial.say(f"{verdict.unknown} of {verdict.actions} unknown, the executor grew by {grown} MiB")
        trial.check("I12", grown < MEMORY_MIB, f"the executor grew by {grown} MiB while its tool hung")
        trial.check("I7", verdict.unknown > 0, "a tool that hung left no doubt behind")
        trial.check("I11", world.services.pids("executor") == [pid], "a hanging tool ended the executor")


def memory_mib(pid: int) -> int:
    """Return the resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") // 2**20


async def killed_projectors(trial: Trial) -> None:
    """Row 36: two projectors, the active one dies in mid-batch at each of its points, and at random; only one is ever active."""
    async with trial.world(Options(replicas={"audit": 2})) as world:
        async with at_work(world.workload.run(PACE_S), only_one(trial, world)):
            for point in POINTS * 2:
                before = world.services.restarts("audit")
                for instance in ("audit-1", "audit-2"):
                    world.arm(instance, point, trial.random.randint(1, 4))
                await eventually(lambda b=before: world.services.restarts("audit") > b, within_s=40)
                trial.tally.crashes += 1
                for instance in ("audit-1", "audit-2"):
                    world.disarm(instance)
            for _ in range(8):
                await asyncio.sleep(trial.random.uniform(0.2, 1.5))
                pids = world.services.pids("audit")
                if pids:
                    os.kill(trial.random.choice(pids), signal.SIGKILL)
                    trial.tally.crashes += 1
        await trial.judge(world)


async def only_one(trial: Trial, world: World) -> None:
    """Look again and again that no second session holds the projector's lock."""
    while True:
        held = await holders(world)
        trial.check("I5", held <= 1, f"{held} sessions hold the projector's lock")
        await asyncio.sleep(0.2)


async def rebuilt_under_load(trial: Trial) -> None:
    """Row 36: the ledger is built again while it grows: the same heads; then it is put in place, and again it grows."""
    async with trial.world() as world:
        async with connected(world.environment.nats_url, world.environment.keys_dir, "provisioner") as client:
            await provision(client, rebuild=True)
        settings = ServiceSettings(
            nats_url=world.environment.nats_url,
            database_url=world.environment.admin_url,
            keys_dir=world.environment.keys_dir,
        )
        async with at_work(world.workload.run(PACE_S)):
            for arguments in ((), ("--swap",), ("--swap",)):
                await asyncio.sleep(trial.random.uniform(1, 3))
                code, said = await built(settings, arguments)
                trial.check("I5", code == 0, f"a rebuild {arguments} ended with {code}: {said}")
                trial.say(said.splitlines()[-1] if arguments else f"rebuilt: {said.splitlines()[-3]}")
            await asyncio.sleep(1)
        await trial.judge(world)


async def built(settings: ServiceSettings, arguments: tuple[str, ...]) -> tuple[int, str]:
    """Run the rebuild program here, where time is compressed as in the world; return its exit code and what it found."""
    found: list[object] = []
    with (
        mock.patch.object(rebuild, "_tell", lambda *lines: found.extend(lines)),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        code = await rebuild.rebuild(settings, rebuild.options(list(arguments)))
    return code, "\n".join(str(line) for line in found)


ROWS = (
    Row(number=3, title="SIGSTOP longer than ack_wait, then SIGCONT (executor, projector)", run=zombies, release=True),
    Row(number=17, title="a slow tool: one delivery", run=slow_tool),
    Row(number=17, title="a hanging tool: bounded, visible doubt", run=hanging_tool),
    Row(number=36, title="projector killed in mid-batch, two at once", run=killed_projectors, release=True),
    Row(number=36, title="ledger rebuilt and swapped under load", run=rebuilt_under_load, release=True),
)

"""Rows 8, 12, 13, 20: Postgres loses its power, dies, breaks off in the middle of a COMMIT, is full, is read-only."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import asyncpg

from infra.local.child import ServerStartError
from remit.clock import monotonic
from tests.faults.rigs.loop_image import LoopImage, power_cut
from tests.faults.rigs.tcp_proxy import TcpProxy
from tests.faults.rigs.tmpfs import Tmpfs
from tests.faults.row import Row
from tests.faults.world import Options
from tests.support.storm import at_work

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from infra.local.postgres_server import PostgresServer
    from tests.faults.rigs.tcp_proxy import When
    from tests.faults.row import Trial
    from tests.faults.world import World

MIB = 2**20
PACE_S = 0.1
DISK_BYTES = 384 * MIB
"""Room for a new cluster (about 45 MiB), its log segments of 16 MiB each, and a run's rows."""
GRACE_S = 2.0
"""A call that was claimed before the fault may still begin within this: the tool's time limit of 1 s, and its answer."""
DOWN = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)
_PROBE = "CREATE TABLE public.probe (n integer PRIMARY KEY)"


def server(world: World) -> PostgresServer:
    """Return the Postgres of a world."""
    assert world.environment.postgres is not None
    return world.environment.postgres


def processes(postmaster: int) -> Iterator[int]:
    """Yield the postmaster and its children."""
    yield postmaster
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        with contextlib.suppress(OSError):
            if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == postmaster:
                yield int(entry.name)


@dataclass(slots=True)
class Probe:
    """A client of its own that commits numbers, and remembers which were confirmed."""

    url: str
    confirmed: list[int] = field(default_factory=list[int])

    async def run(self) -> None:
        """Insert for ever, whatever becomes of the server."""
        number = 0
        while True:
            with contextlib.suppress(*DOWN):
                connection = await asyncpg.connect(self.url, timeout=2)
                try:
                    while True:
                        number += 1
                        await connection.execute("INSERT INTO public.probe VALUES ($1)", number)
                        self.confirmed.append(number)
                        await asyncio.sleep(0.002)
                finally:
                    connection.terminate()
            await asyncio.sleep(0.1)

    async def missing(self) -> list[int]:
        """Return confirmed numbers that are not there."""
        confirmed = list(self.confirmed)
        connection = await asyncpg.connect(self.url, timeout=10)
        try:
            kept = {row["n"] for row in await connection.fetch("SELECT n FROM public.probe")}
        finally:
            await connection.close()
        return [number for number in confirmed if number not in kept]


async def power_cuts(trial: Trial) -> None:
    """Row 8: the disk of Postgres loses everything that was not forced to it; twice, while claims and batches commit."""
    disk = LoopImage(trial.directory / "disk", size_bytes=DISK_BYTES)
    disk.mount = trial.directory / "w1" / "postgres"
    with disk:
        async with trial.world() as world:
            await world.admin.execute(_PROBE)
            probe = Probe(world.environment.admin_url)
            async with at_work(probe.run(), world.workload.run(PACE_S)):
                for cut in range(2):
                    await asyncio.sleep(trial.random.uniform(2, 5))
                    await cut_power(world, disk)
                    trial.tally.crashes += 1
                    await server(world).start()
                    missing = await probe.missing()
                    trial.say(f"cut {cut + 1}: {len(probe.confirmed)} commits confirmed, {len(missing)} lost")
                    trial.check("I1", not missing, f"confirmed commits are gone after a power cut: {missing[:10]}")
                await asyncio.sleep(1)
            await trial.judge(world)


async def cut_power(world: World, disk: LoopImage) -> None:
    """Stop every process of the server in its tracks, keep what the disk holds, and end them."""
    postgres = server(world)
    held = list(processes(postgres.pid))

    async def kill() -> None:
        await postgres.kill()
        for pid in held:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    await power_cut([disk], held, kill)


async def restarts(trial: Trial) -> None:
    """Row 12: the server, or one of its backends, dies or is restarted every few seconds."""
    hows = ["kill"] * 3 + ["backend"] * 3 + ["stop", "abort"]
    async with trial.world() as world:
        async with at_work(world.workload.run(PACE_S)):
            for how in trial.random.sample(hows, len(hows)):
                await asyncio.sleep(trial.random.uniform(0.5, 3))
                await strike(trial, world, how)
                trial.tally.crashes += 1
            await asyncio.sleep(1)
        await trial.judge(world)


async def strike(trial: Trial, world: World, how: str) -> None:
    """Kill the postmaster, or a backend (the postmaster then restarts all of them), or end it fast or at once."""
    postgres = server(world)
    if how == "backend":
        victims = [pid for pid in processes(postgres.pid) if pid != postgres.pid]
        os.kill(trial.random.choice(victims), signal.SIGKILL)
        return
    if how == "kill":
        await postgres.kill()
    elif how == "abort":
        os.kill(postgres.pid, signal.SIGQUIT)
        while postgres.running:
            await asyncio.sleep(0.02)
    else:
        await postgres.stop()
    await asyncio.sleep(trial.random.uniform(0, 1.5))
    await postgres.start()


@dataclass(frozen=True, slots=True)
class Doubt:
    """A statement whose commit is in doubt: whose it is, how the wire names it, where in the design it is."""

    service: Literal["executor", "audit"]
    text: str
    point: str


DOUBTS = (
    Doubt("executor", "control.claim(", "X2"),
    Doubt(
        "executor", "INSERT INTO control.outbox (service, subject_id, event_type, discriminator, draft)\nSELECT", "X5"
    ),
    Doubt("audit", "COMMIT", "projector"),
)
CUTS_EACH = 4
PER_CUT = 3


async def lost_commits(trial: Trial) -> None:
    """Row 13: the connection is cut before, with, and after the statement whose commit then is in doubt, many times."""
    proxies: dict[str, TcpProxy] = {}

    async with contextlib.AsyncExitStack() as stack:

        async def route(world: World) -> Mapping[str, Mapping[str, str]]:
            routed: dict[str, dict[str, str]] = {}
            for name in ("executor", "audit"):
                proxy = TcpProxy.postgres(world.environment.admin_url, trial.random)
                proxies[name] = await stack.enter_async_context(proxy)
                routed[name] = {"DATABASE_URL": proxy.url(world.environment.database_url(name))}
            return routed

        async with trial.world(Options(prepare=route)) as world:
            for doubt in DOUBTS:
                for when in ("before", "racing", "answered"):
                    struck = await cut_often(trial, world, proxies[doubt.service], doubt, when)
                    trial.check(
                        "I11", struck == CUTS_EACH, f"{doubt.point} was cut {struck} times, expected {CUTS_EACH}"
                    )
                trial.say(f"{doubt.point}: cut {3 * CUTS_EACH} times, {len(proxies[doubt.service].struck)} in all")
            await trial.judge(world)


async def cut_often(trial: Trial, world: World, proxy: TcpProxy, doubt: Doubt, when: When) -> int:
    """Cut at a statement several times under load; return how often it struck."""
    struck = 0
    for _ in range(CUTS_EACH):
        cut = proxy.arm(doubt.text, when, trial.random.randint(1, 3))
        began = monotonic()
        while not cut.done.is_set() and monotonic() - began < 15:
            await world.workload.propose(PER_CUT, mix=("pay", "send", "set"), spread_s=PACE_S)
        struck += cut.done.is_set()
        trial.tally.crashes += cut.done.is_set()
    proxy.disarm()
    return struck


async def read_only(trial: Trial) -> None:
    """Row 20: Postgres turns read-only and back: nothing new is claimed meanwhile, so nothing has an effect."""
    async with trial.world() as world:
        admin = await asyncpg.connect(
            world.environment.admin_url, server_settings={"default_transaction_read_only": "off"}
        )
        async with at_work(world.workload.run(PACE_S)):
            for _ in range(2):
                await asyncio.sleep(trial.random.uniform(1, 3))
                await admin.execute("ALTER SYSTEM SET default_transaction_read_only = on")
                await admin.execute("SELECT pg_reload_conf()")
                await nothing_begins(trial, world, for_s=4)
                await admin.execute("ALTER SYSTEM RESET default_transaction_read_only")
                await admin.execute("SELECT pg_reload_conf()")
            await asyncio.sleep(1)
        await admin.close()
        await trial.judge(world)


async def nothing_begins(trial: Trial, world: World, *, for_s: float) -> None:
    """Insist that no effect begins, once the calls that were claimed before have had their time."""
    await asyncio.sleep(GRACE_S)
    before = len(await world.effects())
    await asyncio.sleep(for_s)
    begun = len(await world.effects()) - before
    trial.check("I2", begun == 0, f"{begun} effects began while nothing could be claimed")


async def full_disk(trial: Trial) -> None:
    """Row 20: the disk of Postgres fills up to the last byte: first pages run out, then its log, which ends the server."""
    disk = Tmpfs(trial.directory / "w1" / "postgres", size_bytes=DISK_BYTES)
    with disk:
        async with trial.world() as world:
            await world.admin.execute("CREATE TABLE public.ballast (filler text)")
            async with at_work(world.workload.run(PACE_S)):
                await asyncio.sleep(trial.random.uniform(1, 3))
                disk.fill()
                said = await exhausted(world, PAGES)
                await asyncio.sleep(GRACE_S)
                refused = "DiskFullError" in (world.directory / "logs" / "executor.log").read_text()
                trial.check("I12", refused, "the executor was never told that the disk is full")
                said |= await exhausted(world, LOG)
                trial.say(f"disk full: a client is told {', '.join(sorted(said))}")
                trial.check("I12", not server(world).running, "Postgres still runs without room for its log")
                await nothing_begins(trial, world, for_s=3)
                disk.make_room()
                await back(world)
                await asyncio.sleep(1)
            await trial.judge(world)


PAGES = "INSERT INTO public.ballast SELECT repeat(md5(g::text), 200) FROM generate_series(1, 500) AS g"
LOG = "SELECT pg_logical_emit_message(false, 'ballast', repeat('x', 1000000)) FROM generate_series(1, 4)"


async def exhausted(world: World, statement: str, *, within_s: float = 20) -> set[str]:
    """Use up what a full disk still holds, pages or log, until Postgres refuses again and again; return what it says."""
    said: set[str] = set()
    refused, deadline = 0, monotonic() + within_s
    while refused < 5 and server(world).running and monotonic() < deadline:
        try:
            while True:
                await world.admin.execute(statement, timeout=5)
        except DOWN as error:
            said.add(type(error).__name__)
            refused += 1
        await asyncio.sleep(0.2)
    return said


async def back(world: World) -> None:
    """Start the server when it has given up, and wait until it takes writes."""
    deadline = monotonic() + 30
    while monotonic() < deadline:
        with contextlib.suppress(*DOWN, ServerStartError):
            if not server(world).running:
                await server(world).start()
            await world.admin.execute("DROP TABLE IF EXISTS public.ballast", timeout=5)
            return
        await asyncio.sleep(0.3)
    raise AssertionError("Postgres does not come back with room on its disk")


ROWS = (
    Row(number=8, title="power cut of Postgres's disk", run=power_cuts, release=True, needs=("root", "loop")),
    Row(number=12, title="Postgres killed and restarted every few seconds", run=restarts, release=True),
    Row(number=13, title="connection lost inside COMMIT (claim, outcome, projector)", run=lost_commits, release=True),
    Row(number=20, title="Postgres read-only", run=read_only, quick=True),
    Row(number=20, title="Postgres's disk full", run=full_disk, needs=("root", "mount")),
)

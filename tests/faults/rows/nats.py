"""Rows 5, 6, 7, 16: the broker goes away and comes back, alone, node by node, all at once, or refuses those it knew."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from infra.local import secret_files
from infra.local.nats_server import server_config
from infra.nats import identity
from remit.clock import monotonic
from tests.faults.row import Row
from tests.faults.world import SERVICES, Options
from tests.support.storm import at_work
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterable

    from infra.local.nats_cluster import NatsCluster
    from infra.local.nats_server import NatsServer
    from infra.nats.config import ServerConfig
    from tests.faults.row import Trial
    from tests.faults.world import World

PACE_S = 0.08
SLOW_PACE_S = 0.3
"""For faults that last half a minute."""
R3_PACE_S = 0.15
"""Three nodes on a machine of two cores have their hands full."""
SETTLE_S = 120.0
NODE_KILLS = 6
AWAY_S = 33.0
"""Longer than a service waits for its connection (`watchdog.CONNECTION_LIMIT_S`)."""
BACK_WITHIN_S = 60.0
NOT_CONNECTED = 70


def broker(world: World) -> NatsServer:
    """Return the only node of a world with one."""
    assert world.environment.nats is not None
    return world.environment.nats


def cluster(world: World) -> NatsCluster:
    """Return the three nodes of a world with three."""
    assert world.environment.cluster is not None
    return world.environment.cluster


async def restarts(trial: Trial) -> None:
    """Row 5: the only node is killed or stopped again and again while calls are under way."""
    async with trial.world() as world:
        async with at_work(world.workload.run(PACE_S)):
            for how in trial.random.sample(["kill"] * 3 + ["stop"], 4):
                await asyncio.sleep(trial.random.uniform(0.3, 1.5))
                await (broker(world).kill() if how == "kill" else broker(world).stop())
                trial.tally.crashes += 1
                await asyncio.sleep(trial.random.uniform(0, 1))
                await broker(world).start()
            await asyncio.sleep(1)
        await trial.judge(world, within_s=SETTLE_S)


async def long_absence(trial: Trial) -> None:
    """Row 5: the node stays away for longer than a service waits: each ends itself, and comes back with the node."""
    async with trial.world() as world:
        async with at_work(world.workload.run(SLOW_PACE_S)):
            await asyncio.sleep(2)
            await broker(world).kill()
            trial.tally.crashes += 1
            await asyncio.sleep(AWAY_S)
            gave_up = [name for name in SERVICES if world.services.restarts(name)]
            trial.check("I11", gave_up == list(SERVICES), f"without a broker only {gave_up} ended themselves")
            await broker(world).start()
            await ready_again(trial, world)
            await asyncio.sleep(1)
        await trial.judge(world, within_s=SETTLE_S)


async def ready_again(trial: Trial, world: World) -> None:
    """Insist that every service is ready within a minute from now."""
    began = monotonic()
    await world.services.ready(BACK_WITHIN_S)
    trial.say(f"all services ready again after {monotonic() - began:.1f} s")


async def random_nodes(trial: Trial) -> None:
    """Row 6: one node of three after the other is killed, every second time the leader of a stream that matters."""
    async with trial.world(Options(nodes=3)) as world:
        nodes, leaders = cluster(world), 0
        async with at_work(world.workload.run(R3_PACE_S)):
            for turn in range(NODE_KILLS):
                await asyncio.sleep(trial.random.uniform(0.5, 2))
                leader = await nodes.leader_of(trial.random.choice(["ACTIONS", "INTAKE", "REMITS"]))
                victim = leader if turn % 2 and leader else trial.random.choice(list(nodes.nodes))
                leaders += victim == leader
                await nodes.kill([victim])
                trial.tally.crashes += 1
                await asyncio.sleep(trial.random.uniform(0.2, 3))
                await nodes.restart(victim)
                if trial.random.random() < 0.5:  # else the next one dies while this one still catches up
                    await nodes.healthy()
        trial.say(f"{NODE_KILLS} nodes killed, {leaders} of them leaders")
        await nodes.healthy()
        await trial.judge(world, within_s=SETTLE_S)


async def all_nodes(trial: Trial) -> None:
    """Row 7: all three nodes are killed in the same instant, three times."""
    async with trial.world(Options(nodes=3)) as world:
        nodes = cluster(world)
        async with at_work(world.workload.run(R3_PACE_S)):
            for _ in range(3):
                await asyncio.sleep(trial.random.uniform(1, 3))
                await nodes.kill()
                trial.tally.crashes += 3
                await asyncio.sleep(trial.random.uniform(0, 1))
                await nodes.start()
        await trial.judge(world, within_s=SETTLE_S)


async def refused_logins(trial: Trial) -> None:
    """Row 16: while clients are cut off and reconnect, the broker does not know their keys any more; then it does again.

    Services and agent lose their users by a reload, once for long enough that a service ends itself (design, bus F3).
    """
    async with trial.world() as world:
        known = server_config(world.environment.keys_dir, broker(world).directory)
        async with at_work(world.workload.run(SLOW_PACE_S)):
            await asyncio.sleep(2)
            victims = trial.random.sample(SERVICES, 3)
            await broker(world).reload(without(known, victims))
            trial.say(f"unknown keys: {', '.join(victims)} and the agent")
            await eventually(lambda: all(world.services.restarts(name) for name in victims), within_s=BACK_WITHIN_S)
            ends = {s.name: s.last_exit for s in world.services.status() if s.name in victims}
            trial.check("I11", all(ends.values()), f"services without a login ended with {ends}")
            await broker(world).reload(known)
            await ready_again(trial, world)
            await asyncio.sleep(1)
        await trial.judge(world, within_s=SETTLE_S)


def without(known: ServerConfig, names: Iterable[str]) -> ServerConfig:
    """Return a configuration that has strangers in the places of some services and of every agent."""
    users = {**known.users, **{name: stranger() for name in names}}
    return replace(known, users=users, agents={name: stranger() for name in known.agents})


def stranger() -> str:
    """Return the public key of nobody."""
    return identity.public_key(identity.new_seed())


async def changed_key(trial: Trial) -> None:
    """Row 16: a service's broker key is replaced, first at the broker, a little later in its key file."""
    async with trial.world() as world:
        victim = trial.random.choice(SERVICES)
        async with at_work(world.workload.run(SLOW_PACE_S)):
            await asyncio.sleep(2)
            seed = identity.new_seed()
            known = server_config(world.environment.keys_dir, broker(world).directory)
            users = {**known.users, victim: identity.public_key(seed)}
            await broker(world).reload(replace(known, users=users))
            await asyncio.sleep(trial.random.uniform(0, 10))
            secret_files.write(world.environment.keys_dir / victim / "nats.nk", seed)
            trial.say(f"{victim} has another key")
            began = world.services.restarts(victim)
            await eventually(lambda: world.services.restarts(victim) > began, within_s=BACK_WITHIN_S)
            await ready_again(trial, world)
        await trial.judge(world, within_s=SETTLE_S)


ROWS = (
    Row(number=5, title="NATS restart and kill -9 (one node)", run=restarts, release=True, quick=True),
    Row(number=5, title="NATS away for longer than services wait", run=long_absence, release=True),
    Row(number=6, title="kill -9 of random NATS nodes, leaders too", run=random_nodes, release=True),
    Row(number=7, title="all three NATS nodes killed together", run=all_nodes),
    Row(number=16, title="authentication refused during reconnect", run=refused_logins, release=True),
    Row(number=16, title="a service's broker key changed", run=changed_key, release=True),
)

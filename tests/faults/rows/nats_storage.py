"""Rows 9, 18: the broker's disks lie, or are full."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

from tests.faults.rigs import corruption
from tests.faults.rigs.administrator import administrator
from tests.faults.rigs.tmpfs import Tmpfs
from tests.faults.row import Row
from tests.faults.rows.nats import PACE_S, R3_PACE_S, SETTLE_S, broker, cluster
from tests.faults.rows.nats_power import relocate
from tests.faults.world import Options
from tests.support.storm import at_work
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Mapping

    from infra.local.nats_cluster import NatsCluster
    from infra.local.nats_server import NatsServer
    from tests.faults.rigs.administrator import Administrator
    from tests.faults.row import Trial
    from tests.faults.world import World

MIB = 2**20
STORE_BYTES = 48 * MIB
LEFT_BYTES = MIB
"""Room on the small disk when it is about to be full."""
FULL_BELOW_BYTES = 64 * 1024
BACKLOG_S = 4.0
"""How long events gather that the projector has not seen: the damage lies among them."""
HALT_WITHIN_S = 60.0
GAP = re.compile(r"ACTIONS sequence (\d+) is missing")
CURSOR = "select last_seq from audit.progress where stream = 'ACTIONS'"
DRIVEN_ON = {"audit": {"REMIT_ACTION_SLA_S": "5"}}
"""What a service dropped because a lying leader showed it too little is driven on soon."""


async def lying_replica(trial: Trial, *, truncated: bool) -> None:
    """Row 9: one replica of three is damaged and leads. The projector halts at the hole and names it; a good replica cures it."""
    options = Options(nodes=3, replicas={"audit": 1}, settings=DRIVEN_ON)
    async with trial.world(options) as world, administrator(world.environment) as admin:
        nodes = cluster(world)
        async with at_work(world.workload.run(R3_PACE_S)):
            await asyncio.sleep(2)
            victim = await follower(trial, nodes)
            node = nodes.nodes[victim]
            await world.services.scale("audit", 0)
            before = corruption.blocks(node.config.store_dir, "ACTIONS")[-1].stat().st_size
            await asyncio.sleep(BACKLOG_S)
            await node.stop()
            damage(trial, node, after=before, truncated=truncated)
            await node.start()
            await nodes.healthy()
            await lead(admin, nodes, victim)
            await world.services.scale("audit", 1)
            await halted(trial, world)
            await repair(nodes, victim)
            trial.tally.crashes += 1
        await lead(admin, nodes, victim)  # what the repaired replica holds is what the proof reads
        await trial.judge(world, within_s=SETTLE_S)


async def follower(trial: Trial, nodes: NatsCluster) -> str:
    """Choose a node that does not lead ACTIONS."""
    leader = await nodes.leader_of("ACTIONS")
    return trial.random.choice([name for name in nodes.nodes if name != leader])


def damage(trial: Trial, node: NatsServer, *, after: int, truncated: bool) -> None:
    """Damage what a stopped node stored of ACTIONS since its block had the size `after`."""
    store = node.config.store_dir
    if truncated:
        size = corruption.blocks(store, "ACTIONS")[-1].stat().st_size
        gone = corruption.cut_tail(store, "ACTIONS", after=after + (size - after) // 2)
        trial.say(f"the last {gone} bytes of a replica of ACTIONS are cut off")
    else:
        offsets = corruption.flip_bits(store, "ACTIONS", bits=3, after=after, rng=trial.random)
        trial.say(f"bits flipped in a replica of ACTIONS at {offsets}")


async def repair(nodes: NatsCluster, name: str) -> None:
    """Do what the operator does: stop the damaged node, so that its peers lead, and let it fetch the stream from them."""
    node = nodes.nodes[name]
    await node.stop()
    corruption.forget_stream(node.config.store_dir, "ACTIONS")
    await node.start()
    await nodes.healthy()


async def lead(admin: Administrator, nodes: NatsCluster, name: str) -> None:
    """Make one node the leader of ACTIONS and of the projector's durable."""

    async def leads() -> bool:
        wish = {"placement": {"preferred": name}}
        if await nodes.leader_of("ACTIONS") != name:
            await admin.ask("STREAM.LEADER.STEPDOWN.ACTIONS", wish)
        if await nodes.leader_of("ACTIONS", "audit") != name:
            await admin.ask("CONSUMER.LEADER.STEPDOWN.ACTIONS.audit", wish)
        await asyncio.sleep(0.5)
        return await nodes.leader_of("ACTIONS") == await nodes.leader_of("ACTIONS", "audit") == name

    await eventually(leads, within_s=30)


async def halted(trial: Trial, world: World) -> None:
    """Wait until audit says which sequence is missing; nothing beyond it may be in the ledger."""
    log = world.directory / "logs" / "audit-1.log"

    def named() -> bool:
        return log.exists() and GAP.search(log.read_text(encoding="utf-8")) is not None

    await eventually(named, within_s=HALT_WITHIN_S)
    missing = [int(found) for found in GAP.findall(log.read_text(encoding="utf-8"))]
    trial.say(f"the projector halts: ACTIONS {missing[0]} is missing")
    for _ in range(10):
        cursor = await world.admin.fetchval(CURSOR)
        trial.check("I5", cursor < missing[0], f"cursor {cursor} is past the hole at {missing[0]}")
        await asyncio.sleep(0.2)


async def flipped_bits(trial: Trial) -> None:
    """Row 9, bits flipped in stored events."""
    await lying_replica(trial, truncated=False)


async def cut_off_tail(trial: Trial) -> None:
    """Row 9, the end of a block cut off."""
    await lying_replica(trial, truncated=True)


async def full_disk(trial: Trial) -> None:
    """Row 18: the disk under the only node is full; after room was made and the node restarted, everything goes on."""
    with Tmpfs(trial.directory / "small", size_bytes=STORE_BYTES) as disk:

        async def on_the_disk(world: World) -> Mapping[str, Mapping[str, str]]:
            await relocate(broker(world), disk.mount / "store")
            return {}

        async with trial.world(Options(prepare=on_the_disk)) as world:
            async with at_work(world.workload.run(PACE_S)):
                await asyncio.sleep(2)
                disk.fill(leave_bytes=LEFT_BYTES)
                await eventually(lambda: disk.free_bytes < FULL_BELOW_BYTES, within_s=60)
                await asyncio.sleep(trial.random.uniform(3, 6))
                [late] = await world.workload.propose(1)
                await asyncio.sleep(6)
                trial.check("I12", not late.stored, "a proposal was acknowledged though the disk is full")
                disk.make_room()
                await broker(world).restart()
                trial.tally.crashes += 1
                await asyncio.sleep(2)
            await trial.judge(world, within_s=SETTLE_S)


ROWS = (
    Row(number=9, title="bits flipped in one of three NATS replicas", run=flipped_bits, release=True),
    Row(number=9, title="one of three NATS replicas cut off", run=cut_off_tail, release=True),
    Row(number=18, title="the broker's disk is full", run=full_disk, release=True, needs=("mount",)),
)

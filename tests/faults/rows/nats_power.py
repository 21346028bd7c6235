"""Row 8: the broker's disks lose power. What was acknowledged must be there, because every node forces it to disk first."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import nats
import nats.errors
import orjson

from infra.local import key_ring, keys
from infra.local.nats_server import NatsServer, server_config
from infra.provision import provision
from remit.runtime.streams import GIB
from tests.faults.rigs.loop_image import LoopImage, power_cut
from tests.faults.row import Row
from tests.faults.rows.nats import PACE_S, R3_PACE_S, SETTLE_S, broker, cluster
from tests.faults.world import Options
from tests.support.servers import connected
from tests.support.storm import at_work

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from nats.aio.client import Client

    from tests.faults.row import Trial
    from tests.faults.world import World

LAZY = "2m"
"""The server's own default of `sync_interval`."""
WRITERS = 8
WRITE_FOR_S = 2.0


async def relocate(server: NatsServer, folder: Path) -> None:
    """Move a server's store to another disk and start it there."""
    await server.stop()
    await asyncio.to_thread(shutil.copytree, server.config.store_dir, folder, dirs_exist_ok=True)
    # The server had forced these files to the old disk and will not do it again.
    await asyncio.to_thread(subprocess.run, ["sync", "--file-system", str(folder)], check=True)
    server.config = replace(server.config, store_dir=folder)
    await server.start()


async def one_disk(trial: Trial) -> None:
    """Row 8: the power of the only node fails twice under load."""
    with LoopImage(trial.directory / "disk") as disk:

        async def on_the_disk(world: World) -> Mapping[str, Mapping[str, str]]:
            await relocate(broker(world), disk.mount / "store")
            return {}

        async with trial.world(Options(prepare=on_the_disk)) as world:
            for _ in range(2):
                async with at_work(world.workload.run(PACE_S)):
                    await asyncio.sleep(trial.random.uniform(2, 4))
                    await power_cut([disk], [broker(world).pid], broker(world).kill)
                    trial.tally.crashes += 1
                    await broker(world).start()
            await trial.judge(world, within_s=SETTLE_S)


async def three_disks(trial: Trial) -> None:
    """Row 8: of three nodes the leader of ACTIONS loses power under load, then all three in the same instant."""
    disks: dict[str, LoopImage] = {}
    with ExitStack() as mounts:

        async def on_disks(world: World) -> Mapping[str, Mapping[str, str]]:
            for name, node in cluster(world).nodes.items():
                disks[name] = mounts.enter_context(LoopImage(trial.directory / name))
                await relocate(node, disks[name].mount / "store")
            await cluster(world).healthy()
            return {}

        async with trial.world(Options(nodes=3, prepare=on_disks)) as world:
            leader = await cluster(world).leader_of("ACTIONS") or trial.random.choice(list(disks))
            async with at_work(world.workload.run(R3_PACE_S)):
                for names in ([leader], list(disks)):
                    await asyncio.sleep(trial.random.uniform(2, 4))
                    await cut(world, {name: disks[name] for name in names})
                    trial.tally.crashes += len(names)
                    trial.say(f"power of {', '.join(names)} failed")
                    await cluster(world).start()
            await trial.judge(world, within_s=SETTLE_S)


async def cut(world: World, disks: Mapping[str, LoopImage]) -> None:
    """Take the power from some nodes of a cluster."""
    nodes = cluster(world)
    pids = [nodes.nodes[name].pid for name in disks]
    await power_cut(list(disks.values()), pids, lambda: nodes.kill(disks))


async def rig_can_fail(trial: Trial) -> None:
    """Row 8, the rig itself: with the server's default of `sync_interval` acknowledged messages are gone after a cut.

    No services: a few writers on one node, so that nothing of ours can hide or cause the loss.
    """
    keys.generate(trial.directory / "keys", "rig", ("bookkeeper",))
    lazy, held_lazily = await acknowledged_and_held(trial.directory, LAZY)
    forced, held = await acknowledged_and_held(trial.directory, "always")
    trial.say(f"{LAZY}: {lazy} acknowledged, {held_lazily} held; always: {forced} acknowledged, {held} held")
    trial.tally.runs += 1
    trial.check("rig", held_lazily < lazy, f"nothing was forced to disk, yet all {lazy} messages survived the cut")
    trial.check("I1", held >= forced > 0, f"{forced} messages acknowledged, {held} held after the cut")


async def acknowledged_and_held(directory: Path, sync_interval: str) -> tuple[int, int]:
    """Write to ACTIONS for a moment, cut the power, and count what was acknowledged and what is there."""
    with LoopImage(directory / f"disk-{sync_interval}") as disk:
        store = {"store_dir": str(disk.mount / "store"), "sync_interval": sync_interval, "max_file_store": 6 * GIB}
        config = replace(
            server_config(directory / "keys", directory),
            store_dir=disk.mount / "store",
            allowed_extra={"jetstream": store},
        )
        async with NatsServer(config, directory / f"nats-{sync_interval}") as server:
            async with connected(server.url, directory / "keys", "provisioner") as client:
                await provision(client)
            acknowledged: set[str] = set()
            async with connected(server.url, directory / "keys", "policy") as client:
                writing = [asyncio.create_task(write(client, n, acknowledged)) for n in range(WRITERS)]
                await asyncio.sleep(WRITE_FOR_S)
                await power_cut([disk], [server.pid], server.kill)
                await asyncio.gather(*writing)
            await server.start()
            return len(acknowledged), await held_of(server, directory / "keys", acknowledged)


async def write(client: Client, writer: int, acknowledged: set[str]) -> None:
    """Publish one message after the other until the broker falls silent; remember what it acknowledged."""
    number = 0
    while True:
        number += 1
        subject = f"action.w{writer}x{number}.evaluated"
        try:
            answer = orjson.loads((await client.request(subject, b"x" * 1_500, timeout=1)).data)
        except nats.errors.Error:
            return
        if "seq" in answer:
            acknowledged.add(subject)


async def held_of(server: NatsServer, keys_dir: Path, subjects: set[str]) -> int:
    """Return how many of these subjects the stream still holds; none when it is gone itself."""
    seed = key_ring.load_nats_seed(keys_dir, "operator")
    client = await nats.connect(server.url, nkeys_seed_str=seed, inbox_prefix=b"_IBX.operator")
    try:
        wish = orjson.dumps({"subjects_filter": "action.>"})
        answer = orjson.loads((await client.request("$JS.API.STREAM.INFO.ACTIONS", wish, timeout=10)).data)
    finally:
        await client.close()
    return len(subjects & set((answer.get("state") or {}).get("subjects") or {}))


ROWS = (
    Row(number=8, title="power cut of the only NATS node", run=one_disk, release=True, needs=("root", "loop")),
    Row(
        number=8,
        title="power cut of one, then of all NATS nodes",
        run=three_disks,
        release=True,
        needs=("root", "loop"),
    ),
    Row(
        number=8, title="the power-cut rig loses what was not forced to disk", run=rig_can_fail, needs=("root", "loop")
    ),
)

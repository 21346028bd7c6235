"""Row 14, the open question of the design: what a deposed leader still answers, and what that can do to an action."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import nats

from infra.local import key_ring, keys
from infra.local.nats_cluster import NAMES, NatsCluster
from infra.local.nats_server import executable
from infra.provision import provision
from remit.clock import monotonic
from remit.errors import TransientError
from remit.runtime.bus import Bus, ConflictError, UnknownOutcomeError
from remit.runtime.streams import Sizing
from tests.faults.rigs.netns import Network
from tests.faults.row import Row
from tests.faults.rows.network import NEEDS, isolate
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from tests.faults.row import Trial

WATCHED_S = 25.0
"""Longer than a leader without a quorum believes in itself (10 s in nats-server 2.15)."""
STREAM = "ACTIONS"
REPEAT_S = 0.3
"""How long an answer is waited for: nobody answers while there is no leader, and the same bytes may be sent again."""


@dataclass(frozen=True, slots=True)
class Node:
    """One principal's connection to one node alone."""

    name: str
    bus: Bus


async def deposed_leader(trial: Trial) -> None:
    """A leader is cut off while an action moves on under its successor; ask it, and try to append after what it says."""
    async with AsyncExitStack() as stack:
        network = stack.enter_context(Network())
        stack.enter_context(network.nodes(NAMES, executable(), trial.directory / "bin"))
        folder = trial.directory / "keys"
        keys.generate(folder, "test", ("a1",))
        cluster = await stack.enter_async_context(NatsCluster(folder, trial.directory / "nats"))
        await _provisioned(cluster, folder)
        await eventually(lambda: _led(cluster), within_s=20)
        old = str(await cluster.leader_of(STREAM))
        new = trial.random.choice([name for name in NAMES if name != old])
        nodes = [await _connected(stack, cluster, folder, name) for name in (old, new)]
        trial.tally.actions += await _probe(trial, network, cluster, (nodes[0], nodes[1]))
    trial.tally.runs += 1


async def _probe(trial: Trial, network: Network, cluster: NatsCluster, nodes: tuple[Node, Node]) -> int:
    deposed, successor = nodes
    subjects = [f"action.{trial.random.getrandbits(128):032x}.proposed" for _ in range(8)]
    first = [await deposed.bus.append(subject, b"one", _expecting(subject, 0)) for subject in subjects]
    isolate(network, cluster, deposed.name)
    cut_at = monotonic()
    moved = asyncio.gather(*(_until_stored(successor, s, one.seq) for s, one in zip(subjects, first, strict=True)))
    elected_s, stale_s, asked, acknowledged = 0.0, 0.0, 0, 0
    while monotonic() - cut_at < WATCHED_S:
        if moved.done() and not elected_s:
            elected_s = monotonic() - cut_at
        subject, one = subjects[asked % len(subjects)], first[asked % len(subjects)]
        asked += 1
        if await _last(deposed, subject) == one.seq and elected_s:
            stale_s = monotonic() - cut_at
        acknowledged += await _is_stored(deposed, subject, one.seq)
    second = await moved
    network.heal()
    await cluster.healthy()
    trial.say(
        f"successor after {elected_s:.1f} s; the deposed leader answered stale until {stale_s:.1f} s after the cut; "
        f"{asked} appends after its answers, {acknowledged} acknowledged"
    )
    trial.check("I4", acknowledged == 0, f"a deposed leader acknowledged {acknowledged} appends")
    for subject, one, two in zip(subjects, first, second, strict=True):
        await _check_history(trial, nodes, subject, (one.seq, two))
    return len(subjects)


async def _check_history(trial: Trial, nodes: tuple[Node, Node], subject: str, expected: tuple[int, int]) -> None:
    """After the heal both nodes tell the successor's history, and the wasted retry is told that it lost."""
    for node in nodes:
        await eventually(lambda node=node: _last(node, subject), expected[1], within_s=20)
        found: list[int] = []
        while (stored := await node.bus.leader_read(STREAM, _after(found, subject))) is not None:
            found.append(stored.seq)
        trial.check("I4", tuple(found) == expected, f"{subject} holds {found} after the heal, expected {expected}")
        try:
            await node.bus.append(subject, b"stale", _expecting(subject, expected[0]))
        except ConflictError:
            continue
        trial.check("I4", ok=False, detail=f"{node.name} took an append that rests on a stale read")


def _after(found: list[int], subject: str) -> dict[str, object]:
    return {"seq": found[-1] + 1 if found else 1, "next_by_subj": f"{subject.rpartition('.')[0]}.>"}


async def _until_stored(node: Node, subject: str, expected: int) -> int:
    """Append the second event as a service does: the same bytes until the outcome is known."""
    while True:
        try:
            stored = node.bus.append(subject, b"two", _expecting(subject, expected))
            return (await asyncio.wait_for(stored, REPEAT_S)).seq
        except ConflictError:
            found = await _last(node, subject)
            if found is not None and found > expected:
                return found
        except (TransientError, TimeoutError):
            continue


async def _last(node: Node, subject: str) -> int | None:
    query = {"last_by_subj": f"{subject.rpartition('.')[0]}.>"}
    try:
        stored = await asyncio.wait_for(node.bus.leader_read(STREAM, query), REPEAT_S)
    except (TransientError, TimeoutError):
        return None
    return stored.seq if stored else None


async def _is_stored(node: Node, subject: str, expected: int) -> bool:
    try:
        await asyncio.wait_for(node.bus.append(subject, b"stale", _expecting(subject, expected)), REPEAT_S)
    except (ConflictError, UnknownOutcomeError, TransientError, TimeoutError):
        return False
    return True


def _expecting(subject: str, seq: int) -> dict[str, str]:
    return {
        "Nats-Expected-Last-Subject-Sequence": str(seq),
        "Nats-Expected-Last-Subject-Sequence-Subject": f"{subject.rpartition('.')[0]}.>",
    }


async def _led(cluster: NatsCluster) -> bool:
    return await cluster.leader_of(STREAM) is not None


async def _provisioned(cluster: NatsCluster, folder: Path) -> None:
    seed = key_ring.load_nats_seed(folder, "provisioner")
    client = await nats.connect(cluster.url.split(","), nkeys_seed_str=seed, inbox_prefix=b"_IBX.provisioner")
    try:
        await provision(client, Sizing(replicas=3))
    finally:
        await client.close()


async def _connected(stack: AsyncExitStack, cluster: NatsCluster, folder: Path, name: str) -> Node:
    client = await nats.connect(
        cluster.nodes[name].url,
        nkeys_seed_str=key_ring.load_nats_seed(folder, "intake"),
        inbox_prefix=b"_IBX.intake",
        max_reconnect_attempts=-1,
    )
    stack.push_async_callback(client.close)
    # Told of the other nodes, the client would reconnect there; it must stay with this one.
    client._server_pool = client._server_pool[:1]
    return Node(name, Bus(client))


ROWS = (Row(number=14, title="reads and appends at a deposed leader", run=deposed_leader, release=True, needs=NEEDS),)

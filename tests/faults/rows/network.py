"""Rows 14 and 15: links that swallow packets, one way or both, between services, servers and nodes; links that stall."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

from infra.local.nats_cluster import NAMES
from infra.local.nats_server import executable
from remit.commands import RevokeCommand
from tests.faults.rigs.netns import Network, Way
from tests.faults.rigs.tcp_proxy import Line, TcpProxy
from tests.faults.row import Row
from tests.faults.world import SERVICES, Options
from tests.support.storm import at_work

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from infra.local.nats_cluster import NatsCluster
    from tests.faults.row import Trial
    from tests.faults.world import World

PACE_S = 0.1
CUT_S = (3.0, 7.0)
"""Longer than ack_wait and an election, shorter than the time after which a client gives its connection up."""
ON_POSTGRES = ("approval", "executor", "audit")
LATE_CLAIMS = """
    select count(*) from control.execution where remit_id = $1 and state <> 'refused' and claimed_at > $2
"""
NEEDS = ("root", "netns", "iptables")


@dataclass(frozen=True, slots=True)
class Links:
    """Ports by what listens there; members are services and nodes."""

    network: Network
    world: World

    @property
    def brokers(self) -> list[int]:
        """Where services connect."""
        return [server.config.port for server in self.world.environment.brokers]

    @property
    def postgres(self) -> int:
        """Where the database listens."""
        return cast("int", urlsplit(self.world.environment.admin_url).port)

    def cut_broker(self, service: str, way: Way) -> None:
        """Cut a service from every node."""
        for port in self.brokers:
            self.network.cut(service, port, way)

    def isolate(self, name: str, way: Way = "both") -> None:
        """Cut a node from the others; `to_server`: nobody hears it, `to_client`: it hears nobody."""
        isolate(self.network, self.cluster, name, way)

    @property
    def cluster(self) -> NatsCluster:
        """The nodes."""
        return cast("NatsCluster", self.world.environment.cluster)


def isolate(network: Network, cluster: NatsCluster, name: str, way: Way = "both") -> None:
    """Cut a node's own connections to the others, and theirs to it."""
    reverse: dict[Way, Way] = {"both": "both", "to_server": "to_client", "to_client": "to_server"}
    for other in NAMES:
        if other != name:
            network.cut(name, route_port(cluster, other), way)
            network.cut(other, route_port(cluster, name), reverse[way])


def route_port(cluster: NatsCluster, name: str) -> int:
    """Return where a node listens for the others."""
    found = cluster.nodes[name].config.cluster
    assert found is not None
    return int(found.listen.rpartition(":")[2])


@asynccontextmanager
async def divided(trial: Trial) -> AsyncGenerator[Links]:
    """Start a world of three nodes in a network of its own, every process a member of it."""
    with Network() as network, network.nodes(NAMES, executable(), trial.directory / "bin"):
        options = Options(nodes=3, prefix=dict.fromkeys(SERVICES, network.services(SERVICES)))
        async with trial.world(options) as world:
            yield Links(network, world)


async def partitions(trial: Trial) -> None:
    """Row 14: every kind of link is cut once, in random order, while calls are under way."""
    async with divided(trial) as links:
        network = links.network
        async with at_work(links.world.workload.run(PACE_S)):
            cuts = named_cuts(trial, links)
            for name in trial.random.sample(sorted(cuts), len(cuts)):
                trial.say(f"cut: {name}")
                cuts[name]()
                await asyncio.sleep(trial.random.uniform(*CUT_S))
                network.heal()
                await asyncio.sleep(trial.random.uniform(0.2, 1.0))
        await links.cluster.healthy()
        await trial.judge(links.world)


def named_cuts(trial: Trial, links: Links) -> dict[str, Callable[[], None]]:
    """Return one cut of each kind, its victims drawn by chance."""
    chance, network = trial.random, links.network
    first, second, third = chance.sample(SERVICES, 3)
    store = chance.choice(ON_POSTGRES)
    node, deaf, dumb = (chance.choice(NAMES) for _ in range(3))

    def majority() -> None:
        for name in NAMES:
            links.isolate(name)

    return {
        f"{first} from the brokers, both ways": lambda: links.cut_broker(first, "both"),
        f"{second} is not heard by the brokers": lambda: links.cut_broker(second, "to_server"),
        f"{third} does not hear the brokers": lambda: links.cut_broker(third, "to_client"),
        f"{store} from Postgres, both ways": lambda: network.cut(store, links.postgres),
        f"{store} does not hear Postgres": lambda: network.cut(store, links.postgres, "to_client"),
        f"{node} from the other nodes": lambda: links.isolate(node),
        "every node from every other": majority,
        f"{deaf} does not hear the other nodes": lambda: links.isolate(deaf, "to_client"),
        f"{dumb} is not heard by the other nodes": lambda: links.isolate(dumb, "to_server"),
    }


async def black_hole(trial: Trial) -> None:
    """Row 14: two services stay cut off for longer than a client keeps a silent connection; a remit is revoked meanwhile."""
    with Network() as network:
        options = Options(prefix=dict.fromkeys(SERVICES, network.services(SERVICES)))
        async with trial.world(options) as world:
            links = Links(network, world)
            remit = await world.grant()
            world.workload.remits.append(remit)
            async with at_work(world.workload.run(PACE_S * 2), on_remit(world, remit)):
                await asyncio.sleep(2)
                away = trial.random.choice(["policy", "tokens"])
                for service in (away, "executor"):
                    links.cut_broker(service, "both")
                trial.say(f"black hole between {away}, executor and the broker")
                await asyncio.sleep(trial.random.uniform(1, 4))
                revoked = await world.people.command(
                    "emma", RevokeCommand, kind="remit", target=remit, reason="stopped while links are cut"
                )
                at = await world.admin.fetchval("select clock_timestamp()")
                trial.check("I10", revoked.status == "ok", f"revoking {remit} was answered {revoked.status}")
                await asyncio.sleep(31)
                network.heal()
                await asyncio.sleep(2)
            await world.services.ready(60)
            await trial.judge(world)
            late = await world.admin.fetchval(LATE_CLAIMS, remit, at)
            trial.check("I10", late == 0, f"{late} calls of {remit} were claimed after its revocation had returned")


async def on_remit(world: World, remit: str) -> None:
    """Propose for ever on a remit that somebody is going to revoke."""
    number = 0
    while True:
        number += 1
        world.workload.begin("pay", {"n": number, "note": "on the other remit"}, remit=remit)
        await asyncio.sleep(PACE_S * 4)


async def swizzle(trial: Trial) -> None:
    """Row 15: links are clogged one by one in random order and freed in another, while one packet of twenty is lost."""
    with Network() as network:
        options = Options(prefix=dict.fromkeys(SERVICES, network.services(SERVICES)))
        async with trial.world(options) as world:
            links = Links(network, world)
            for port in (*links.brokers, links.postgres):
                network.lose(port, 0.05)
            pairs = [(name, port) for name in SERVICES for port in links.brokers]
            pairs += [(name, links.postgres) for name in ON_POSTGRES]
            async with at_work(world.workload.run(PACE_S)):
                for _ in range(2):
                    for pair in trial.random.sample(pairs, len(pairs)):
                        network.cut(*pair)
                        await asyncio.sleep(trial.random.uniform(0, 0.8))
                    for pair in trial.random.sample(pairs, len(pairs)):
                        network.mend(*pair)
                        await asyncio.sleep(trial.random.uniform(0, 0.8))
            network.heal()
            await trial.judge(world)


async def slow_lines(trial: Trial) -> None:
    """Row 15: 200 ms more or less on every link, in small pieces, with stalls that end before anybody gives up."""
    proxies: list[TcpProxy] = []

    async def route(world: World) -> dict[str, dict[str, str]]:
        brokers = TcpProxy.nats(world.environment.nats_url, trial.random)
        store = TcpProxy.postgres(world.environment.admin_url, trial.random)
        proxies.extend([await brokers.__aenter__(), await store.__aenter__()])
        settings = {name: {"NATS_URL": brokers.url(world.environment.nats_url)} for name in SERVICES}
        for name in ON_POSTGRES:
            settings[name]["DATABASE_URL"] = store.url(world.environment.database_url(name))
        return settings

    try:
        async with trial.world(Options(prepare=route)) as world:
            async with at_work(world.workload.run(PACE_S * 4)):
                for proxy in proxies:
                    proxy.line = Line(delay_s=0.05, jitter_s=0.05, slice_bytes=1_400)
                for _ in range(5):
                    await asyncio.sleep(trial.random.uniform(1, 3))
                    stalled = trial.random.choice(proxies)
                    await stalled_for(stalled, trial.random.uniform(0.5, 4))
            for proxy in proxies:
                proxy.heal()
            await trial.judge(world)
    finally:
        for proxy in proxies:
            await proxy.__aexit__(None, None, None)


async def stalled_for(proxy: TcpProxy, seconds: float) -> None:
    """Hold everything back for a while, then let it go on as slowly as before."""
    slow = proxy.line
    proxy.line = Line(hold=frozenset({"up", "down"}))
    await asyncio.sleep(seconds)
    proxy.line = slow


ROWS = (
    Row(number=14, title="partitions of every link, both ways and one way", run=partitions, release=True, needs=NEEDS),
    Row(number=14, title="black hole longer than a connection's patience", run=black_hole, release=True, needs=NEEDS),
    Row(number=15, title="swizzle-clog with packet loss", run=swizzle, needs=NEEDS),
    Row(number=15, title="slow, jittery and stalling links", run=slow_lines),
)

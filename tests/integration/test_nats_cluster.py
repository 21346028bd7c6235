"""Three real nodes: everything is held three times, leaders move, and clients that know all nodes need no particular one."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from infra.local.nats_cluster import NAMES, NatsCluster
from infra.provision import NotNowError, provision_within
from remit.runtime.streams import CONSUMERS, STREAMS, Sizing, config_hash, consumer_spec
from services.policy.app import build
from services.policy.settings import PolicySettings
from tests.support.servers import connected, make_keys
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator
    from pathlib import Path

    from remit.runtime.service import Service

pytestmark = [pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]


@pytest.fixture(scope="module")
def keys_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(keys_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[NatsCluster]:
    async with NatsCluster(keys_dir, tmp_path_factory.mktemp("cluster")) as running:
        async with connected(running.url, keys_dir, "provisioner") as client:
            report = await provision_within(client, Sizing(replicas=3), wait_s=60)
        assert len(report.created + report.unchanged) == len(STREAMS) + len(CONSUMERS)
        yield running


@asynccontextmanager
async def policy(cluster: NatsCluster, keys_dir: Path) -> AsyncGenerator[Service]:
    """Connect one of the services by the list of nodes, as its process would."""
    service = build(PolicySettings(nats_url=cluster.url, keys_dir=keys_dir))
    service.attach(await service.broker.connect())
    yield service
    service.stopping.set()  # from here on a closed connection is no reason to end the process
    await service.broker.stop()


async def test_three_nodes_hold_three_replicas_under_the_same_hashes(cluster: NatsCluster, keys_dir: Path) -> None:
    async with connected(cluster.url, keys_dir, "provisioner") as client:
        stream = await client.jetstream().stream_info("ACTIONS")
        assert stream.config.num_replicas == 3
        assert stream.cluster is not None
        assert {stream.cluster.leader, *(p.name for p in stream.cluster.replicas or [])} == set(NAMES)
    async with policy(cluster, keys_dir) as service:
        info = await service.bus.consumer_info("ACTIONS", "policy") or {}
    assert config_hash(info["config"]) == consumer_spec("ACTIONS", "policy").hash


async def test_a_leader_moves_where_the_operator_wants_it(cluster: NatsCluster) -> None:
    for name in NAMES:
        if await cluster.leader_of("ACTIONS") != name:
            await cluster.step_down("ACTIONS", name)
        await eventually(lambda: cluster.leader_of("ACTIONS"), name)


async def test_every_login_works_while_the_first_node_is_dead(cluster: NatsCluster, keys_dir: Path) -> None:
    first = NAMES[0]
    await cluster.kill([first])
    assert cluster.running == list(NAMES[1:])
    for principal in ("provisioner", "policy", "agents/a1"):
        async with connected(cluster.url, keys_dir, principal) as client:
            assert client.is_connected
    async with policy(cluster, keys_dir) as service:
        assert service.is_connected
    await cluster.start()
    assert cluster.running == list(NAMES)


async def test_the_job_waits_for_a_majority(cluster: NatsCluster, keys_dir: Path) -> None:
    await cluster.kill(NAMES[1:])
    async with connected(cluster.nodes[NAMES[0]].url, keys_dir, "provisioner") as client:
        with pytest.raises(NotNowError):
            await provision_within(client, Sizing(replicas=3), wait_s=0)
        await cluster.start()
        report = await provision_within(client, Sizing(replicas=3), wait_s=60)
    assert len(report.unchanged) == len(STREAMS) + len(CONSUMERS)

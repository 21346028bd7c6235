"""Provisioning against the real broker: repeatable, drift is seen and repaired, what could lose data is refused."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from nats.aio.client import Client

from infra.local import key_ring, keys
from infra.local.child import LOOPBACK, free_port
from infra.local.nats_server import NatsServer, server_config
from infra.nats.config import Cluster
from infra.provision import ProvisionError, provision, provision_within
from remit.runtime.streams import CONSUMERS, REBUILD, STREAMS, Sizing, config_hash, consumer_spec, stream_hash
from tests.support.servers import own_nats

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(60)

EVERYTHING = [s.name for s in STREAMS] + [f"{c.stream}/{c.durable}" for c in CONSUMERS]


@pytest.fixture(scope="module")
def keys_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys of one environment."""
    directory = tmp_path_factory.mktemp("keys")
    keys.generate(directory, "test", ["a1"])
    return directory


@pytest.fixture
async def server(keys_dir: Path, tmp_path: Path) -> AsyncIterator[str]:
    """URL of a fresh, empty server for each test."""
    async with own_nats(tmp_path, keys_dir) as url:
        yield url


@contextlib.asynccontextmanager
async def login(server: str, keys_dir: Path, principal: str) -> AsyncGenerator[Client]:
    """Connect as one principal."""
    client = Client()
    seed = key_ring.load_nats_seed(keys_dir, principal)
    await client.connect(server, nkeys_seed_str=seed, inbox_prefix=f"_IBX.{principal}".encode())
    try:
        yield client
    finally:
        await client.close()


@pytest.fixture
async def provisioner(server: str, keys_dir: Path) -> AsyncIterator[Client]:
    """The provisioner's connection."""
    async with login(server, keys_dir, "provisioner") as client:
        yield client


async def ask(
    client: Client, subject: str, body: dict[str, Any], headers: dict[str, str] | None = None
) -> dict[str, Any]:
    """Return the JSON answer of a request."""
    return json.loads((await client.request(subject, json.dumps(body).encode(), timeout=5, headers=headers)).data)


async def live(client: Client, name: str) -> dict[str, Any]:
    """Return the live configuration of `STREAM` or `STREAM/durable`."""
    kind = f"CONSUMER.INFO.{name.replace('/', '.')}" if "/" in name else f"STREAM.INFO.{name}"
    return (await ask(client, f"$JS.API.{kind}", {}))["config"]


async def alter_consumer(client: Client, stream: str, durable: str, **changes: Any) -> None:
    """Change a consumer behind the table's back."""
    config = {**await live(client, f"{stream}/{durable}"), **changes}
    body = {"stream_name": stream, "config": config, "action": "update"}
    assert "error" not in await ask(client, f"$JS.API.CONSUMER.CREATE.{stream}.{durable}", body)


async def test_the_first_run_creates_everything_and_the_second_changes_nothing(provisioner: Client) -> None:
    first, second = await provision(provisioner), await provision(provisioner)
    assert (first.created, first.updated, first.unchanged) == (EVERYTHING, [], [])
    assert (second.created, second.updated, second.unchanged) == ([], [], EVERYTHING)


async def test_two_runs_at_once_agree(server: str, keys_dir: Path, provisioner: Client) -> None:
    async with login(server, keys_dir, "provisioner") as other:
        await asyncio.gather(*(provision_within(client, Sizing(), wait_s=20) for client in (provisioner, other)))
    assert (await provision(provisioner)).unchanged == EVERYTHING


async def test_what_the_broker_holds_hashes_to_what_the_table_says(provisioner: Client) -> None:
    await provision(provisioner, rebuild=True)
    for spec in (*CONSUMERS, *REBUILD):
        assert config_hash(await live(provisioner, f"{spec.stream}/{spec.durable}")) == spec.hash
    for stream in STREAMS:
        assert stream_hash(await live(provisioner, stream.name)) == stream_hash(stream.config())


@pytest.mark.parametrize(
    "changes",
    [
        {"ack_wait": 3_000_000_000},
        {"max_deliver": 4},
        {"max_ack_pending": 1},
        {"filter_subject": "action.*.evaluated"},
        {"headers_only": True},
        {"inactive_threshold": 60_000_000_000},
        {"backoff": [1_000_000_000, 2_000_000_000], "max_deliver": 3},
    ],
    ids=lambda changes: next(iter(changes)),
)
async def test_a_consumer_changed_behind_our_back_is_noticed(provisioner: Client, changes: dict[str, Any]) -> None:
    await provision(provisioner)
    await alter_consumer(provisioner, "ACTIONS", "policy", **changes)
    assert config_hash(await live(provisioner, "ACTIONS/policy")) != consumer_spec("ACTIONS", "policy").hash


@pytest.mark.parametrize(
    "changes",
    [
        {"headers_only": True},
        {"inactive_threshold": 60_000_000_000},
        {"backoff": [1_000_000_000, 2_000_000_000], "max_deliver": 3},
    ],
    ids=lambda changes: next(iter(changes)),
)
async def test_what_no_durable_of_ours_has_is_taken_away_again(provisioner: Client, changes: dict[str, Any]) -> None:
    await provision(provisioner)
    await alter_consumer(provisioner, "ACTIONS", "policy", **changes)
    await provision(provisioner)
    assert config_hash(await live(provisioner, "ACTIONS/policy")) == consumer_spec("ACTIONS", "policy").hash


async def test_drift_of_what_the_table_sets_is_repaired_and_named(provisioner: Client) -> None:
    await provision(provisioner)
    await alter_consumer(provisioner, "ACTIONS", "policy", ack_wait=3_000_000_000)
    stream = await live(provisioner, "ACTIONS")
    await ask(provisioner, "$JS.API.STREAM.UPDATE.ACTIONS", {**stream, "discard": "old"})
    assert stream_hash(await live(provisioner, "ACTIONS")) != stream_hash(stream)
    report = await provision(provisioner)
    assert report.updated == ["ACTIONS (discard)", "ACTIONS/policy (ack_wait)"]
    assert config_hash(await live(provisioner, "ACTIONS/policy")) == consumer_spec("ACTIONS", "policy").hash
    assert stream_hash(await live(provisioner, "ACTIONS")) == stream_hash(stream)


async def test_a_stream_that_was_rerouted_is_put_right(provisioner: Client) -> None:
    await provision(provisioner)
    config = (await ask(provisioner, "$JS.API.STREAM.INFO.DLQ", {}))["config"]
    republish = {"src": "dlq.>", "dest": "elsewhere.>"}
    answer = await ask(provisioner, "$JS.API.STREAM.UPDATE.DLQ", {**config, "republish": republish})
    assert "republish" in answer["config"]
    report = await provision(provisioner)
    assert report.updated == ["DLQ (republish)"]
    assert "republish" not in (await ask(provisioner, "$JS.API.STREAM.INFO.DLQ", {}))["config"]


async def test_a_hold_on_executions_is_no_drift_and_outlives_a_repair(
    server: str, keys_dir: Path, provisioner: Client
) -> None:
    await provision(provisioner)
    async with login(server, keys_dir, "operator") as operator:
        until = {"pause_until": "2100-01-01T00:00:00Z"}
        await ask(operator, "$JS.API.CONSUMER.PAUSE.ACTIONS.executor", until)
    held = await live(provisioner, "ACTIONS/executor")
    assert config_hash(held) == consumer_spec("ACTIONS", "executor").hash
    await alter_consumer(provisioner, "ACTIONS", "executor", ack_wait=3_000_000_000)
    assert (await provision(provisioner)).updated == ["ACTIONS/executor (ack_wait)"]
    assert (await live(provisioner, "ACTIONS/executor"))["pause_until"] == held["pause_until"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"storage": "memory"}, "storage is 'memory', the table wants 'file'"),
        ({"retention": "interest"}, "retention is 'interest'"),
        ({"subjects": ["action.*.*", "other.>"]}, "a subject would no longer be stored"),
        ({"max_bytes": 2**40}, None),
    ],
    ids=["storage", "retention", "subjects", "max_bytes"],
)
async def test_an_incompatible_stream_is_refused_by_name(
    provisioner: Client, changes: dict[str, Any], named: str | None
) -> None:
    spec = next(s for s in STREAMS if s.name == "ACTIONS")
    if named is None:  # a larger stream than the table's, within what the account may reserve
        changes, named = {"max_bytes": spec.config()["max_bytes"] + 1}, "max_bytes is .* could delete stored messages"
    config = {**spec.config(), **changes}
    assert "error" not in await ask(provisioner, "$JS.API.STREAM.CREATE.ACTIONS", config)
    with pytest.raises(ProvisionError, match=rf"ACTIONS: .*{named}"):
        await provision(provisioner)
    assert (await live(provisioner, "ACTIONS"))["subjects"] == config["subjects"]


async def test_a_stream_the_server_has_no_room_for_is_refused_by_name(provisioner: Client) -> None:
    sizing = Sizing()
    with pytest.raises(ProvisionError, match=r"ACTIONS: .*insufficient storage.*10047"):
        await provision(provisioner, replace(sizing, max_bytes={**sizing.max_bytes, "ACTIONS": 2**40}))


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Nats-Rollup": "sub"}, 10111),
        ({"Nats-TTL": "1s"}, 10166),
        ({"Nats-Schedule": "@at 2100-01-01T00:00:00Z", "Nats-Schedule-Target": "action.y.approved"}, 10188),
        ({"Nats-Batch-Id": "b", "Nats-Batch-Sequence": "1"}, 10174),
        ({"Nats-Incr": "1"}, 10168),
    ],
    ids=["rollup", "ttl", "schedule", "batch", "counter"],
)
async def test_a_switched_off_extra_is_refused_on_actions(
    server: str, keys_dir: Path, provisioner: Client, headers: dict[str, str], code: int
) -> None:
    await provision(provisioner)
    async with login(server, keys_dir, "policy") as policy:
        answer = await ask(policy, "action.x.evaluated", {}, headers)
    assert answer["error"]["err_code"] == code


async def test_three_nodes_hold_three_replicas_under_the_same_hashes(keys_dir: Path, tmp_path: Path) -> None:
    routes = [free_port() for _ in range(3)]
    async with contextlib.AsyncExitStack() as stack:
        starting: list[NatsServer] = []
        for number, route in enumerate(routes, 1):
            cluster = Cluster(
                server_name=f"n{number}",
                listen=f"{LOOPBACK}:{route}",
                routes=tuple(f"nats-route://{LOOPBACK}:{r}" for r in routes),
            )
            config = replace(server_config(keys_dir, tmp_path / f"n{number}"), cluster=cluster)
            starting.append(NatsServer(config, tmp_path / f"n{number}"))
        servers = await asyncio.gather(*(stack.enter_async_context(server) for server in starting))
        client = await stack.enter_async_context(login(servers[0].url, keys_dir, "provisioner"))
        report = await _when_the_cluster_has_a_leader(client)
        assert report.created + report.unchanged == EVERYTHING
        assert (await live(client, "ACTIONS"))["num_replicas"] == 3
        assert (await live(client, "ACTIONS/policy"))["num_replicas"] == 3
        assert config_hash(await live(client, "ACTIONS/policy")) == consumer_spec("ACTIONS", "policy").hash


async def _when_the_cluster_has_a_leader(client: Client) -> Any:
    for _ in range(40):
        try:
            return await provision(client, Sizing(replicas=3))
        except ProvisionError:
            await asyncio.sleep(0.5)
    return await provision(client, Sizing(replicas=3))


async def run_module(keys_dir: Path, url: str, *arguments: str) -> tuple[int | None, str, str]:
    """Run `python -m infra.provision` and return exit code, output and errors."""
    environment = {"REMIT_KEYS_DIR": str(keys_dir), "NATS_URL": url}
    command = [sys.executable, "-m", "infra.provision", *arguments]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=pipe, stderr=pipe)
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_the_job_prints_what_it_did(server: str, keys_dir: Path) -> None:
    code, out, _ = await run_module(keys_dir, server)
    again, repeated, _ = await run_module(keys_dir, server)
    assert (code, again) == (0, 0)
    assert out == f"created: {', '.join(EVERYTHING)}\n"
    assert repeated == f"unchanged: {', '.join(EVERYTHING)}\n"


async def test_the_job_waits_for_the_broker_and_says_so(keys_dir: Path) -> None:
    url = f"nats://{LOOPBACK}:{free_port()}"
    code, _, err = await run_module(keys_dir, url, "--wait", "1.5")
    assert code == 1
    assert f"waiting for NATS at {url}" in err
    assert "is it started, and with the keys of" in err

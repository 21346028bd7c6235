"""What each principal can do with its permission list on the real broker: its whole work, and no refusal on the way.

What the lists refuse, pair by pair, and every forgery vector stand in tests/security. A denied publish does not raise; it shows
up in `error_cb` alone, which is why each connection here collects it.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.errors import TimeoutError as NatsTimeoutError

from infra.local import key_ring, keys
from infra.local.nats_server import NatsServer, server_config
from infra.nats.identity import new_seed
from infra.provision import provision
from remit.events import ACTION_EVENTS, REMIT_EVENTS, subject_of
from remit.runtime.streams import AGENT_QUOTA, CONSUMERS, ConsumerSpec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from nats.aio.msg import Msg

pytestmark = pytest.mark.timeout(60)

AGENTS = ("a1", "a2", "a3")
ACTION_ID = "0" * 32


class Login:
    """One principal's connection with the refusals it met, lower-cased as nats-py reports them."""

    def __init__(self, client: Client, refusals: list[str]) -> None:
        """Keep both."""
        self.client, self.refusals = client, refusals

    async def refused(self, verb: str) -> set[str]:
        """Return the subjects the broker refused so far for `publish` or `subscription`."""
        await self.client.flush()
        await asyncio.sleep(0.1)
        found = [text.split('"')[1] for text in self.refusals if f"violation for {verb} to" in text]
        return set(found)

    async def ask(self, subject: str, body: bytes = b"", headers: dict[str, str] | None = None) -> dict[str, Any]:
        """Return the JSON answer of a request."""
        return json.loads((await self.client.request(subject, body, timeout=5, headers=headers)).data)


class Broker:
    """The running server, and logins to it."""

    def __init__(self, server: NatsServer, keys_dir: Path) -> None:
        """Keep both, and what to close."""
        self.server, self.keys_dir, self.open = server, keys_dir, AsyncExitStack()

    async def login(self, principal: str) -> Login:
        """Connect as a service, a client or `agents/<name>`."""
        refusals: list[str] = []

        async def collect(error: Exception) -> None:
            refusals.append(str(error).lower())

        client = Client()
        self.open.push_async_callback(client.close)
        await client.connect(
            self.server.url,
            nkeys_seed_str=key_ring.load_nats_seed(self.keys_dir, principal),
            inbox_prefix=f"_IBX.{principal.removeprefix('agents/')}".encode(),
            allow_reconnect=False,
            error_cb=collect,
        )
        return Login(client, refusals)

    async def stored(self, stream: str, subject: str) -> int:
        """Return how many messages a stream holds on a subject, as the provisioner sees it."""
        provisioner = await self.login("provisioner")
        body = json.dumps({"subjects_filter": subject}).encode()
        answer = await provisioner.ask(f"$JS.API.STREAM.INFO.{stream}", body)
        return sum((answer["state"].get("subjects") or {}).values())


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[NatsServer, Path]]:
    """One provisioned server for the module; it is not bound to a test's event loop."""
    base = tmp_path_factory.mktemp("permissions")
    keys.generate(base / "keys", "test", AGENTS)
    server = NatsServer(server_config(base / "keys", base / "nats"), base / "nats")

    async def start() -> None:
        await server.start()
        broker = Broker(server, base / "keys")
        async with broker.open:
            await provision((await broker.login("provisioner")).client)

    asyncio.run(start())
    yield server, base / "keys"
    asyncio.run(server.stop())


@pytest.fixture
async def broker(running: tuple[NatsServer, Path]) -> AsyncIterator[Broker]:
    """Logins that are closed after the test."""
    made = Broker(*running)
    async with made.open:
        yield made


@pytest.mark.parametrize("event", [*ACTION_EVENTS, *REMIT_EVENTS], ids=lambda e: e.__name__)
async def test_each_writer_of_an_event_type_gets_its_acknowledgement(broker: Broker, event: Any) -> None:
    for writer in event.writers:
        login = await broker.login(writer)
        answer = await login.ask(subject_of(event, f"{ACTION_ID}{writer}"), b"{}")
        assert answer["stream"] == event.stream
        assert not login.refusals


@pytest.mark.parametrize("service", ["intake", "policy", "approval", "tokens", "executor", "audit"])
async def test_a_service_fetches_acknowledges_and_reads_what_it_needs(broker: Broker, service: str) -> None:
    login = await broker.login(service)
    await login.ask(f"dlq.{service}", b"{}")
    for stream in ("ACTIONS", "KV_REGISTRY"):
        answer = await login.ask(f"$JS.API.STREAM.MSG.GET.{stream}", b'{"seq": 999999}')
        assert answer["error"]["err_code"] == 10037  # allowed, and there is no such message
    for spec in CONSUMERS:
        if spec.durable in {service, "results"} and (spec.durable != "results" or service == "intake"):
            await _fetch_one(broker, login, spec)
    assert not login.refusals


async def _fetch_one(broker: Broker, login: Login, spec: ConsumerSpec) -> None:
    if spec.stream == "INTAKE":
        await (await broker.login("agents/a2")).ask("propose.a2", b"{}")
    elif spec.stream == "ADVISORIES":
        # A terminated message makes the server write an advisory.
        approval = await broker.login("approval")
        await (await broker.login("policy")).ask(f"action.{ACTION_ID}.evaluated", b"{}")
        bound = await approval.client.jetstream().pull_subscribe_bind(stream="ACTIONS", durable="approval")
        await (await bound.fetch(1, timeout=5))[0].term()
    elif spec.stream == "ACTIONS":
        short = spec.subjects[0].rsplit(".", 1)[1].replace(">", "proposed")
        event = next(e for e in ACTION_EVENTS if e.short == short)
        await (await broker.login(event.writers[0])).ask(subject_of(event, ACTION_ID), b"{}")
    bound = await login.client.jetstream().pull_subscribe_bind(stream=spec.stream, durable=spec.durable)
    await (await bound.fetch(1, timeout=5))[0].ack_sync(timeout=5)


async def test_only_approval_writes_the_registry_and_services_read_it(broker: Broker) -> None:
    approval = await broker.login("approval")
    await approval.ask("$KV.REGISTRY.bundle", b"manifest")
    for service in ("intake", "policy", "tokens", "executor", "audit"):
        query = b'{"last_by_subj": "$KV.REGISTRY.bundle"}'
        answer = await (await broker.login(service)).ask("$JS.API.STREAM.MSG.GET.KV_REGISTRY", query)
        assert answer["message"]["subject"] == "$KV.REGISTRY.bundle"


async def test_an_operator_holds_executions_and_audit_restarts_its_projector(broker: Broker) -> None:
    operator, audit = await broker.login("operator"), await broker.login("audit")
    until = b'{"pause_until": "2100-01-01T00:00:00Z"}'
    paused = await operator.ask("$JS.API.CONSUMER.PAUSE.ACTIONS.executor", until)
    resumed = await operator.ask("$JS.API.CONSUMER.PAUSE.ACTIONS.executor", b"{}")
    reset = await audit.ask("$JS.API.CONSUMER.RESET.REMITS.audit", b'{"seq": 1}')
    assert paused["paused"]
    assert not resumed["paused"]
    assert reset["reset_seq"] == 1


async def test_a_proposal_crosses_the_border_with_its_signature_and_is_acknowledged_to_the_agent(
    broker: Broker,
) -> None:
    a1, before = await broker.login("agents/a1"), await broker.stored("INTAKE", "in.propose.a1")
    answer = await a1.ask("propose.a1", b"{}", headers={"Remit-Sig": "s"})
    assert answer["stream"] == "INTAKE"
    assert await broker.stored("INTAKE", "in.propose.a1") == before + 1


async def test_an_agent_over_its_quota_is_told_so_and_others_are_not_affected(broker: Broker) -> None:
    a3, a2 = await broker.login("agents/a3"), await broker.login("agents/a2")
    for _ in range(AGENT_QUOTA):
        assert "error" not in await a3.ask("propose.a3", b"{}")
    refused = await a3.ask("propose.a3", b"{}")
    assert (refused["error"]["code"], refused["error"]["err_code"]) == (503, 10077)
    assert "error" not in await a2.ask("propose.a2", b"{}")


async def test_results_reach_their_agent_and_nobody_else(broker: Broker) -> None:
    intake, a1, a2 = [await broker.login(name) for name in ("intake", "agents/a1", "agents/a2")]
    stolen = [await a1.client.subscribe(subject) for subject in ("results.a2.>", "results.>", "results.*.x")]
    own = await a2.client.subscribe("results.a2.>")
    await a1.client.flush()
    await a2.client.flush()
    await intake.client.publish("results.a2.x", b"for a2")
    assert (await own.next_msg(timeout=5)).data == b"for a2"
    assert await a1.refused("subscription") == {"results.a2.>", "results.>", "results.*.x"}
    assert [sub.pending_msgs for sub in stolen] == [0, 0, 0]


async def test_intake_answers_a_status_question_once_and_never_unasked(broker: Broker) -> None:
    intake, a1 = await broker.login("intake"), await broker.login("agents/a1")
    replies: list[str] = []

    async def answer(message: Msg) -> None:
        replies.append(message.reply)
        await intake.client.publish(message.reply, b"state", headers={})
        await intake.client.publish(message.reply, b"once more", headers={})

    await intake.client.subscribe("status.*.*", cb=answer)
    await intake.client.publish("_IBX.a1.unasked", b"")
    await intake.client.flush()
    assert (await a1.client.request("status.a1.x", b"", timeout=5)).data == b"state"
    assert replies[0].startswith("_R_.")
    assert await intake.refused("publish") == {"_ibx.a1.unasked", replies[0].lower()}


async def test_approval_answers_a_command_once_in_the_askers_inbox(broker: Broker) -> None:
    approval, dashboard = await broker.login("approval"), await broker.login("dashboard")

    async def answer(message: Msg) -> None:
        await approval.client.publish(message.reply, b"ok", headers={})

    await approval.client.subscribe("human.*", cb=answer)
    await approval.client.flush()
    assert (await dashboard.client.request("human.approve", b"{}", timeout=5)).data == b"ok"
    with pytest.raises(NatsTimeoutError):
        await dashboard.client.request("human.apply", b"{}", timeout=0.3)
    assert await dashboard.refused("publish") == {"human.apply"}


@pytest.mark.parametrize("seed", [None, new_seed()], ids=["nobody", "stranger"])
async def test_without_a_listed_key_there_is_no_connection(running: tuple[NatsServer, Path], seed: str | None) -> None:
    async def ignore(_error: Exception) -> None:
        """The refusal is raised as well."""

    client = Client()
    with pytest.raises(NatsError, match="Authorization Violation"):
        await client.connect(running[0].url, nkeys_seed_str=seed, allow_reconnect=False, error_cb=ignore)
    await client.close()


async def test_an_agent_added_by_reload_works_and_connections_stay(broker: Broker) -> None:
    a1, server = await broker.login("agents/a1"), broker.server
    keys.generate(broker.keys_dir, "test", ("late",))
    await server.reload(server_config(broker.keys_dir, server.config.store_dir.parent))
    late = await broker.login("agents/late")
    assert (await late.ask("propose.late", b"{}"))["stream"] == "INTAKE"
    assert (await a1.ask("propose.a1", b"{}"))["stream"] == "INTAKE"
    assert not a1.client.is_closed

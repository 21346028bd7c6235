"""Agent SDK, broker and intake for real: lost notices, dead brokers, restarts and wrong keys, and still one action per key.

What policy and the executor would write is appended with their own keys.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, Any

import pytest

from infra.local import key_ring
from infra.local.nats_server import NatsServer, server_config
from infra.nats import identity as nkeys
from infra.provision import provision
from remit import (
    Agent,
    AgentKeyError,
    NotConnectedError,
    NotPermittedError,
    Outcome,
    Pending,
    Reason,
    Refusal,
    Result,
    UndeliveredError,
)
from remit.canonical import b64url
from remit.client import agent as sdk
from remit.client import link
from remit.events import ActionEvaluated
from remit.nkey import signing_key
from remit.proposal import SIGNATURE_HEADER, Notice, signed_bytes
from remit.reasons import Stage, Verdict
from tests.integration.agent_world import IDENTITY, World
from tests.support import factories
from tests.support.servers import connected
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


REMIT = factories.REMIT.remit_id
ARGUMENTS = factories.ARGUMENTS
DENY = factories.EVALUATED.model_copy(update={"decision": factories.decision(Verdict.DENY, Reason.NO_GRANT)})


@pytest.fixture
async def world(tmp_path: Path, keys: Path) -> AsyncIterator[World]:
    async with NatsServer(server_config(keys, tmp_path / "data"), tmp_path / "nats") as server:
        async with connected(server.url, keys, "provisioner") as client:
            await provision(client)
        made = World(server, keys)
        await made.publish_registry(a1={"proposals_per_minute": 30})
        yield made


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask and repeat sooner than in real life."""
    monkeypatch.setattr(sdk, "FIRST_POLL_S", 0.2)
    monkeypatch.setattr(sdk, "MAX_POLL_S", 0.4)
    monkeypatch.setattr(sdk, "ACK_TIMEOUT_S", 0.5)
    monkeypatch.setattr(sdk, "DELIVERY_S", 2.0)


async def pay(
    agent: Agent, *, key: str | None = None, wait: float = 10.0, **changes: Any
) -> Result | Refusal | Pending:
    arguments = {**ARGUMENTS, **changes}
    return await agent.propose("bank.send_money", arguments, remit=REMIT, idempotency_key=key, wait=wait)


async def pending(agent: Agent, *, wait: float = 0.5, key: str | None = None, **changes: Any) -> Pending:
    found = await pay(agent, wait=wait, key=key, **changes)
    assert isinstance(found, Pending), found
    return found


async def test_allowed_call_returns_its_result(world: World) -> None:
    async with world.intake(), world.agent() as agent:
        waiting = asyncio.create_task(pay(agent, key="k"))
        action = (await pending(agent, key="k")).action_id
        await world.execute(action)
        result = await waiting
    assert isinstance(result, Result)
    assert (result.outcome, result.action_id, result.value) == (Outcome.SUCCEEDED, action, factories.EXECUTED.result)


async def test_denied_call_is_refused_with_stage_and_reason(world: World) -> None:
    async with world.intake(), world.agent() as agent:
        waiting = await pending(agent)
        await world.write("policy", ActionEvaluated, DENY, waiting.action_id)
        refusal = await waiting.wait(10)
    assert isinstance(refusal, Refusal)
    assert (refusal.stage, refusal.reason) == (Stage.POLICY, Reason.NO_GRANT)


async def test_duplicate_proposal_returns_same_result_and_makes_no_second_action(world: World) -> None:
    async with world.intake(), world.agent() as agent:
        first = await pending(agent, key="once")
        await world.execute(first.action_id)
        results = [await pay(agent, key="once") for _ in range(2)]
    assert results[0] == results[1]
    assert isinstance(results[0], Result)
    assert results[0].action_id == first.action_id
    assert len((await world.state(first.action_id)).chain) == 6


async def test_reused_key_for_another_call_is_refused(world: World) -> None:
    async with world.intake(), world.agent() as agent:
        first = await pending(agent, key="once")
        await world.execute(first.action_id)
        other = await pay(agent, key="once", amount=5)
    assert isinstance(other, Refusal)
    assert other.reason is Reason.IDEMPOTENCY_CONFLICT


@pytest.mark.parametrize(
    ("call", "arguments", "reason"),
    [
        ("bnak.send_money", ARGUMENTS, Reason.UNKNOWN_TOOL),
        ("bank.send_mony", ARGUMENTS, Reason.UNKNOWN_ACTION),
        ("bank.send_money", {**ARGUMENTS, "bcc": "x"}, Reason.SCHEMA_VIOLATION),
        ("bank.send_money", {**ARGUMENTS, "amount": "much"}, Reason.SCHEMA_VIOLATION),
    ],
    ids=["unknown tool", "unknown action", "unknown argument", "schema"],
)
async def test_bad_call_is_refused_by_intake(
    world: World, call: str, arguments: dict[str, Any], reason: Reason
) -> None:
    async with world.intake(), world.agent() as agent:
        refusal = await agent.propose(call, arguments, remit=REMIT)
    assert isinstance(refusal, Refusal)
    assert (refusal.stage, refusal.reason, refusal.action_id) == (Stage.INTAKE, reason, None)


@pytest.mark.parametrize(
    ("body", "signed_by", "reason"),
    [
        (b"{", "bookkeeper", Reason.MALFORMED),
        (b'{"v":2}', "bookkeeper", Reason.UNSUPPORTED_VERSION),
        (b"{}", "a1", Reason.BAD_SIGNATURE),
        (b"x" * 30_000, "bookkeeper", Reason.OVERSIZE),
    ],
    ids=["malformed", "version", "signature", "oversize"],
)
async def test_bad_bytes_are_refused_by_intake_and_kept_as_evidence(
    world: World, body: bytes, signed_by: str, reason: Reason
) -> None:
    seed = key_ring.load_nats_seed(world.keys, f"agents/{signed_by}")
    signature = signing_key(seed).sign(signed_bytes("bookkeeper", body)).signature
    async with world.intake() as intake, connected(world.server.url, world.keys, "agents/bookkeeper") as raw:
        heard = await raw.subscribe("results.bookkeeper.>")
        await raw.request("propose.bookkeeper", body, timeout=5, headers={SIGNATURE_HEADER: b64url(signature)})
        message = await heard.next_msg(timeout=10)
        letters = intake.telemetry.registry.get_sample_value("remit_dead_letters_total", {"code": reason.value})
    assert message.subject == "results.bookkeeper.rejected"
    assert Notice.model_validate_json(message.data).reason is reason
    assert letters == 1


@pytest.mark.usefixtures("hurried")
async def test_lost_notices_are_made_good_by_status(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def deaf(_link: link.Link, _message: object) -> None:
        return

    monkeypatch.setattr(link.Link, "_on_message", deaf)
    async with world.intake(), world.agent() as agent:
        waiting = await pending(agent, wait=1.5)
        await world.execute(waiting.action_id)
        result = await waiting.wait(10)
    assert isinstance(result, Result)


@pytest.mark.usefixtures("hurried")
async def test_lost_refusal_is_made_good_by_proposing_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = link.Link._on_message
    lost: list[object] = []

    async def lose_the_first(self: link.Link, message: Any) -> None:
        if lost:
            await heard(self, message)
        lost.append(message)

    monkeypatch.setattr(link.Link, "_on_message", lose_the_first)
    async with world.intake(), world.agent() as agent:
        refusal = await agent.propose("bank.unheard_of", {}, remit=REMIT, wait=10)
    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason.UNKNOWN_ACTION
    assert len(lost) >= 2


@pytest.mark.usefixtures("hurried")
async def test_pending_handle_survives_a_restart_of_the_agent(world: World) -> None:
    async with world.intake():
        async with world.agent() as agent:
            handle = (await pending(agent, key="a/b")).handle
        async with world.agent() as reborn:
            resumed = Pending.resume(reborn, handle)
            await world.execute(resumed.action_id)
            result = await resumed.wait(10)
    assert isinstance(result, Result)
    assert result.idempotency_key == "a/b"


@pytest.mark.usefixtures("hurried")
async def test_proposal_made_while_intake_is_down_is_not_lost(world: World) -> None:
    async with world.agent() as agent:
        waiting = await pending(agent)
        async with world.agent() as reborn, world.intake():
            await eventually(lambda: _is_proposed(world, waiting.action_id))
            await world.execute(waiting.action_id)
            results = await asyncio.gather(waiting.wait(10), reborn.pending(waiting.handle).wait(10))
    assert all(isinstance(result, Result) for result in results), results


async def _is_proposed(world: World, action_id: str) -> bool:
    return bool((await world.state(action_id)).chain)


@pytest.mark.usefixtures("hurried")
async def test_killed_broker_comes_back_and_the_call_is_finished(world: World) -> None:
    async with world.intake(), world.agent() as agent:
        first = await pending(agent)
        await world.server.kill()
        waiting = asyncio.create_task(first.wait(30))
        blind = asyncio.create_task(pay(agent, key="blind", wait=30))
        await asyncio.sleep(0.5)
        await world.server.start()
        await world.execute(first.action_id)
        assert isinstance(await waiting, Result)
        second = await pending(agent, key="blind")
        await eventually(lambda: _is_proposed(world, second.action_id))
        await world.execute(second.action_id)
        assert isinstance(await blind, Result)


@pytest.mark.usefixtures("hurried")
async def test_client_that_nats_py_closed_for_ever_is_rebuilt(world: World) -> None:
    async with world.intake(), world.agent() as agent:
        first = await pending(agent)
        client = agent._link._client
        assert client is not None
        await client._process_err("'unknown protocol operation'")
        await eventually(lambda: client.is_closed)
        waiting = asyncio.create_task(first.wait(10))
        await world.execute(first.action_id)
        assert isinstance(await waiting, Result)


async def test_quota_refusal_is_waited_out(world: World) -> None:
    async with world.intake(), world.agent("a1") as agent:
        await asyncio.gather(*(pay(agent, key=f"k{n}", wait=0.2) for n in range(30)))
        refusal = await pay(agent, key="one-too-many", wait=0.2)
        assert isinstance(refusal, Refusal)
        assert refusal.reason is Reason.QUOTA_EXCEEDED
        late = await pay(agent, key="one-too-many", wait=6)
        assert isinstance(late, Pending)
    assert await _is_proposed(world, late.action_id)


async def test_full_queue_at_the_broker_is_a_quota_refusal_and_not_an_error(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sdk, "DELIVERY_S", 1.0)
    async with connected(world.server.url, world.keys, "agents/bookkeeper") as raw:
        await asyncio.gather(*(raw.request("propose.bookkeeper", b"{}", timeout=5) for _ in range(256)))
    async with world.agent() as agent:
        refusal = await pay(agent, wait=0)
    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason.QUOTA_EXCEEDED


async def test_agent_learns_nothing_about_another_agents_action(world: World) -> None:
    async with world.intake(), world.agent() as owner, world.agent("a1") as stranger:
        action = (await pending(owner)).action_id
        await world.execute(action)
        assert isinstance(await stranger.pending(action).wait(1.0), Pending)
        assert isinstance(await owner.pending(action).wait(5.0), Result)


async def test_unknown_seed_is_named_as_such(world: World) -> None:
    stranger = Agent(name="bookkeeper", nkey_seed=nkeys.new_seed(), identity=IDENTITY, servers=world.server.url)
    with pytest.raises(AgentKeyError, match="does not know the key of agent bookkeeper"):
        await stranger.__aenter__()


async def test_seed_of_another_agent_names_the_refused_subject(world: World) -> None:
    with pytest.raises(NotPermittedError, match=r"subscribe to results\.a1\.>"):
        await world.agent("a1", seed_of="bookkeeper").__aenter__()


async def test_unreachable_server_is_named_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "CONNECT_TIMEOUT_S", 0.5)
    nowhere = Agent(name="a", nkey_seed=nkeys.new_seed(), identity=IDENTITY, servers="nats://127.0.0.1:9")
    with pytest.raises(NotConnectedError, match=r"127\.0\.0\.1:9 .*start the broker"):
        await nowhere.__aenter__()


@pytest.mark.usefixtures("hurried")
async def test_proposal_without_any_acknowledgement_says_how_to_go_on(world: World) -> None:
    async with world.agent() as agent:
        await world.server.kill()
        with pytest.raises(UndeliveredError) as caught:
            await pay(agent, key="again", wait=1)
    assert caught.value.idempotency_key == "again"


async def test_closed_agent_says_so(world: World) -> None:
    async with world.agent() as agent:
        pass
    with pytest.raises(NotConnectedError, match="async with"):
        await agent.__aenter__()


async def test_many_calls_at_once_get_each_their_own_answer(world: World) -> None:
    keys = [secrets.token_hex(8) for _ in range(40)]
    async with world.intake(), world.agent() as agent:
        found = await asyncio.gather(*(pending(agent, key=key, wait=1.0, amount=n) for n, key in enumerate(keys)))
    assert [each.idempotency_key for each in found] == keys
    assert len({each.action_id for each in found}) == len(keys)

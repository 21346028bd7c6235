"""The forgery table of the design as attacks by a compromised service with its own broker login and its own signing key.

A service can put junk on any subject of its account through a reply subject: only signatures and the fold rule make it harmless.
So each test reads what was stored, folds it as the services do, and lets the victim's action go on.
Source: design, bus section 9.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from infra.local import keys
from remit.envelope import Signed, seal, signed_from, verify
from remit.errors import EnvelopeError
from remit.events import ACTION_EVENTS, ActionApproved, ActionProposed
from remit.fold import step
from remit.ids import action_id, event_id
from remit.runtime.keys import load_service_keys
from remit.runtime.requests import Answer, Responder
from remit.runtime.telemetry import Telemetry
from tests.security.design_table import SERVICES
from tests.security.scene import Scene, running_scene
from tests.support import factories
from tests.support.servers import connected
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from remit.envelope import Recorded
    from remit.fold import ActionState
    from remit.runtime.bus import Stored

pytestmark = pytest.mark.timeout(60)

SETTLE_S = 0.2
ASKING: dict[str, str] = {
    "acknowledgement of an append": "dlq.{service}",
    "leader read": "$JS.API.STREAM.MSG.GET.ACTIONS",
    "consumer info": "$JS.API.CONSUMER.INFO.ACTIONS.{durable}",
    "empty fetch": "$JS.API.CONSUMER.MSG.NEXT.ACTIONS.{durable}",
}
"""Requests whose answer the broker sends wherever the asker says."""
TERMINAL = ("approved", "revoked", "executed", "refused", "audited")


@pytest.fixture(scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    """One broker for the module."""
    async with running_scene(tmp_path_factory.mktemp("service-forgery")) as made:
        yield made


@pytest.fixture
async def victim(scene: Scene, request: pytest.FixtureRequest) -> ActionState:
    """A fresh action that waits for people."""
    return await scene.asked(request.node.name)


async def is_unharmed(scene: Scene, victim: ActionState, junk: int) -> None:
    """Assert that junk counts as sequences and as nothing else, and that the action goes on."""
    now = await scene.state(victim.action_id)
    assert now.chain == victim.chain
    assert (now.last_seq > victim.last_seq) is bool(junk)
    approved = await scene.approve(victim.action_id)
    assert isinstance(approved.last, ActionApproved)
    assert len(approved.chain) == len(victim.chain) + 1


def finding(scene: Scene, stored: Stored) -> str:
    """Return the closed code with which everybody refuses a stored message."""
    with pytest.raises(EnvelopeError) as refused:
        verify(signed_from(stored.subject, stored.body, stored.headers), scene.trust())
    return refused.value.code


@pytest.mark.parametrize("how", ASKING.values(), ids=ASKING.keys())
@pytest.mark.parametrize("service", SERVICES)
async def test_answer_of_the_broker_on_an_event_subject_is_junk(
    scene: Scene, victim: ActionState, service: str, how: str
) -> None:
    asked = how.replace("{service}", service).replace("{durable}", {"intake": "results"}.get(service, service))
    body = {"seq": 1} if "GET" in asked else {"batch": 1, "no_wait": True} if "NEXT" in asked else {}
    subject = f"action.{victim.action_id}"
    before = (await scene.marks())["ACTIONS"]
    async with scene.attacker(service) as client:
        await drained(client, asked)
        before = (await scene.marks())["ACTIONS"]
        for short in TERMINAL:
            client.publish(asked, json.dumps(body).encode(), reply=f"{subject}.{short}")
            await client.flush()
        await asyncio.sleep(SETTLE_S)
        assert client.errors == []
    stored = await scene.stored_since("ACTIONS", before)
    # A fetch by audit brings the junk of the fetch before it, under its old subject.
    assert len(stored) >= len(TERMINAL)
    assert {s.subject for s in stored} <= {f"{subject}.{short}" for short in TERMINAL}
    assert {finding(scene, s) for s in stored} == {"signature"}
    await is_unharmed(scene, victim, len(stored))


async def drained(client: Any, asked: str) -> None:
    """Empty a consumer into the attacker's own inbox, so that the next fetch brings the broker's status alone."""
    if "NEXT" in asked:
        client.subscribe(f"{client.inbox}.drain")
        client.publish(asked, b'{"batch": 5000, "no_wait": true}', reply=f"{client.inbox}.drain")
        await client.flush()
        await asyncio.sleep(SETTLE_S)


async def test_reply_to_a_foreign_proposal_subject_makes_no_proposal(scene: Scene) -> None:
    await scene.publish_registry()
    async with scene.intake(), scene.attacker("policy") as policy, scene.attacker("agents/a1") as a1:
        before = await scene.marks()
        a1.subscribe("results.a1.>")
        await a1.flush()
        policy.publish("dlq.policy", b"{}", reply="in.propose.a1")
        await policy.flush()
        await eventually(lambda: len(a1.heard), 1)
        after = await scene.marks()
    assert a1.heard[0].answer["status"] == "rejected"
    assert (after["ACTIONS"], after["INTAKE"].messages) == (before["ACTIONS"], 0)


async def test_fetched_proposal_on_an_event_subject_keeps_its_subject_and_no_consumer_overlooks_it(
    scene: Scene, victim: ActionState
) -> None:
    # The broker stores a delivery under the subject the message had: ACTIONS then holds one that no filter on `action.>` passes.
    before = (await scene.marks())["ACTIONS"]
    async with scene.attacker("agents/a1") as a1, scene.attacker("intake") as intake:
        await a1.ask("propose.a1", b"a whole event in an agent's words", headers={"Remit-Kid": "x", "Remit-Sig": "eA"})
        fetch = b'{"batch": 1, "expires": 2000000000}'
        intake.publish("$JS.API.CONSUMER.MSG.NEXT.INTAKE.intake", fetch, reply=f"action.{victim.action_id}.approved")
        await intake.flush()
        await asyncio.sleep(SETTLE_S)
    (stored,) = await scene.stored_since("ACTIONS", before)
    assert (stored.subject, stored.body) == ("in.propose.a1", b"a whole event in an agent's words")
    assert finding(scene, stored) == "subject"
    heard = await pending(scene, "audit")
    assert stored.seq in heard
    assert heard == list(range(heard[0], heard[0] + len(heard)))
    await is_unharmed(scene, victim, 0)


async def pending(scene: Scene, durable: str) -> list[int]:
    """Return the stream sequences that a durable of ACTIONS still delivers."""
    async with scene.attacker(durable) as client:
        client.subscribe(f"{client.inbox}.all")
        asked = f"$JS.API.CONSUMER.MSG.NEXT.ACTIONS.{durable}"
        client.publish(asked, b'{"batch": 5000, "no_wait": true}', reply=f"{client.inbox}.all")
        await client.flush()
        await asyncio.sleep(SETTLE_S)
        return [int(m.reply.split(".")[-4]) for m in client.heard if m.reply.startswith("$JS.ACK.")]


async def test_fetched_event_that_carries_its_sequence_check_cannot_be_stored_again(
    scene: Scene, victim: ActionState
) -> None:
    before = (await scene.marks())["ACTIONS"]
    async with scene.attacker("approval") as approval:
        fetch = b'{"batch": 100, "no_wait": true}'
        approval.publish(
            "$JS.API.CONSUMER.MSG.NEXT.ACTIONS.approval", fetch, reply=f"action.{victim.action_id}.approved"
        )
        await approval.flush()
        await asyncio.sleep(SETTLE_S)
    stored = await scene.stored_since("ACTIONS", before)
    assert [s for s in stored if s.body] == []
    assert {finding(scene, s) for s in stored} <= {"signature"}
    await is_unharmed(scene, victim, len(stored))


@pytest.mark.parametrize("asker", ["cli", "dashboard"])
async def test_reply_of_a_command_reaches_inboxes_only(scene: Scene, victim: ActionState, asker: str) -> None:
    heard: list[str] = []

    async def answer(message: Any) -> bytes:
        heard.append(message.reply)
        return b'{"status": "ok"}'

    before = await scene.marks()
    async with connected(scene.server.url, scene.keys, "approval") as client, scene.attacker(asker) as attacker:
        await Responder(client, Answer("human.*", answer), Telemetry("approval")).listen("approval")
        await client.flush()
        for short in TERMINAL:
            reply = f"action.{victim.action_id}.{short}"
            attacker.publish("human.grant", b"{}", reply=reply, headers={"reply_to": reply, "Nats-Msg-Id": "x"})
        await attacker.flush()
        await eventually(lambda: len(heard), len(TERMINAL))
        assert (await attacker.ask("human.grant", b"{}"))["status"] == "ok"
    assert await scene.marks() == before
    await is_unharmed(scene, victim, 0)


async def test_reply_to_header_makes_no_service_publish(scene: Scene, victim: ActionState) -> None:
    await scene.publish_registry()
    before = await scene.marks()
    async with scene.intake(), scene.attacker("agents/a1") as a1, scene.attacker("policy") as policy:
        a1.subscribe("results.a1.>")
        for subject in (f"action.{victim.action_id}.approved", "results.a2.x1", "$KV.REGISTRY.bundle"):
            for name in ("reply_to", "Reply-To", "correlation_id"):
                a1.publish("propose.a1", b"{}", headers={name: subject})
            await policy.ask(f"action.{victim.action_id}.evaluated", b"{}", headers={"reply_to": subject})
        await a1.flush()
        await eventually(lambda: len(a1.heard), 9)
    after = await scene.marks()
    assert after["ACTIONS"].messages - before["ACTIONS"].messages == 3
    assert after["KV_REGISTRY"] == before["KV_REGISTRY"]
    await is_unharmed(scene, victim, 3)


async def test_subject_with_a_wildcard_for_an_id_is_one_odd_subject(scene: Scene, victim: ActionState) -> None:
    before = (await scene.marks())["ACTIONS"]
    async with scene.attacker("approval") as approval:
        for subject in ("action.*.approved", "action.>.approved", "action.*.revoked"):
            assert (await approval.ask(subject, b"{}"))["stream"] == "ACTIONS"
    stored = await scene.stored_since("ACTIONS", before)
    assert {finding(scene, s) for s in stored} == {"signature"}
    assert (await scene.state(victim.action_id)) == victim
    await is_unharmed(scene, victim, 0)


async def test_guessed_message_id_suppresses_nothing(scene: Scene) -> None:
    identity = action_id("default", "bookkeeper", "guessed")
    async with scene.attacker("executor") as executor:
        for kind in ("proposed", "evaluated", "approval_requested", "approved"):
            headers = {"Nats-Msg-Id": event_id(identity, f"action.{kind}")}
            assert "duplicate" not in await executor.ask(f"action.{identity}.executed", b"{}", headers=headers)
    state = await scene.asked("guessed")
    assert [record.event.n for record in state.chain] == [1, 2, 3]
    await is_unharmed(scene, state, 0)


async def test_stolen_message_id_is_noticed_and_the_event_is_stored_anyway(scene: Scene, victim: ActionState) -> None:
    stolen = scene.signer("approval").message_id(event_id(victim.action_id, "action.approved"))
    poison = f"action.{victim.action_id}.executed"
    async with scene.attacker("executor") as executor:
        assert "duplicate" not in await executor.ask(poison, b"other bytes", headers={"Nats-Msg-Id": stolen})
    await is_unharmed(scene, victim, 1)


def resent(record: Recorded) -> dict[str, str]:
    """Return the headers of a replay: without the sequence check, under no message id."""
    return record.signed.headers()


async def test_replay_on_its_own_subject_is_stored_and_folds_nothing(scene: Scene, victim: ActionState) -> None:
    before = (await scene.marks())["ACTIONS"]
    for record, service in zip(victim.chain, ("intake", "policy", "approval"), strict=True):
        async with scene.attacker(service) as client:
            answer = await client.ask(record.signed.subject, record.signed.body, headers=resent(record))
            assert answer["stream"] == "ACTIONS"
    stored = await scene.stored_since("ACTIONS", before)
    assert [s.body for s in stored] == [record.signed.body for record in victim.chain]
    replayed = [verify(signed_from(s.subject, s.body, s.headers), scene.trust()) for s in stored]
    assert [step(victim, r, s.seq)[1] for r, s in zip(replayed, stored, strict=True)] == ["duplicate"] * 3
    await is_unharmed(scene, victim, 3)


async def test_replay_on_another_action_or_another_type_is_no_signature(scene: Scene, victim: ActionState) -> None:
    other = await scene.asked("the other action")
    last = victim.chain[-1]
    before = (await scene.marks())["ACTIONS"]
    async with scene.attacker("approval") as approval:
        for subject in (f"action.{other.action_id}.approval_requested", f"action.{victim.action_id}.approved"):
            await approval.ask(subject, last.signed.body, headers=resent(last))
    stored = await scene.stored_since("ACTIONS", before)
    assert [finding(scene, s) for s in stored] == ["signature", "signature"]
    await is_unharmed(scene, other, 1)
    await is_unharmed(scene, victim, 1)


@pytest.mark.parametrize("named", ["the other environment's kid", "a kid of this environment"])
async def test_event_of_another_environment_is_believed_by_nobody(
    scene: Scene, victim: ActionState, tmp_path: Path, named: str
) -> None:
    keys.generate(tmp_path / "staging", "staging")
    foreign = load_service_keys(tmp_path / "staging", "approval").signer
    kid = "approval-staging" if "other" in named else scene.signer("approval").kid
    place = factories.Place(n=4, prev=victim.head, causeseq=victim.last_seq)
    event = factories.record("action.approved", place=place, subject=victim.action_id).event
    forged = seal(
        event.model_copy(update={"kid": kid}),
        subject=f"action.{victim.action_id}.approved",
        signer=replace(foreign, kid=kid),
    )
    before = (await scene.marks())["ACTIONS"]
    async with scene.attacker("approval") as approval:
        await approval.ask(forged.signed.subject, forged.signed.body, headers=forged.signed.headers())
    (stored,) = await scene.stored_since("ACTIONS", before)
    code = finding(scene, stored)
    assert code == ("kid" if "other" in named else "signature")
    assert step(victim, verify_nothing(victim), stored.seq)[0].chain == victim.chain
    if code == "signature":
        await is_unharmed(scene, victim, 1)


def verify_nothing(victim: ActionState) -> Recorded:
    """Return an event that everybody has folded already."""
    return victim.chain[0]


@pytest.mark.parametrize("event", [e for e in ACTION_EVENTS if e is not ActionProposed], ids=lambda e: e.short)
async def test_no_type_is_believed_from_a_key_that_may_not_emit_it(
    scene: Scene, victim: ActionState, event: Any
) -> None:
    place = factories.Place(n=4, prev=victim.head, causeseq=victim.last_seq)
    honest = factories.record(f"action.{event.short}", place=place, subject=victim.action_id).event
    for service in set(SERVICES) - set(event.writers):
        signer = scene.signer(service)
        body = honest.model_copy(update={"kid": signer.kid, "source": f"/remit/{service}"})
        signed: Signed = seal(body, subject=f"action.{victim.action_id}.{event.short}", signer=signer).signed
        with pytest.raises(EnvelopeError) as refused:
            verify(signed, scene.trust())
        assert refused.value.code == "type"

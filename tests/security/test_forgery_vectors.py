"""The forgery table of the design, as attacks by an agent and at the broker itself: what ends up in the streams, and what folds.

Each attack is raw bytes under the attacker's own key. The witness then reads what was really stored, and the services' own fold
says what became of the victim's action. Source: design, bus section 9 (forgery vectors). What only a service can try stands in
`test_forgery_by_service.py`.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from remit.ids import action_id, event_id
from tests.security.design_table import SERVICES, TABLE
from tests.security.scene import Scene, running_scene
from tests.support import factories

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from remit.fold import ActionState

pytestmark = pytest.mark.timeout(60)

REMIT_ID = factories.REMIT.remit_id
SETTLE_S = 0.1
"""The broker acts on what it has read; a message that crosses an account is stored a moment later."""
VICTIM = "victim"
TARGETS = (
    "action.{action}.approved", "action.{action}.revoked", "action.{action}.executed", "action.{action}.proposed",
    f"remit.{REMIT_ID}.granted", f"remit.{REMIT_ID}.revoked", "in.propose.a2", "propose.a2",
    "human.grant", "redrive.tokens", "dlq.intake", "$KV.REGISTRY.bundle", "$JS.API.STREAM.PURGE.ACTIONS",
    "$JS.API.STREAM.MSG.DELETE.ACTIONS", "$JS.API.CONSUMER.DELETE.ACTIONS.audit",
)  # fmt: skip
EXTRAS = {
    "schedule with a target": ({"Nats-Schedule": "@at 2030-01-01T00:00:00Z", "Nats-Schedule-Target": "{target}"}, 10188),
    "repeated schedule": (
        {"Nats-Schedule": "@every 1s", "Nats-Schedule-Target": "{target}", "Nats-Schedule-TTL": "5m"}, 10188,
    ),
    "schedule that purges": ({"Nats-Schedule-Next": "purge", "Nats-Scheduler": "{target}"}, 10188),
    "time to live": ({"Nats-TTL": "1s"}, 10166),
    "no time to live": ({"Nats-TTL": "never"}, 10166),
    "rollup of the subject": ({"Nats-Rollup": "sub"}, 10111),
    "rollup of the stream": ({"Nats-Rollup": "all"}, 10111),
    "counter": ({"Nats-Incr": "+1"}, 10168),
    "atomic batch": ({"Nats-Batch-Id": "b1", "Nats-Batch-Sequence": "1"}, 10174),
    "atomic batch, committed": ({"Nats-Batch-Id": "b1", "Nats-Batch-Sequence": "1", "Nats-Batch-Commit": "1"}, 10174),
}  # fmt: skip
"""Headers that forge or erase, each with the broker's own code for refusing it while its flag is off (design, bus section 2)."""
ADMIN = (
    "STREAM.PURGE.ACTIONS", "STREAM.PURGE.INTAKE", "STREAM.PURGE.REMITS", "STREAM.PURGE.KV_REGISTRY", "STREAM.DELETE.ACTIONS",
    "STREAM.DELETE.INTAKE", "STREAM.MSG.DELETE.ACTIONS", "STREAM.MSG.DELETE.KV_REGISTRY", "CONSUMER.DELETE.ACTIONS.audit",
    "CONSUMER.DELETE.ACTIONS.policy", "DIRECT.GET.ACTIONS", "DIRECT.GET.INTAKE", "STREAM.MSG.GET.INTAKE",
    "STREAM.RESTORE.ACTIONS", "CONSUMER.UNPIN.ACTIONS.executor", "META.LEADER.STEPDOWN", "ACCOUNT.PURGE.REMIT",
)  # fmt: skip
PUSH = (
    b'{"stream_name":"ACTIONS","config":{"name":"evil","durable_name":"evil","ack_policy":"none",'
    b'"deliver_subject":"action.x1.approved","deliver_policy":"all"}}'
)


@pytest.fixture(scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    """One broker for the module."""
    async with running_scene(tmp_path_factory.mktemp("forgery")) as made:
        yield made


@pytest.fixture(scope="module")
async def victim(scene: Scene) -> ActionState:
    """An action of somebody else's that waits for people."""
    return await scene.asked(VICTIM)


def aimed(text: str, victim: ActionState) -> str:
    return text.replace("{action}", victim.action_id)


@pytest.mark.parametrize("target", TARGETS)
async def test_reply_subject_of_an_agent_ends_at_the_account_border(
    scene: Scene, victim: ActionState, target: str
) -> None:
    before = await scene.marks()
    reply = aimed(target, victim)
    async with scene.attacker("agents/a2") as other, scene.attacker("approval") as approval:
        for client, names in ((other, TABLE["agents/a2"].subscribe), (approval, ["human.*", "redrive.approval"])):
            for name in names:
                client.subscribe(name)
            await client.flush()
        async with scene.attacker("agents/a1") as a1:
            for subject in ("propose.a1", f"status.a1.{victim.action_id}"):
                a1.publish(subject, b"{}", reply=reply)
                a1.publish(subject, b"{}", reply=reply, headers={"reply_to": reply, "Reply-To": reply})
            await a1.flush()
            await asyncio.sleep(SETTLE_S)
        heard = [message.subject for message in (*other.heard, *approval.heard)]
    after = await scene.marks()
    own = after["INTAKE"].messages - before["INTAKE"].messages
    assert {name for name in after if after[name] != before[name]} == {"INTAKE"}
    assert (own, await intake_subjects(scene)) == (2, {"in.propose.a1"})
    assert heard == []
    assert await scene.state(victim.action_id) == victim


async def intake_subjects(scene: Scene) -> set[str]:
    """Return on whose subjects proposals wait."""
    answer = await scene.provisioner.ask("$JS.API.STREAM.INFO.INTAKE", b'{"subjects_filter": ">"}')
    return set(answer["state"]["subjects"])


@pytest.mark.parametrize(("headers", "code"), EXTRAS.values(), ids=EXTRAS.keys())
@pytest.mark.parametrize(
    ("principal", "subject"),
    [("agents/a1", "propose.a1"), ("policy", "action.{action}.evaluated"), ("approval", f"remit.{REMIT_ID}.granted")],
    ids=["INTAKE", "ACTIONS", "REMITS"],
)
async def test_headers_that_forge_or_erase_are_refused_by_their_own_code(
    scene: Scene, victim: ActionState, principal: str, subject: str, headers: dict[str, str], code: int
) -> None:
    before = await scene.marks()
    target = aimed("action.{action}.approved" if principal != "agents/a1" else "in.propose.a2", victim)
    sent = {name: value.replace("{target}", target) for name, value in headers.items()}
    async with scene.attacker(principal) as client:
        answer = await client.ask(aimed(subject, victim), b"forged", headers=sent)
    assert answer["error"]["err_code"] == code
    assert await scene.marks() == before
    assert await scene.state(victim.action_id) == victim


async def test_registry_bucket_rolls_nothing_up_and_lets_nothing_expire(scene: Scene) -> None:
    before = await scene.marks()
    async with scene.attacker("approval") as approval:
        for headers, code in EXTRAS.values():
            sent = {name: value.replace("{target}", "$KV.REGISTRY.other") for name, value in headers.items()}
            answer = await approval.ask("$KV.REGISTRY.bundle", b"{}", headers=sent)
            assert answer["error"]["err_code"] == code
    assert await scene.marks() == before


async def test_fifty_open_batches_of_one_agent_cost_nobody_anything(scene: Scene, victim: ActionState) -> None:
    async with scene.attacker("agents/a1") as a1, scene.attacker("agents/a2") as a2, scene.attacker("policy") as policy:
        for number in range(50):
            opened = {"Nats-Batch-Id": f"half-open-{number}", "Nats-Batch-Sequence": "1"}
            assert (await a1.ask("propose.a1", b"{}", headers=opened))["error"]["err_code"] == 10174
            refused = await policy.ask(aimed("action.{action}.evaluated", victim), b"{}", headers=opened)
            assert refused["error"]["err_code"] == 10174
        assert (await a2.ask("propose.a2", b"{}"))["stream"] == "INTAKE"
    other = await scene.asked("after fifty batches")
    assert [record.event.n for record in other.chain] == [1, 2, 3]


async def test_message_id_of_somebody_elses_next_event_suppresses_nothing(scene: Scene) -> None:
    identity = action_id("default", "bookkeeper", "suppressed")
    guesses = [event_id(identity, f"action.{kind}") for kind in ("proposed", "evaluated", "approval_requested")]
    # Even the true ids, which are HMACs under secrets that no agent has, belong to another stream than the agent's.
    guesses += [scene.signer(s).message_id(g) for s, g in zip(("intake", "policy", "approval"), guesses, strict=True)]
    async with scene.attacker("agents/a1") as a1:
        for guess in guesses:
            assert "error" not in await a1.ask("propose.a1", b"{}", headers={"Nats-Msg-Id": guess})
    assert [r.event.n for r in (await scene.asked("suppressed")).chain] == [1, 2, 3]


async def test_message_id_of_another_agents_proposal_suppresses_it_for_its_own_retry_only(scene: Scene) -> None:
    # INTAKE is shared, so an id that is guessed there would be a duplicate: the SDK sends none.
    async with scene.attacker("agents/a1") as a1, scene.attacker("agents/a2") as a2:
        assert "duplicate" not in await a1.ask("propose.a1", b"{}", headers={"Nats-Msg-Id": "guessed"})
        assert "duplicate" not in await a2.ask("propose.a2", b"{}")


@pytest.mark.parametrize("principal", ["agents/a1", *SERVICES])
async def test_trace_destination_needs_the_right_to_publish_there(
    scene: Scene, victim: ActionState, principal: str
) -> None:
    own = {"agents/a1": "propose.a1"}.get(principal, f"dlq.{principal}")
    foreign = "results.a2.x1" if principal != "intake" else "action.{action}.approved"
    before = await scene.marks()
    async with scene.attacker(principal) as client:
        for only in ("", "true"):
            for target in (foreign, "$KV.REGISTRY.x1" if principal != "approval" else "action.{action}.executed"):
                trace = {"Nats-Trace-Dest": aimed(target, victim), **({"Nats-Trace-Only": only} if only else {})}
                client.publish(own, b"{}", headers=trace)
        await client.flush()
        await asyncio.sleep(SETTLE_S)
        assert len(client.refused("Publish")) == 2
    assert await scene.marks() == before
    assert await scene.state(victim.action_id) == victim


@pytest.mark.parametrize("principal", TABLE)
async def test_nobody_purges_deletes_or_reads_around_the_leader(
    scene: Scene, victim: ActionState, principal: str
) -> None:
    before = await scene.marks()
    async with scene.attacker(principal) as client:
        for name in ADMIN:
            client.publish(f"$JS.API.{name}", b'{"seq": 1, "no_erase": false}', reply=f"{client.inbox}.x1")
        await client.flush()
        refused = {subject for subject, _ in client.refused("Publish")}
    assert refused == {f"$JS.API.{name}" for name in ADMIN}
    assert await scene.marks() == before
    assert await scene.state(victim.action_id) == victim


async def test_provisioner_can_neither_lift_the_locks_nor_switch_an_extra_on_for_truth(scene: Scene) -> None:
    for stream, key, value in (
        ("ACTIONS", "deny_purge", False), ("ACTIONS", "deny_delete", False), ("REMITS", "deny_purge", False),
        ("KV_REGISTRY", "deny_delete", False),
    ):  # fmt: skip
        current = (await scene.provisioner.ask(f"$JS.API.STREAM.INFO.{stream}"))["config"]
        answer = await scene.provisioner.ask(
            f"$JS.API.STREAM.UPDATE.{stream}", json.dumps({**current, key: value}).encode()
        )
        assert answer["error"]["err_code"] == 10052
        assert (await scene.provisioner.ask(f"$JS.API.STREAM.INFO.{stream}"))["config"][key] is True


@pytest.mark.parametrize("principal", [name for name in TABLE if name != "provisioner"])
async def test_only_the_provisioner_makes_consumers_so_nobody_names_a_deliver_subject(
    scene: Scene, principal: str
) -> None:
    makes = (
        "$JS.API.CONSUMER.CREATE.ACTIONS", "$JS.API.CONSUMER.CREATE.ACTIONS.evil",
        "$JS.API.CONSUMER.CREATE.ACTIONS.evil.action.x1.proposed", "$JS.API.CONSUMER.DURABLE.CREATE.ACTIONS.evil",
        "$JS.API.CONSUMER.CREATE.ACTIONS.policy",
    )  # fmt: skip
    before = await scene.marks()
    async with scene.attacker(principal) as client:
        for subject in makes:
            client.publish(subject, PUSH)
        await client.flush()
        assert client.refused("Publish") == {(subject, "") for subject in makes}
    missing = await scene.provisioner.ask("$JS.API.CONSUMER.INFO.ACTIONS.evil")
    assert missing["error"]["code"] == 404
    assert await scene.marks() == before


@pytest.mark.parametrize("principal", ["agents/a1", *SERVICES])
async def test_acknowledgement_for_another_consumer_is_refused_and_moves_nothing(
    scene: Scene, victim: ActionState, principal: str
) -> None:
    durable = "approval" if principal != "approval" else "policy"
    info = f"$JS.API.CONSUMER.INFO.ACTIONS.{durable}"
    before = await scene.provisioner.ask(info)
    async with scene.attacker(principal) as client:
        for ack in ("$JS.ACK", "$JS.ACK._.hash"):
            for body in (b"+ACK", b"+TERM", b'-NAK {"delay": 1}', b"+WPI"):
                client.publish(f"{ack}.ACTIONS.{durable}.1.1.1.1764000000000000000.0", body)
        await client.flush()
        assert len(client.errors) == 8
    after = await scene.provisioner.ask(info)
    assert [after[k] for k in ("ack_floor", "delivered", "num_pending")] == [
        before[k] for k in ("ack_floor", "delivered", "num_pending")
    ]
    assert await scene.state(victim.action_id) == victim

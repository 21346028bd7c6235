"""Rows 22, 23, 40: messages come again, late, in another order, or the broker gives them up."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import httpx

from remit.runtime.bus import Bus
from tests.faults.rigs.administrator import administrator
from tests.faults.rigs.redelivery import Mischief, Relay
from tests.faults.row import Row
from tests.faults.world import SERVICES, Options
from tests.support.servers import connected
from tests.support.storm import at_work
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from nats.aio.client import Client

    from remit.runtime.bus import Stored
    from tests.faults.row import Trial
    from tests.faults.world import World

PACE_S = 0.05
TIMES = 3
FOLLOWED = frozenset({"ACTIONS/audit", "REMITS/audit", "DLQ/audit", "ADVISORIES/audit"})
"""Durables of the projector, which insists on the order of the stream and heals a hole by asking again."""
WRITERS = {
    "proposed": "intake",
    "evaluated": "policy",
    "approval_requested": "approval",
    "approved": "approval",
    "revoked": "approval",
    "tokenized": "tokens",
    "started": "executor",
    "executed": "executor",
    "audited": "audit",
}
REDRIVEN = ("policy", "approval", "tokens", "executor")
"""Services that can be told to look at an action again."""
STORED = "select stream_seq, subject from audit.audit_event where stream = 'ACTIONS' and verify_status = 'valid'"
REPLAYED = "select count(*) from audit.audit_event where stream = 'ACTIONS' and verify_status <> 'valid'"
MAX_REPLAYED = 700
PAUSE_OF_BROKER_S = 3.0
"""A little longer than the compressed ack_wait."""


async def relayed(stack: AsyncExitStack, trial: Trial, mischief: Mischief, **options: object) -> World:
    """Start a world whose services reach the broker through a relay."""

    async def route(world: World) -> dict[str, dict[str, str]]:
        relay = await stack.enter_async_context(Relay(world.environment.nats_url, trial.random, mischief))
        return {name: {"NATS_URL": relay.url} for name in SERVICES}

    return await stack.enter_async_context(trial.world(Options(prepare=route, **options)))  # type: ignore[arg-type]


async def three_times(trial: Trial) -> None:
    """Row 22: every message of every consumer is delivered three times, whatever the service answered before."""
    async with AsyncExitStack() as stack:
        mischief = Mischief(times=TIMES)
        world = await relayed(stack, trial, mischief)
        await world.workload.propose(trial.random.randint(60, 90), spread_s=PACE_S)
        await trial.judge(world)
        few = {name: count for name, count in mischief.delivered.items() if count < TIMES}
        seen = sum(mischief.delivered.values())
        trial.say(f"{len(mischief.delivered)} messages were delivered {seen} times")
        trial.check("I2", bool(seen) and not few, f"of {len(mischief.delivered)} messages these came less often: {few}")


async def out_of_order(trial: Trial) -> None:
    """Row 23: a fifth of all deliveries comes seconds late, after redelivery; then old events come again, shuffled, as new."""
    async with AsyncExitStack() as stack:
        mischief = Mischief(late=0.2, late_s=2 * PAUSE_OF_BROKER_S, spare=FOLLOWED)
        world = await relayed(stack, trial, mischief)
        async with at_work(world.workload.run(PACE_S)):
            await asyncio.sleep(12)
        trial.say(f"{mischief.held} deliveries came late")
        trial.check("I2", mischief.held > 0, "no delivery came late")
        mischief.spare, mischief.late = frozenset(), 0.02
        async with at_work(world.workload.run(PACE_S)):
            await asyncio.sleep(6)
        mischief.late = 0.0
        await trial.judge(world)
        async with at_work(world.workload.run(PACE_S * 2)):
            before = int(await world.admin.fetchval(REPLAYED))
            number = await replay(trial, world)
        await trial.judge(world)
        after = int(await world.admin.fetchval(REPLAYED)) - before
        trial.say(f"{number} old events came again out of order")
        trial.check("I6", after == number, f"{number} events were replayed, {after} are kept and not folded")


async def replay(trial: Trial, world: World) -> int:
    """Send events of ACTIONS again, shuffled, byte for byte under its writer's own login; then redrive every action."""
    rows = await world.admin.fetch(STORED)
    keys_dir, url = world.environment.keys_dir, world.environment.nats_url
    async with AsyncExitStack() as stack:
        names = sorted({*WRITERS.values()})
        logins = {name: await stack.enter_async_context(connected(url, keys_dir, name)) for name in names}
        reader = Bus(logins["audit"])
        chosen = trial.random.sample(rows, min(len(rows), MAX_REPLAYED))
        for row in chosen:
            stored = await reader.leader_read("ACTIONS", {"seq": row["stream_seq"]})
            assert stored is not None
            await again(logins[_writer(row["subject"])], stored)
        for action_id in trial.random.sample(sorted({row["subject"].split(".")[1] for row in rows}), 40):
            for service in trial.random.sample(REDRIVEN, len(REDRIVEN)):
                await logins["audit"].publish(f"redrive.{service}", action_id.encode())
        await logins["audit"].flush()
    return len(chosen)


def _writer(subject: str) -> str:
    # Three services may refuse; every one of them may publish there, and the signature says which it was.
    return WRITERS.get(subject.rpartition(".")[2], "approval")


async def again(login: Client, stored: Stored) -> None:
    """Store a message a second time, without the headers by which the broker would refuse it."""
    headers = {name: text for name, text in stored.headers.items() if not name.startswith("Nats-")}
    await Bus(login).append(stored.subject, stored.body, headers)


async def given_up(trial: Trial) -> None:
    """Row 40: the broker gives messages up (terminated, or delivered too often): each is recorded, and its action driven on."""
    settings = {"audit": {"REMIT_ACTION_SLA_S": "3", "REMIT_RECONCILE_EVERY_S": "1"}}
    options = Options(replicas=dict.fromkeys(REDRIVEN, 1), settings=settings)
    async with trial.world(options) as world, administrator(world.environment) as admin:
        stranded = 0
        for service in trial.random.sample(REDRIVEN, len(REDRIVEN)):
            await world.services.scale(service, 0)
            mix = ("pay", "send", "set")
            await world.workload.propose(4, mix=mix, spread_s=0.01)
            await eventually(lambda service=service: _waiting(world, service), expected=4, within_s=60)
            usual = await admin.consumer("ACTIONS", service)
            await admin.write_consumer("ACTIONS", {**usual, "max_deliver": 1}, "update")
            stranded += await _strand(world, service)
            await admin.write_consumer("ACTIONS", usual, "update")
            await world.services.scale(service, 1)
            trial.say(f"4 messages of {service} given up by the broker")
        await world.services.ready(60)
        await trial.judge(world)
        rows = await world.admin.fetch("select kind, count(*) as number from audit.advisory group by kind")
        kept: dict[str, int] = {row["kind"]: row["number"] for row in rows}
        trial.check("I11", sum(kept.values()) == stranded, f"{stranded} messages given up, recorded are {kept}")
        trial.check("I11", len(kept) == 2, f"advisories of both kinds were forced, recorded are {kept}")
        counted = await _alarms(world, "advisory")
        trial.check("I11", counted >= stranded, f"{stranded} messages given up, {counted} alarms")


async def _waiting(world: World, service: str) -> int:
    return (await world.consumers())[f"ACTIONS/{service}"][0]


async def _strand(world: World, service: str) -> int:
    """Take the four waiting messages as the service would: terminate two, never answer for two."""
    async with connected(world.environment.nats_url, world.environment.keys_dir, service) as login:
        # Deliveries carry the event's subject, by which nats-py's `request` would not know them for answers.
        inbox = login.new_inbox()
        taken = await login.subscribe(inbox)
        request = b'{"batch": 4, "expires": 10000000000}'
        await login.publish(f"$JS.API.CONSUMER.MSG.NEXT.ACTIONS.{service}", request, reply=inbox)
        for number in range(4):
            message = await taken.next_msg(timeout=10)
            if number % 2:
                await login.publish(message.reply, b"+TERM taken and thrown away")
        await login.flush()
        await asyncio.sleep(PAUSE_OF_BROKER_S)
    return 4


async def _alarms(world: World, kind: str) -> float:
    async with httpx.AsyncClient(trust_env=False) as http:
        text = (await http.get(f"http://127.0.0.1:{world.services.port('audit')}/metrics")).text
    lines = [line for line in text.splitlines() if "alarms_total" in line and f'kind="{kind}"' in line]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


ROWS = (
    Row(number=22, title="every message delivered three times", run=three_times, release=True),
    Row(number=23, title="reordered and hours-late delivery", run=out_of_order),
    Row(number=40, title="messages given up by the broker", run=given_up),
)

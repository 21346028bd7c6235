"""Row 19: limits are reached. Whoever is refused is told so, nobody else notices, and what was acknowledged stays."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from infra.demo.stage import AGENT
from infra.demo.tasks import IDENTITY
from infra.local import key_ring, keys
from infra.local.nats_server import server_config
from remit import Agent, Identity, Pending, Refusal, Result
from remit.commands import ApplyCommand
from tests.faults.rigs.administrator import administrator
from tests.faults.row import Row
from tests.faults.rows.nats import PACE_S, SETTLE_S, broker
from tests.faults.rows.nats_changes import quiet
from tests.faults.world import Options
from tests.support.storm import at_work
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.faults.rigs.administrator import Administrator
    from tests.faults.row import Trial
    from tests.faults.workload import Sent
    from tests.faults.world import World

KIB = 2**10
CLERK = "clerk"
CLERK_ID = "spiffe://acme.example/agent/clerk"
QUOTA = 12
INTAKE_BYTES = 16 * KIB
ACTIONS_ROOM = 256 * KIB
REFUSED_WITHIN_S = 40.0
"""The SDK repeats for ten seconds before it says that the broker takes no more."""


async def agent_quota(trial: Trial) -> None:
    """Row 19: one agent's proposals fill its quota while intake is down; another agent proposes as ever."""
    options = Options(replicas={"intake": 1}, prepare=know_the_clerk)
    async with trial.world(options) as world, administrator(world.environment) as admin:
        remit = await employ_the_clerk(world)
        seed = key_ring.load_agent_seed(world.environment.keys_dir, CLERK)
        servers, identity = world.environment.nats_servers, Identity(**IDENTITY)
        async with Agent(name=CLERK, nkey_seed=seed, servers=servers, identity=identity) as clerk:
            await limit(admin, "INTAKE", max_msgs_per_subject=QUOTA)
            await world.services.scale("intake", 0)
            sent = await world.workload.propose(2 * QUOTA)
            await eventually(lambda: bool(told(sent)), within_s=REFUSED_WITHIN_S)
            trial.say(f"{len(told(sent))} of {len(sent)} proposals are refused so far")
            answer = await clerk.propose("oracle.pay", {"n": 1}, remit=remit, wait=0, idempotency_key="mine")
            trial.check("I12", isinstance(answer, Pending), f"the other agent got {answer}")
            await world.services.scale("intake", 1)
            after = await clerk.propose("oracle.pay", {"n": 1}, remit=remit, wait=60, idempotency_key="mine")
            trial.check("I1", isinstance(after, Result), f"the other agent's call became {after}")
            await world.environment.provision()
        await trial.judge(world, within_s=SETTLE_S)


async def know_the_clerk(world: World) -> Mapping[str, Mapping[str, str]]:
    """Give a second agent its key and its login."""
    keys.generate(world.environment.keys_dir, "local", (AGENT, CLERK))
    await broker(world).reload(server_config(world.environment.keys_dir, broker(world).directory))
    return {}


async def employ_the_clerk(world: World) -> str:
    """Register the second agent, wait until intake knows it, and delegate to it; returns its remit."""
    content = world.stage.registry()
    key = key_ring.load_agent_public_key(world.environment.keys_dir, CLERK)
    clerk = content.agents[AGENT].model_copy(
        update={"name": CLERK, "id": CLERK_ID, "client_id": CLERK, "public_key": key}
    )
    content = content.model_copy(update={"agents": {**content.agents, CLERK: clerk}})
    reply = await world.people.command("otto", ApplyCommand, content=content, base_version=1)
    assert reply.status == "ok", reply
    await asyncio.sleep(2.5)  # the stage's services look for a new bundle every two seconds
    return await world.grant(agent_id=CLERK_ID)


def told(sent: Sequence[Sent]) -> list[Sent]:
    """Return the proposals whose agent was told that the broker takes no more."""
    return [each for each in sent if isinstance(each.answer, Refusal) and each.answer.reason == "quota_exceeded"]


async def limit(admin: Administrator, stream: str, **limits: int) -> None:
    """Lower limits of a stream."""
    await admin.ask(f"STREAM.UPDATE.{stream}", {**await admin.stream(stream), **limits})


async def full_intake(trial: Trial) -> None:
    """Row 19: INTAKE itself is full: every agent is told, nothing that was acknowledged goes."""
    async with trial.world(Options(replicas={"intake": 1})) as world, administrator(world.environment) as admin:
        await world.services.scale("intake", 0)
        await limit(admin, "INTAKE", max_bytes=INTAKE_BYTES)
        sent = await world.workload.propose(60)
        await eventually(lambda: bool(told(sent)), within_s=REFUSED_WITHIN_S)
        stored = sum(each.stored for each in sent)
        trial.say(f"{stored} proposals fit into {INTAKE_BYTES // KIB} KiB, {len(told(sent))} were refused")
        trial.check("I12", 0 < stored < len(sent), f"{stored} of {len(sent)} proposals were stored")
        await world.services.scale("intake", 1)
        await world.environment.provision()
        await trial.judge(world, within_s=SETTLE_S)


async def full_actions(trial: Trial) -> None:
    """Row 19: the stream of truth reaches `max_bytes`: everything stands still, nothing is dropped, more room is enough."""
    async with trial.world() as world, administrator(world.environment) as admin:
        async with at_work(world.workload.run(PACE_S)):
            await asyncio.sleep(2)
            used = (await admin.ask("STREAM.INFO.ACTIONS"))["state"]["bytes"]
            await limit(admin, "ACTIONS", max_bytes=used + ACTIONS_ROOM)
            await eventually(lambda: stands_still(admin), within_s=60)
            trial.check("I12", not await quiet(world), "ACTIONS is full, and nothing waits for it")
            await asyncio.sleep(trial.random.uniform(2, 4))
            await world.environment.provision()
        await trial.judge(world, within_s=SETTLE_S)


async def stands_still(admin: Administrator) -> bool:
    """Return whether ACTIONS takes nothing for two seconds."""
    before = (await admin.ask("STREAM.INFO.ACTIONS"))["state"]["last_seq"]
    await asyncio.sleep(2)
    return (await admin.ask("STREAM.INFO.ACTIONS"))["state"]["last_seq"] == before


ROWS = (
    Row(number=19, title="one agent's quota is full", run=agent_quota),
    Row(number=19, title="INTAKE is full", run=full_intake),
    Row(number=19, title="ACTIONS is full", run=full_actions),
)

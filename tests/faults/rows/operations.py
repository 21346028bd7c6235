"""Rows 4, 35, 39: what operators do: replicas and nodes restarted one after the other, services grown and shrunk, new keys."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import orjson

from infra.local import keys
from remit import Result
from remit.clock import now
from remit.errors import RemitError
from remit.pipeline import PIPELINE
from remit.runtime.streams import WORKERS
from services.tokens.rotate import rotate
from tests.faults.row import Row
from tests.faults.world import SERVICES, Options
from tests.support.servers import connected
from tests.support.storm import at_work
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from tests.faults.row import Trial
    from tests.faults.world import World

PACE_S = 0.15
WATCH_S = 0.5
PATIENCE_S = 60.0
READY_S = 90.0
"""Of a replica that starts while calls are under way, on a machine of two cores."""
STORED = "SELECT count(*) FROM audit.audit_event WHERE stream = 'ACTIONS' AND type = ANY($1)"
UNBELIEVED = """
    SELECT count(*) FROM audit.audit_event
    WHERE type = 'refused' AND convert_from(body, 'UTF8')::jsonb -> 'data' ->> 'reason' = 'token_invalid'
"""
SEALED_TO = """
    SELECT count(DISTINCT convert_from(body, 'UTF8')::jsonb -> 'data' ->> 'sealed_to') FROM audit.audit_event
    WHERE type = 'tokenized'
"""
OVERLAP_S = 600
PUBLISHED_S = 8
"""A new key is published so long before it signs here, instead of the ten minutes that replicas get in earnest."""
SOONER = {"tokens": {"REMIT_KEY_RELOAD_S": "1"}, "executor": {"REMIT_JWKS_REFETCH_S": "1"}}
"""Looks at keys come more often by the same measure, or a key would sign before executors may fetch it: ten seconds apart."""
SETTLE_S = 120.0


@dataclass(slots=True)
class Watcher:
    """An agent that waits for each of its answers; whatever is not a result is an error that an agent saw."""

    world: World
    answers: Counter[str] = field(default_factory=Counter[str])
    _calls: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])

    async def run(self) -> None:
        """Call for ever."""
        number = 0
        while True:
            number += 1
            call = asyncio.create_task(self._call(number))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)
            await asyncio.sleep(WATCH_S)

    async def _call(self, number: int) -> None:
        arguments = {"n": number, "note": "watched"}
        options = {"remit": self.world.remit_id, "idempotency_key": f"watched-{number}"}
        try:
            answer = await self.world.agent.propose("oracle.pay", arguments, wait=PATIENCE_S, **options)
        except RemitError as error:
            self.answers[type(error).__name__] += 1
        else:
            self.answers["ok" if isinstance(answer, Result) else str(answer)] += 1

    async def judge(self, trial: Trial) -> None:
        """Wait for the last answers, and insist that all are results."""
        await asyncio.gather(*self._calls)
        wrong = {answer: count for answer, count in self.answers.items() if answer != "ok"}
        trial.say(f"{self.answers['ok']} watched calls were answered by their result")
        trial.check("I1", not wrong and self.answers["ok"] > 0, f"agents saw {wrong or 'nothing'}")


async def repetitions(world: World) -> dict[str, int]:
    """Return how many messages of ACTIONS each service was given more than once."""
    found: dict[str, int] = {}
    async with connected(world.environment.nats_url, world.environment.keys_dir, "provisioner") as client:
        for service in PIPELINE:
            for row in service.consumes:
                if row.stream != "ACTIONS" or row.durable == "audit":
                    continue  # Audit sets its durable back at each start: what it gets again is not counted there.
                reply = await client.request(f"$JS.API.CONSUMER.INFO.ACTIONS.{row.durable}", b"", timeout=5)
                types = [subject.rpartition(".")[2] for subject in row.subjects]
                stored = await world.admin.fetchval(STORED, types)
                found[row.durable] = orjson.loads(reply.data)["delivered"]["consumer_seq"] - stored
    return found


async def rolling_restart(trial: Trial) -> None:
    """Row 4: two replicas of every service, SIGTERM for one after the other while calls are under way."""
    async with trial.world(Options(replicas=dict.fromkeys(SERVICES, 2))) as world:
        watcher = Watcher(world)
        async with at_work(world.workload.run(PACE_S), watcher.run()):
            await asyncio.sleep(1)
            for name in trial.random.sample(SERVICES, len(SERVICES)):
                for number in (1, 2):
                    await restarted(trial, world, f"{name}-{number}")
            await asyncio.sleep(1)
            await watcher.judge(trial)
        await trial.judge(world, within_s=SETTLE_S)
        again = await repetitions(world)
        trial.say(f"12 replicas restarted; delivered again: {again}")
        most = 2 * WORKERS
        trial.check("I1", all(count <= most for count in again.values()), f"more than was in flight: {again}")


async def restarted(trial: Trial, world: World, instance: str) -> None:
    """End one replica in good order, and wait until the next process of it works."""
    before = world.services.restarts(instance)
    [pid] = world.services.pids(instance)
    os.kill(pid, signal.SIGTERM)
    await eventually(lambda: world.services.restarts(instance) > before, within_s=READY_S)
    await world.services.ready(READY_S)
    codes = [status.last_exit for status in world.services.status() if status.name == instance]
    trial.check("I11", codes == [0], f"{instance} ended with {codes} on SIGTERM")


async def rolling_nodes(trial: Trial) -> None:
    """Row 4: three nodes hold every stream; each is stopped in good order and started again while calls are under way."""
    async with trial.world(Options(nodes=3)) as world:
        nodes = world.environment.cluster
        assert nodes is not None
        watcher = Watcher(world)
        async with at_work(world.workload.run(2 * PACE_S), watcher.run()):
            for name in trial.random.sample(list(nodes.nodes), len(nodes.nodes)):
                await asyncio.sleep(1)
                await nodes.restart(name)
                await nodes.healthy(READY_S)
                trial.say(f"{name} was restarted")
            await watcher.judge(trial)
        await trial.judge(world, within_s=SETTLE_S)
        ended = {name: world.services.restarts(name) for name in SERVICES if world.services.restarts(name)}
        trial.check("I11", not ended, f"services ended while nodes were restarted one by one: {ended}")


async def scaling(trial: Trial) -> None:
    """Row 39: every service grows from one replica to three and shrinks again while calls are under way."""
    async with trial.world(Options(replicas=dict.fromkeys(SERVICES, 1))) as world:
        watcher = Watcher(world)
        async with at_work(world.workload.run(PACE_S), watcher.run()):
            for name in trial.random.sample(SERVICES, len(SERVICES)):
                for replicas in (3, 1):
                    await world.services.scale(name, replicas)
                    await world.services.ready(READY_S)
                    await asyncio.sleep(trial.random.uniform(0.2, 1))
                trial.check("I11", len(world.services.pids(name)) == 1, f"{name} did not shrink to one replica")
                trial.say(f"{name}: 1, 3, 1")
            await watcher.judge(trial)
        await trial.judge(world, within_s=SETTLE_S)
        again = await repetitions(world)
        trial.say(f"delivered again: {again}")
        trial.check("I1", all(count <= 2 * WORKERS for count in again.values()), f"more than was in flight: {again}")


async def token_keys(trial: Trial) -> None:
    """Row 35: a new token signing key, then new keys of the executor by the book, under load; no token is refused for it."""
    options = Options(replicas={"tokens": 1, "executor": 1}, settings=SOONER)
    async with trial.world(options) as world:
        folder = world.environment.keys_dir
        async with at_work(world.workload.run(PACE_S)):
            await asyncio.sleep(1)
            kid = rotate(folder, at=int(now().timestamp()) + PUBLISHED_S - OVERLAP_S, overlap_s=OVERLAP_S)
            await asyncio.sleep(PUBLISHED_S + 3)
            trial.say(f"{kid} signs")
            await world.services.scale("tokens", 0)
            await eventually(lambda: nothing_tokenized(world), within_s=60)
            for name in ("x25519.key", "dpop.pem"):
                (folder / "executor" / name).unlink()
            keys.generate(folder, "local", world.environment.agents)
            await world.services.scale("executor", 0)
            await world.services.scale("executor", 1)
            await world.services.scale("tokens", 1)
            await world.services.ready(READY_S)
            trial.say("the executor has new keys")
            await asyncio.sleep(3)
        await trial.judge(world, within_s=SETTLE_S)
        refused = await world.admin.fetchval(UNBELIEVED)
        trial.check("I1", refused == 0, f"{refused} tokens were refused because of a key")
        minted = await world.admin.fetchval(SEALED_TO)
        trial.check("I9", minted == 2, f"tokens were sealed to {minted} keys, expected an old and a new one")


async def nothing_tokenized(world: World) -> bool:
    """Return whether no token is on its way to the executor."""
    return (await world.consumers())["ACTIONS/executor"] == (0, 0)


ROWS = (
    Row(number=4, title="rolling restart of every service", run=rolling_restart),
    Row(number=4, title="rolling restart of the NATS nodes", run=rolling_nodes),
    Row(number=35, title="token signing key and executor keys replaced under load", run=token_keys),
    Row(number=39, title="every service grows from 1 to 3 replicas and shrinks", run=scaling),
)

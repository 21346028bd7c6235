"""Rows 10, 11, 19: somebody with every right deletes, empties or rewrites streams and consumers; limits are reached."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infra.provision import ProvisionError
from remit.clock import monotonic
from remit.pipeline import PIPELINE
from remit.runtime.watchdog import Exit
from tests.faults.rigs.administrator import Administrator, Refused, administrator
from tests.faults.row import Row
from tests.faults.rows.nats import PACE_S, SETTLE_S
from tests.faults.world import Options
from tests.support.storm import at_work
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from tests.faults.row import Trial
    from tests.faults.world import World

PROBE_S = 2.0
"""`probes.PROBE_EVERY_S` in compressed time."""
NATURAL_PROBE_S = 15.0
SLACK_S = 8.0
"""A probe that asks for every consumer, and a supervisor that looks, on a machine that is busy with the load."""
OWNERS = {c.name: row.name for row in PIPELINE for c in row.consumes}
"""Which service a durable belongs to."""
PURGE_REFUSED, DELETE_REFUSED = 10110, 10057


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Notices that services end themselves because of what they find at the broker."""

    trial: Trial
    world: World
    within_s: float = PROBE_S + SLACK_S

    async def noticed(self, services: set[str], before: dict[str, int], what: str) -> None:
        """Insist that each of these services ended with the code for drift, and within one probe."""
        began = monotonic()

        def ended() -> bool:
            return all(self.world.services.restarts(name) > before[name] for name in services)

        try:
            await eventually(ended, within_s=self.within_s)
        except AssertionError:
            late = sorted(name for name in services if self.world.services.restarts(name) == before[name])
            self.trial.check("I11", ok=False, detail=f"{what}: {', '.join(late)} did not notice in {self.within_s:g} s")
            return
        codes = {s.name: s.last_exit for s in self.world.services.status() if s.name in services}
        drift = all(code == Exit.CONSUMER_DRIFT for code in codes.values())
        self.trial.check("I11", drift, f"{what}: ended with {codes}, expected {int(Exit.CONSUMER_DRIFT)}")
        self.trial.say(f"{what}: noticed by {', '.join(sorted(services))} after {monotonic() - began:.1f} s")

    def restarts(self) -> dict[str, int]:
        """Return how often each service was started again so far."""
        return {row.name: self.world.services.restarts(row.name) for row in PIPELINE}


async def deleted_consumers(trial: Trial) -> None:
    """Row 10: durables are deleted, one of each service, under load; provisioning brings them back."""
    async with trial.world() as world, administrator(world.environment) as admin:
        watch = Watch(trial=trial, world=world)
        async with at_work(world.workload.run(PACE_S)):
            await asyncio.sleep(1)
            for row in PIPELINE:
                name = trial.random.choice([c.name for c in row.consumes])
                before = watch.restarts()
                await admin.ask(f"CONSUMER.DELETE.{name.replace('/', '.')}")
                await watch.noticed({row.name}, before, f"{name} deleted")
                await world.environment.provision()
                await world.services.ready(60)
        await trial.judge(world, within_s=SETTLE_S)


async def noticed_in_time(trial: Trial) -> None:
    """Row 10: with nothing compressed, a deleted durable is noticed within one probe of 15 s."""
    async with trial.world(Options(natural_time=True)) as world, administrator(world.environment) as admin:
        watch = Watch(trial=trial, world=world, within_s=NATURAL_PROBE_S + SLACK_S)
        name = trial.random.choice(sorted(OWNERS))
        async with at_work(world.workload.run(PACE_S * 4)):
            await asyncio.sleep(1)
            before = watch.restarts()
            await admin.ask(f"CONSUMER.DELETE.{name.replace('/', '.')}")
            await watch.noticed({OWNERS[name]}, before, f"{name} deleted")
            await world.environment.provision()
            await world.services.ready(60)
        await trial.judge(world, within_s=SETTLE_S)


async def refused_erasures(trial: Trial) -> None:
    """Row 10: nobody empties a stream or takes a message out of one, whatever rights they have; a foreign durable is noticed."""
    async with trial.world() as world, administrator(world.environment) as admin:
        watch = Watch(trial=trial, world=world)
        async with at_work(world.workload.run(PACE_S)):
            await asyncio.sleep(2)
            for stream in ("INTAKE", "ACTIONS", "REMITS", "DLQ", "KV_REGISTRY"):
                await refused(trial, admin, f"STREAM.PURGE.{stream}", {}, PURGE_REFUSED)
                await refused(trial, admin, f"STREAM.MSG.DELETE.{stream}", {"seq": 1}, DELETE_REFUSED)
            await recreated_elsewhere(trial, world, admin, watch)
        await trial.judge(world, within_s=SETTLE_S)


async def refused(trial: Trial, admin: Administrator, subject: str, body: dict[str, Any], code: int) -> None:
    """Insist on one refusal."""
    try:
        await admin.ask(subject, body)
    except Refused as error:
        trial.check("I8", error.code == code, f"{subject}: {error}, expected {code}")
    else:
        trial.check("I8", ok=False, detail=f"{subject} was carried out")


async def recreated_elsewhere(trial: Trial, world: World, admin: Administrator, watch: Watch) -> None:
    """Let a durable be made anew so that it skips what is waiting; the job refuses it by name, and its removal cures it."""
    stream, durable = trial.random.choice(["ACTIONS/policy", "ACTIONS/tokens", "ACTIONS/executor"]).split("/")
    before = watch.restarts()
    config = await admin.consumer(stream, durable)
    await admin.ask(f"CONSUMER.DELETE.{stream}.{durable}")
    await admin.write_consumer(stream, {**config, "deliver_policy": "new"}, "create")
    await watch.noticed({OWNERS[f"{stream}/{durable}"]}, before, f"{stream}/{durable} made anew to skip")
    try:
        await world.environment.provision()
    except ProvisionError as error:
        named = f"{stream}/{durable}" in str(error) and "deliver_policy" in str(error)
        trial.check("I8", named, f"the job refuses, but not by name: {error}")
    else:
        trial.check("I8", ok=False, detail="the job took a durable that skips messages")
    await admin.ask(f"CONSUMER.DELETE.{stream}.{durable}")
    await world.environment.provision()
    await world.services.ready(60)


async def deleted_stream(trial: Trial) -> None:
    """Row 10: ACTIONS itself is deleted; everybody notices, proposals wait, and with a restored backup everything goes on."""
    async with trial.world(Options(replicas={"intake": 1})) as world, administrator(world.environment) as admin:
        watch = Watch(trial=trial, world=world)
        async with at_work(world.workload.run(PACE_S)):
            await asyncio.sleep(2)
            await world.services.scale("intake", 0)
            await eventually(lambda: quiet(world), within_s=60)
            backup = await admin.back_up("ACTIONS")
            before = watch.restarts()
            await admin.ask("STREAM.DELETE.ACTIONS")
            others = {"policy", "approval", "tokens", "executor", "audit"}
            await watch.noticed(others, before, f"ACTIONS deleted with {backup.state['messages']} messages")
            await admin.restore(backup)
            await world.environment.provision()
            await world.services.scale("intake", 1)
            await world.services.ready(60)
        await trial.judge(world, within_s=SETTLE_S)


async def quiet(world: World) -> bool:
    """Return whether nobody but intake has anything left to do."""
    counts = await world.consumers()
    return all(not any(count) for name, count in counts.items() if OWNERS[name] != "intake")


@dataclass(frozen=True, slots=True)
class Drift:
    """One change an administrator makes; `durable` is empty when it is the stream's."""

    stream: str
    durable: str
    change: dict[str, Any]

    @property
    def owner(self) -> str:
        """Who must notice; of streams it is audit."""
        return OWNERS[f"{self.stream}/{self.durable}"] if self.durable else "audit"

    async def make(self, admin: Administrator) -> None:
        """Change it behind everybody's back."""
        if self.durable:
            config = await admin.consumer(self.stream, self.durable)
            await admin.write_consumer(self.stream, {**config, **self.change}, "update")
        else:
            await admin.ask(f"STREAM.UPDATE.{self.stream}", {**await admin.stream(self.stream), **self.change})


SECOND = 1_000_000_000
DRIFTS_A_RUN = 6
DRIFTS = (
    Drift("INTAKE", "intake", {"ack_wait": 77 * SECOND}),
    Drift("ACTIONS", "results", {"filter_subjects": ["action.*.executed"]}),
    Drift("ACTIONS", "policy", {"max_deliver": 2}),
    Drift("ACTIONS", "approval", {"filter_subject": "action.*.proposed"}),
    Drift("ACTIONS", "tokens", {"backoff": [SECOND, 2 * SECOND], "max_deliver": 5}),
    Drift("ACTIONS", "executor", {"max_ack_pending": 1}),
    Drift("REMITS", "audit", {"ack_wait": 77 * SECOND}),
    Drift("ACTIONS", "", {"discard": "old"}),
    Drift("ACTIONS", "", {"max_age": 86_400 * SECOND}),
    Drift("REMITS", "", {"allow_direct": True}),
)


async def drift(trial: Trial) -> None:
    """Row 11: the configuration of streams and durables is changed, some of it each run; provisioning puts it right."""
    async with trial.world() as world, administrator(world.environment) as admin:
        watch = Watch(trial=trial, world=world)
        async with at_work(world.workload.run(PACE_S)):
            await asyncio.sleep(1)
            for each in trial.random.sample(DRIFTS, DRIFTS_A_RUN):
                before = watch.restarts()
                await each.make(admin)
                await watch.noticed({each.owner}, before, f"{each.stream}/{each.durable} {each.change}")
                await world.environment.provision()
                await world.services.ready(60)  # one that still starts would wait for the next change, not end
        await trial.judge(world, within_s=SETTLE_S)


ROWS = (
    Row(number=10, title="durables deleted by an administrator", run=deleted_consumers, release=True),
    Row(number=10, title="a deleted durable is noticed within 15 s of natural time", run=noticed_in_time, release=True),
    Row(number=10, title="purges and deletions refused, a foreign durable noticed", run=refused_erasures, release=True),
    Row(number=10, title="the stream of truth deleted, and restored from a backup", run=deleted_stream, release=True),
    Row(number=11, title="streams and durables rewritten", run=drift),
)

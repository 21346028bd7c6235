"""Row 42: Postgres or the streams come back from a backup that is older than the other; no call is made twice for that."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeAlias

from infra.provision import provision
from remit.ids import action_id
from remit.runtime.settings import ServiceSettings
from tests.faults.rigs import restores
from tests.faults.row import Row
from tests.faults.rows.projector import built
from tests.faults.workload import TENANT
from tests.faults.world import SERVICES, Options
from tests.faults.world_proof import broken_in_the_end
from tests.support.servers import connected
from tests.support.storm import at_work
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.faults.row import Trial
    from tests.faults.world import World

Call: TypeAlias = tuple[str, str, dict[str, object]]
"""Idempotency key, action, arguments."""
PACE_S = 0.15
EVIDENCE_AGE_S = 3.0
"""Backups are older than what claims accept as a sign of life, as they are in earnest (60 s there)."""
OPTIONS = Options(
    replicas={**dict.fromkeys(SERVICES, 1), "executor": 2},
    settings={"executor": {"REMIT_EVIDENCE_MAX_AGE_S": str(EVIDENCE_AGE_S)}},
)
IS_HELD = "SELECT EXISTS (SELECT FROM control.heartbeat WHERE service = 'hold')"
LOST = """
    SELECT count(*) FROM audit.audit_event AS e LEFT JOIN control.execution AS x USING (action_id)
    WHERE e.stream = 'ACTIONS' AND e.type = 'started' AND e.verify_status = 'valid' AND x.action_id IS NULL
"""
CONCLUDED = """
    SELECT count(*) FROM audit.actions_all WHERE action_id = ANY($1) AND (receipt_seq IS NOT NULL OR outcome = 'unknown')
"""
HALTED = "is not what the ledger holds"
SIGNED_WITHIN_S = 5.0
"""Audit signs a checkpoint each 2 s here; so some were signed about messages that the backup lacks."""
WAIT_S = 5.0


async def older_postgres(trial: Trial) -> None:
    """Postgres forgets its last seconds, twice: once restored by the book, once by somebody who forgets to reclaim.

    Every process is killed in the middle of its work before, so calls are under way whose outcome nobody wrote down.
    """
    async with trial.world(OPTIONS) as world:
        for careful in (True, False):
            async with at_work(world.workload.run(PACE_S)):
                await asyncio.sleep(trial.random.uniform(2, 4))
                backup = trial.directory / f"postgres-{careful}.dump"
                await restores.dump(world, backup)
                await asyncio.sleep(EVIDENCE_AGE_S + trial.random.uniform(1, 4))
                await restores.down(world)
                trial.tally.crashes += 1
                await restores.restore_database(world, backup)
                if careful:
                    await restores.program(world, "infra.postgres.reclaim", "--hold")
                before = len(await world.effects())
                await restores.up(world, ready=careful)
                await nothing_happens(trial, world, before)
                await reclaimed(trial, world)
                await asyncio.sleep(2)
            await trial.judge(world, within_s=120)


async def nothing_happens(trial: Trial, world: World, before: int) -> None:
    """Insist that claims are held, that audit goes on all the same, and that no call was made."""
    await eventually(lambda: world.admin.fetchval(IS_HELD), within_s=60)
    await asyncio.sleep(WAIT_S)
    made = len(await world.effects()) - before
    trial.check("I2", made == 0, f"{made} calls were made by a Postgres that had forgotten its claims")
    await restores.program(world, "infra.postgres.reclaim", "--release", expect=2)


async def reclaimed(trial: Trial, world: World) -> None:
    """Reclaim, insist that every announced call has its claim again, and let claims go on."""
    said = await restores.program(world, "infra.postgres.reclaim")
    trial.say("; ".join(line for line in said.splitlines() if line.startswith(("claims", "doubts", "outcomes"))))
    lost = await world.admin.fetchval(LOST)
    trial.check("I2", lost == 0, f"{lost} announced calls have no claim after the reclaim")
    again = await restores.program(world, "infra.postgres.reclaim")
    trial.check("I2", "claims: 0 missing" in again, f"a second reclaim found more: {again}")
    await restores.program(world, "infra.postgres.reclaim", "--release")


async def older_streams(trial: Trial) -> None:
    """The broker loses everything and gets its streams back as they were some seconds ago; Postgres knows better.

    What agents did meanwhile is in no stream. They propose all of it again, with the same keys, and nothing may happen again.
    """
    async with trial.world(OPTIONS) as world:
        calls: list[Call] = [
            (f"call-{n}", trial.random.choice(("send", "pay")), {"n": n, "note": "again"}) for n in range(60)
        ]
        await proposed(world, calls[:30])
        backup = trial.directory / "streams"
        async with asyncio.TaskGroup() as group:
            group.create_task(proposed(world, calls[30:45]))
            group.create_task(restores.program(world, "infra.nats.backup", "save", str(backup)))
        await proposed(world, calls[45:])
        await eventually(lambda: happened(world), len(calls), within_s=60)
        await asyncio.sleep(SIGNED_WITHIN_S)
        await streams_back(world, backup)
        await eventually(lambda: HALTED in (world.directory / "logs" / "audit-1.log").read_text(), within_s=90)
        said = await restores.program(world, "infra.postgres.reclaim", expect=2)
        trial.check("I5", "the stream is the older one" in said, f"reclaim does not say which one is older: {said}")
        await rebuilt(trial, world)
        await reclaimed(trial, world)
        await world.services.ready(120)
        await proposed(world, calls)
        await nothing_twice(trial, world, calls)


async def streams_back(world: World, backup: Path) -> None:
    """Lose every process and every stream, and bring both back by the book."""
    await restores.down(world)
    await restores.lose_streams(world)
    await restores.program(world, "infra.nats.backup", "restore", str(backup))
    await world.environment.provision()
    await restores.close_the_glass(world)
    await restores.program(world, "infra.postgres.reclaim", "--hold")
    await restores.up(world, ready=False)


async def nothing_twice(trial: Trial, world: World, calls: Sequence[Call]) -> None:
    """Insist that each call comes to its end in the ledger, and had one effect in both its lives."""
    await eventually(lambda: unfinished(world, calls), 0, within_s=120)
    effects = [each.key for each in await world.effects() if each.kind == "effect"]
    twice = len(effects) - len(set(effects))
    tally = trial.tally
    tally.runs, tally.actions, tally.effects = tally.runs + 1, tally.actions + len(calls), tally.effects + len(effects)
    tally.duplicates += twice
    trial.check("I2", twice == 0 and len(effects) == len(calls), f"{len(calls)} calls had {len(effects)} effects")
    for finding in await broken_in_the_end(world):
        trial.check("I5", ok=False, detail=finding)


async def rebuilt(trial: Trial, world: World) -> None:
    """Rebuild the ledger from the shorter streams; what was signed about the longer ones goes aside with the old schema."""
    environment = world.environment
    async with connected(environment.nats_url, environment.keys_dir, "provisioner") as client:
        await provision(client, rebuild=True)
    settings = ServiceSettings(
        keys_dir=environment.keys_dir, nats_url=environment.nats_url, database_url=environment.admin_url
    )
    code, said = await built(settings, ("--swap", "--replace-differing"))
    trial.check("I5", code == 0, f"a rebuild from shorter streams ended with {code}: {said}")
    trial.say(said.splitlines()[-1])
    files = world.directory / "checkpoints"
    await asyncio.to_thread(files.rename, world.directory / "checkpoints-of-the-lost-streams")


async def proposed(world: World, calls: Sequence[Call]) -> None:
    """Propose calls under their keys, and return when the broker has all."""
    for key, action, arguments in calls:
        await world.agent.propose(f"oracle.{action}", arguments, remit=world.remit_id, idempotency_key=key, wait=0)


async def happened(world: World) -> int:
    """Return how many effects there are."""
    return len(await world.effects())


async def unfinished(world: World, calls: Sequence[Call]) -> int:
    """Return how many calls have no conclusion in the ledger."""
    ids = [action_id(TENANT, world.agent.name, key) for key, _, _ in calls]
    return len(ids) - await world.admin.fetchval(CONCLUDED, ids)


ROWS = (
    Row(number=42, title="Postgres restored from an older backup", run=older_postgres),
    Row(number=42, title="streams restored from an older backup", run=older_streams),
)

"""Rows 34 and 35: two releases side by side, and keys that change, while calls are under way."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

from infra.local import keys
from remit.canonical import digest_bytes
from remit.ids import action_id
from remit.runtime.bus import Bus
from remit.runtime.keys import load_service_keys
from tests.faults.rigs.next_version import NEXT, Releases, reading_both
from tests.faults.rigs.poison import Kitchen
from tests.faults.row import Row
from tests.faults.workload import TENANT
from tests.faults.world import SERVICES, Options
from tests.support.servers import connected
from tests.support.storm import at_work
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from remit.envelope import Signer
    from tests.faults.row import Trial
    from tests.faults.world import World

PACE_S = 0.06
READERS = ("audit", "intake", "approval", "tokens", "executor")
"""Who reads what policy writes; audit first, because it keeps for ever what it could not read (ARCHITECTURE.md 46)."""
NEWER = "select count(*) from audit.audit_event where type = 'evaluated' and convert_from(body, 'UTF8') like '%' || $1 || '%'"
UNREAD = "select count(*) from audit.audit_event where verify_status = 'version'"
INVALID = "select count(*) from audit.audit_event where verify_status <> 'valid'"
CHAIN = "select body from audit.audit_event where action_id = $1 and verify_status = 'valid' order by stream_seq"
LETTERS = "select count(*) from audit.rejected"
FORGERIES = 8


async def skew(trial: Trial) -> None:
    """Row 34: policy writes version 2 of its event while of every reader one replica is still the old release.

    The old replicas hand it back unread until a new one takes it. Then all are new, then policy goes back to the old release.
    """
    releases = Releases(trial.directory / "releases")
    options = Options(
        replicas={name: 1 if name in {"policy", "audit"} else 2 for name in SERVICES},
        prefix=dict.fromkeys(SERVICES, releases.prefix()),
    )
    with reading_both():
        async with trial.world(options) as world:
            await both_ways(trial, world, releases)


async def both_ways(trial: Trial, world: World, releases: Releases) -> None:
    """Upgrade by halves, then wholly, then take the writer back."""
    async with at_work(world.workload.run(PACE_S)):
        await half_upgraded(trial, world, releases)
    await trial.judge(world)
    newer = await world.admin.fetchval(NEWER, NEXT)
    trial.check("I1", newer > 0, "policy wrote no event of the next version")
    async with at_work(world.workload.run(PACE_S)):
        for name in trial.random.sample(READERS[1:], len(READERS) - 1):
            await upgrade(world, releases, name)
        await upgrade(world, releases, "policy", is_next=False)
        trial.say("every reader is the next release, policy the old one")
        await asyncio.sleep(2)
    await trial.judge(world)
    trial.say(f"{newer} events of the next version")
    for query, what in ((UNREAD, "kept unread by audit"), (LETTERS, "dead letters")):
        found = await world.admin.fetchval(query)
        trial.check("I5", found == 0, f"{found} {what}: an event of a newer version is handed back, never ended")


async def half_upgraded(trial: Trial, world: World, releases: Releases) -> None:
    """Let policy write what nobody but audit can read yet, then upgrade one replica of every reader."""
    await asyncio.sleep(2)
    await upgrade(world, releases, "audit")
    await upgrade(world, releases, "policy")
    trial.say("policy and audit are the next release; every other replica is the old one")
    await asyncio.sleep(3)
    for name in trial.random.sample(READERS[1:], len(READERS) - 1):
        await upgrade(world, releases, name, only="1")
    trial.say("of every reader one replica is the next release, one the old one")
    await asyncio.sleep(5)


async def upgrade(world: World, releases: Releases, service: str, *, only: str = "", is_next: bool = True) -> None:
    """Restart the replicas of a service, or one of them, as another release; the others stay what they are."""
    releases.set(service, is_next=is_next)
    chosen = f"{service}-{only}" if only else service
    before, pids = world.services.restarts(chosen), world.services.pids(chosen)
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    await eventually(lambda: world.services.restarts(chosen) >= before + len(pids), within_s=40)
    await eventually(lambda: len(world.services.pids(chosen)) == len(pids), within_s=20)


async def rotation(trial: Trial) -> None:
    """Row 35: every service gets a new event key in turn, under load; a stolen key that was taken back is worth nothing."""
    async with trial.world() as world:
        folder = world.environment.keys_dir
        async with at_work(world.workload.run(PACE_S)):
            for name in trial.random.sample(SERVICES, len(SERVICES)):
                kid = keys.rotate(folder, name)
                before = world.services.restarts(name)
                for pid in world.services.pids(name):
                    os.kill(pid, signal.SIGTERM)
                await eventually(lambda name=name, before=before: world.services.restarts(name) > before, within_s=40)
                trial.say(f"{name} signs with {kid}")
                await asyncio.sleep(trial.random.uniform(0, 1))
            stolen = stolen_key(world)
            await asyncio.sleep(11)  # every replica looks at the key file each 10 s
            forged = await forge(trial, world, stolen)
        await world.services.ready(60)
        await trial.judge(world)
        kept = await world.admin.fetchval(INVALID)
        trial.check(
            "I6", kept == forged, f"{forged} events were signed with a key that is not trusted, {kept} are kept"
        )


def stolen_key(world: World) -> Signer:
    """Return a key of approval that was trusted for a moment, and is not in the key file any more."""
    folder = world.environment.keys_dir
    keys.rotate(folder, "approval")
    stolen = load_service_keys(folder, "approval").signer
    keys.rotate(folder, "approval")
    keys.distrust(folder, stolen.kid)
    return stolen


async def forge(trial: Trial, world: World, stolen: Signer) -> int:
    """Approve with the stolen key what people were asked, exactly as approval would; return how many were tried.

    These actions stand still from then on: only approval can put that there, and a kid that is not in the key file may be one
    that is not there yet (ARCHITECTURE.md 38). So they are no part of the workload.
    """
    remit = await world.grant()
    query = "select action_id from audit.actions_all where action_id = any($1) and last_type = 'approval_requested'"
    ids: list[str] = []
    for number in range(FORGERIES):
        key = f"forged-{number}"
        ids.append(action_id(TENANT, world.agent.name, key))
        arguments = {"n": number, "note": "forged"}
        await world.agent.propose("oracle.ask", arguments, remit=remit, idempotency_key=key, wait=0)
    await eventually(lambda: _count(world, query, ids), FORGERIES, within_s=20)
    sample = await world.admin.fetchrow(
        "select body from audit.audit_event where type = 'approved' and verify_status = 'valid' order by stream_seq desc limit 1"
    )
    assert sample is not None
    kitchen = Kitchen(chance=trial.random, signer=stolen, stranger=stolen)
    async with connected(world.environment.nats_url, world.environment.keys_dir, "approval") as login:
        for each in ids:
            chain = await world.admin.fetch(CHAIN, each)
            place = {"n": len(chain) + 1, "prev": digest_bytes(chain[-1]["body"])}
            body = kitchen.changed(sample["body"], subject=each, correlationid=each, kid=stolen.kid, **place)
            dose = kitchen.signed("stolen", f"action.{each}.approved", body)
            await Bus(login).append(dose.subject, dose.body, dose.headers)
    await asyncio.sleep(3)
    done = {effect.key for effect in await world.effects()} & set(ids)
    trial.check("I3", not done, f"{len(done)} calls were made on approvals signed with a stolen key")
    return len(ids)


async def _count(world: World, query: str, ids: list[str]) -> int:
    return len(await world.admin.fetch(query, ids))


ROWS = (
    Row(number=34, title="two releases side by side, both ways", run=skew, release=True),
    Row(number=35, title="key rotation under load; a revoked key", run=rotation),
)

"""Row 24: everybody who may publish somewhere publishes poison there, while honest calls go on beside it."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from remit.runtime.bus import Bus
from remit.runtime.keys import load_service_keys
from tests.faults.rigs.poison import Dose, Kitchen, junk
from tests.faults.row import Row
from tests.faults.world import SERVICES
from tests.support.servers import connected
from tests.support.storm import at_work

if TYPE_CHECKING:
    from nats.aio.client import Client

    from tests.faults.row import Trial
    from tests.faults.world import World

PACE_S = 0.06
DOSES = 12
"""Of each writer on each of its subjects."""
JUNK = 30
"""Of each sender on each subject whose messages are no events. Intake keeps sixty at once of an agent's refusals."""
WRITABLE = {
    "intake": ("action.proposed",),
    "policy": ("action.evaluated",),
    "approval": (
        *(f"action.{short}" for short in ("approval_requested", "approved", "refused", "revoked")),
        *(f"remit.{short}" for short in ("granted", "amended", "revoked", "exhausted")),
    ),
    "tokens": ("action.tokenized", "action.refused"),
    "executor": ("action.started", "action.executed", "action.refused"),
    "audit": ("action.audited",),
}
"""What each service's login may write, as `root.type`."""
SAMPLES = """
    select stream, type, subject, body from audit.audit_event where verify_status = 'valid'
    order by stream_seq desc limit 400
"""
LIVE = "select action_id from audit.actions_all where terminal is null limit 50"
KEPT = "select verify_status, count(*) as number from audit.audit_event where verify_status <> 'valid' group by 1"
LETTERS = "select count(*) from audit.rejected where source_stream = 'INTAKE'"


@dataclass(slots=True)
class Sender:
    """One service's login and kitchen."""

    login: Client
    kitchen: Kitchen


async def poisoned(trial: Trial) -> None:
    """Poison in random order through every login; it is counted and not folded, and nobody is disturbed by it."""
    async with trial.world() as world:
        await world.workload.propose(20, mix=("pay", "send", "ask"))
        await world.workload.settle()
        before = {name: world.services.restarts(name) for name in SERVICES}
        given: Counter[str] = Counter()
        samples = await _samples(world)
        async with at_work(world.workload.run(PACE_S)), AsyncExitStack() as stack:
            senders = {name: await _sender(stack, trial, world, name) for name in SERVICES}
            work = [(name, kind) for name, kinds in WRITABLE.items() for kind in kinds for _ in range(DOSES)]
            for name, kind in trial.random.sample(work, len(work)):
                dose = _dose(trial, senders[name].kitchen, kind, samples, await _target(trial, world))
                await _store(senders[name].login, dose)
                given[dose.kind] += 1
                await asyncio.sleep(trial.random.uniform(0, 0.02))
            await _throw_junk(trial, world, stack, senders)
        trial.say(f"{sum(given.values())} doses: {dict(given)}")
        await trial.judge(world)
        kept: dict[str, int] = {row["verify_status"]: row["number"] for row in await world.admin.fetch(KEPT)}
        trial.say(f"kept and not folded: {kept}")
        trial.check("I6", sum(kept.values()) == sum(given.values()), f"{sum(given.values())} doses, kept are {kept}")
        letters = await world.admin.fetchval(LETTERS)
        trial.check("I6", letters >= JUNK, f"{JUNK} junk proposals, {letters} dead letters")
        after = {name: world.services.restarts(name) for name in SERVICES}
        trial.check("I11", before == after, f"restarts before {before}, after {after}")


async def _samples(world: World) -> dict[str, list[tuple[str, bytes]]]:
    """Return valid events, as (subject, body) by `root.type`."""
    found: dict[str, list[tuple[str, bytes]]] = {}
    for row in await world.admin.fetch(SAMPLES):
        root, _, short = row["subject"].split(".")
        found.setdefault(f"{root}.{short}", []).append((row["subject"], bytes(row["body"])))
    return found


async def _sender(stack: AsyncExitStack, trial: Trial, world: World, name: str) -> Sender:
    keys = world.environment.keys_dir
    login = await stack.enter_async_context(connected(world.environment.nats_url, keys, name))
    stranger = trial.random.choice([other for other in SERVICES if other != name])
    signer, other = (load_service_keys(keys, who).signer for who in (name, stranger))
    return Sender(login, Kitchen(chance=trial.random, signer=signer, stranger=other))


async def _target(trial: Trial, world: World) -> str | None:
    """Return an action that is under way, half of the time."""
    rows = await world.admin.fetch(LIVE) if trial.random.random() < 0.5 else []
    return trial.random.choice(rows)["action_id"] if rows else None


def _dose(
    trial: Trial, kitchen: Kitchen, kind: str, samples: dict[str, list[tuple[str, bytes]]], target: str | None
) -> Dose:
    """Take an event of the kind, or one of another kind whose place it shall take, and spoil it.

    No unknown kids on live actions and remits: they may be a key that a replica has not read yet, so they hold up what they
    could revoke (ARCHITECTURE.md 38).
    """
    root, _, short = kind.partition(".")
    known = [each for name, found in samples.items() if name.startswith(f"{root}.") for each in found]
    subject, body = trial.random.choice(samples.get(kind) or known)
    if root == "action" and target is not None:
        return kitchen.dose(f"action.{target}.{short}", kitchen.changed(body, subject=target), spare="kid")
    return kitchen.dose(f"{root}.{subject.split('.')[1]}.{short}", body, spare="kid" if root == "remit" else None)


async def _store(login: Client, dose: Dose) -> None:
    await Bus(login).append(dose.subject, dose.body, dose.headers)


async def _throw_junk(trial: Trial, world: World, stack: AsyncExitStack, senders: dict[str, Sender]) -> None:
    """Send meaningless bytes where messages are no events: proposals, commands, redrives, status questions, results."""
    keys, url, agent = world.environment.keys_dir, world.environment.nats_url, world.agent.name
    as_agent = await stack.enter_async_context(connected(url, keys, f"agents/{agent}"))
    as_person = await stack.enter_async_context(connected(url, keys, "cli"))
    aims = [(as_agent, f"propose.{agent}"), (as_agent, f"status.{agent}.{'0' * 32}"), (as_agent, f"status.{agent}.%")]
    aims += [(as_person, f"human.{verb}") for verb in ("grant", "approve", "revoke", "apply", "nonsense")]
    aims += [(senders["audit"].login, f"redrive.{name}") for name in ("policy", "approval", "tokens", "executor")]
    aims += [(senders["intake"].login, f"results.{agent}.{'0' * 32}")]
    work = [aim for aim in aims for _ in range(JUNK)]
    for login, subject in trial.random.sample(work, len(work)):
        reply = f"{login._inbox_prefix.decode()}.junk" if subject.startswith(("status", "human")) else ""
        headers = {"Remit-Kid": "é", "Remit-Chain": ","} if trial.random.random() < 0.3 else None
        await login.publish(subject, junk(trial.random), reply=reply, headers=headers)
        await asyncio.sleep(trial.random.uniform(0, 0.01))
    for login in {login for login, _ in aims}:
        await login.flush()


ROWS = (Row(number=24, title="poison through every login into every consumer", run=poisoned, release=True),)

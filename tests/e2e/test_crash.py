"""Each service is killed while an agent keeps proposing: nothing is lost, nothing happens twice, and the evidence adds up."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from remit import Outcome
from remit.clock import monotonic
from services.executor.settings import ExecutorSettings
from tests.support.live_stage import concluded, live_stage, paused, waiting
from tests.support.storm import ONCE, Storm, approver_of, at_work, kill, storm_over
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from remit import Result
    from tests.support.live_stage import Live

pytestmark = pytest.mark.timeout(240)

EVIDENCE_MAX_AGE_S = 5.0
SETTINGS = {
    "executor": {"REMIT_EVIDENCE_MAX_AGE_S": str(EVIDENCE_MAX_AGE_S)},
    "audit": {"REMIT_HEARTBEAT_S": "1", "REMIT_CHECKPOINT_EVERY_S": "2", "REMIT_RECONCILE_EVERY_S": "5"},
}
AGE = "select extract(epoch from clock_timestamp() - at)::float8 from control.heartbeat where service = 'audit'"
CLAIMED = "select count(*) from control.execution"


@pytest.fixture(scope="module")
async def wreck(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Live]:
    """A stage of its own, where things may be killed."""
    async with live_stage(tmp_path_factory.mktemp("wreck"), settings=SETTINGS) as running:
        yield running


@dataclass
class Aftermath:
    """What is left when the storm is over."""

    storm: Storm
    interrupted: Result
    """The call that the executor made when it was killed."""
    events: dict[str, Counter[str]]
    effects: Counter[str]


@pytest.fixture(scope="module")
async def aftermath(wreck: Live) -> Aftermath:
    """Kill the six services one after the other under steady load, the executor first, in the middle of a call."""
    storm = await storm_over(wreck, "lab.hold")
    approver = await approver_of(storm)
    async with at_work(approver.run()):
        async with at_work(storm.blow()):
            held = asyncio.create_task(wreck.agent.propose("lab.hold", {}, remit=storm.remit, wait=120))
            await eventually(lambda: wreck.lab.arrivals["hold"], 1)
            for service in ("executor", "audit", "intake", "policy", "approval", "tokens"):
                await kill(wreck, service)
                wreck.lab.released.set()
        interrupted = concluded(await held)
        await storm.settle()
    return Aftermath(storm, interrupted, await storm.events(), await storm.effects())


async def test_every_proposal_is_concluded_and_succeeds(aftermath: Aftermath) -> None:
    answers = aftermath.storm.answers
    assert len(answers) == aftermath.storm.sent > 100
    assert {key: answer for key, answer in answers.items() if not getattr(answer, "succeeded", False)} == {}


async def test_no_effect_happens_twice_by_the_banks_own_log(aftermath: Aftermath) -> None:
    wanted = {answer.action_id for answer in aftermath.storm.answers.values()}
    assert aftermath.effects == Counter(dict.fromkeys(wanted, 1))


async def test_executor_killed_in_the_middle_of_a_call_repeats_it_with_its_own_key(
    aftermath: Aftermath, wreck: Live
) -> None:
    assert aftermath.interrupted.outcome is Outcome.SUCCEEDED
    assert (wreck.lab.arrivals["hold"], wreck.lab.effects[aftermath.interrupted.action_id]) == (2, 1)


async def test_every_executed_action_has_one_event_of_each_kind_one_token_and_one_receipt(
    aftermath: Aftermath,
) -> None:
    odd = {
        action: dict(events)
        for action, events in aftermath.events.items()
        if events != Counter(ONCE) + Counter({"approval_requested": events["approval_requested"]})
        or events["approval_requested"] > 1
    }
    assert odd == {}
    calls = aftermath.storm.sent + 1
    assert (len(aftermath.events), *await aftermath.storm.claims()) == (calls, calls, calls)


async def test_audit_chain_verifies(aftermath: Aftermath) -> None:
    said = await aftermath.storm.live.stage.verify_audit()
    log = aftermath.storm.live.stage.directory / "logs" / "audit-verify.log"
    assert said, log.read_text()


async def test_without_audit_claims_go_on_until_the_evidence_is_too_old(wreck: Live) -> None:
    assert ExecutorSettings.model_fields["evidence_max_age_s"].default == pytest.approx(60.0)
    supervisor, remit = wreck.stage.supervisor, await wreck.grant("lab.ok")
    (doomed,) = supervisor.pids("audit")
    os.kill(doomed, signal.SIGKILL)
    await eventually(lambda: supervisor.pids("audit") not in ([], [doomed]))
    with paused(supervisor.pids("audit")):
        early = concluded(await wreck.agent.propose("lab.ok", {}, remit=remit))
        claimed_at_age = await wreck.admin.fetchval(AGE)
        await eventually(lambda: is_stale(wreck))
        before = await wreck.admin.fetchval(CLAIMED)
        late = waiting(await wreck.agent.propose("lab.ok", {}, remit=remit, wait=1.0))
        assert await wreck.admin.fetchval(CLAIMED) == before
    began = monotonic()
    assert early.succeeded
    assert 0 < claimed_at_age < EVIDENCE_MAX_AGE_S
    assert concluded(await late.wait(60)).succeeded
    assert monotonic() - began < 60


async def is_stale(live: Live) -> bool:
    """Return whether the projector's heartbeat is older than the executor accepts."""
    return await live.admin.fetchval(AGE) > EVIDENCE_MAX_AGE_S

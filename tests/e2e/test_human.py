"""What people can do: delegate, agree, refuse, narrow, take back, stop; and what the clock does when they do nothing."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from infra.demo.tasks import AGENT_ID
from remit import Reason, Refusal, Result
from remit.commands import ApproveCommand, DenyCommand, GrantCommand, NarrowCommand
from remit.remits import RemitTerms
from tests.support.live_stage import concluded, live_stage, paused, refused, waiting
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from remit import Pending
    from tests.support.live_stage import Live

pytestmark = pytest.mark.timeout(60)

PAYMENT = {"recipient": "DE00000000000000000001", "amount": 250, "subject": "Rent", "date": "2022-01-01"}
IMPATIENT = {"approval": {"REMIT_APPROVAL_TIMEOUT_S": "1.5", "REMIT_SWEEP_S": "0.2"}}
LATER_CLAIMS = "select count(*) from control.execution where remit_id = $1 and state <> 'refused' and claimed_at > $2"


async def asks(live: Live, call: str = "bank.send_money") -> Pending:
    """Propose something that people are asked about, and wait until they can see it."""
    arguments = PAYMENT if call == "bank.send_money" else {}
    remit = await live.grant(call)
    pending = waiting(await live.agent.propose(call, arguments, remit=remit, wait=0.5))
    await live.asked(pending.action_id)
    return pending


async def test_remit_can_be_used_from_its_grant_to_its_revocation(live: Live) -> None:
    remit = await live.grant("lab.ok")
    first = concluded(await live.agent.propose("lab.ok", {}, remit=remit))
    assert (await live.revoke("dana", "remit", remit)).status == "forbidden"
    reply = await live.revoke("emma", "remit", remit)
    assert (reply.status, reply.detail) == ("ok", "revoked; no later call can start")
    async with live.nothing_called():
        second = refused(await live.agent.propose("lab.ok", {}, remit=remit))
    row = await live.receipt(second.action_id)
    assert (first.succeeded, second.reason, row["outcome"]) == (True, Reason.REMIT_REVOKED, None)
    ended = await live.admin.fetchrow("select status, ended_reason from audit.remits where remit_id = $1", remit)
    assert ended is not None
    assert tuple(ended) == ("revoked", "test")


async def test_approval_lets_exactly_the_shown_call_happen(live: Live) -> None:
    pending = await asks(live)
    row = await live.asked(pending.action_id)
    assert pending.awaits_approval
    assert (await live.approve("otto", pending.action_id)).status == "forbidden"
    other = {"action_id": pending.action_id, "args_digest": "sha-256:" + "A" * 43}
    assert (await live.command("dana", ApproveCommand, **other)).status == "stale"
    assert await live.calls(pending.action_id) == 0
    assert (await live.approve("dana", pending.action_id)).status == "ok"
    assert concluded(await pending.wait(20)).succeeded
    receipt = await live.receipt(pending.action_id)
    assert (receipt["approval_status"], receipt["approver"]) == ("approved", f"{live.stage.issuer}|dana")
    assert receipt["executed_digest"] == row["args_digest"]


async def test_denial_reaches_the_agent_and_blocks_its_like(live: Live) -> None:
    pending = await asks(live)
    reply = await live.command("dana", DenyCommand, action_id=pending.action_id, reason="wrong month")
    assert reply.status == "ok"
    async with live.nothing_called():
        told = refused(await pending.wait(20))
        assert (told.reason, told.stage, told.detail) == (Reason.DENIED, "approval", "wrong month")
        receipt = await live.receipt(pending.action_id)
        again = refused(await live.agent.propose("bank.send_money", PAYMENT, remit=receipt["remit_id"]))
    assert receipt["approval_status"] == "denied"
    assert (again.reason, again.stage, again.detail) == (Reason.BLOCKED, "approval", "wrong month")


async def test_quorum_of_two_needs_two_different_people(live: Live) -> None:
    pending = await asks(live, "lab.joint")
    first = await live.approve("dana", pending.action_id)
    assert (first.status, first.votes, first.quorum) == ("ok", 1, 2)
    twice = await live.approve("dana", pending.action_id)
    assert (twice.status, "you have voted already" in twice.detail) == ("forbidden", True)
    waiting(await pending.wait(0.3))
    assert await live.calls(pending.action_id) == 0
    second = await live.approve("otto", pending.action_id, version=2)
    assert (second.status, second.votes, second.detail) == ("ok", 2, "approved")
    assert concluded(await pending.wait(20)).succeeded
    votes = (await live.receipt(pending.action_id))["votes"]
    assert [name in votes for name in ("dana", "otto", "emma")] == [True, True, False]


async def test_nobody_approves_what_is_done_for_themselves(live: Live) -> None:
    pending = await asks(live, "lab.own")
    reply = await live.approve("emma", pending.action_id)
    assert (reply.status, "nobody approves what is done for themselves" in reply.detail) == ("forbidden", True)
    assert await live.calls(pending.action_id) == 0
    assert (await live.command("emma", DenyCommand, action_id=pending.action_id)).status == "ok"
    assert refused(await pending.wait(20)).reason == Reason.DENIED


async def test_narrowing_must_fit_the_call_and_then_binds_it(live: Live) -> None:
    pending = await asks(live)
    row = await live.asked(pending.action_id)
    card = {"args_digest": row["args_digest"], "shown_digest": row["shown_digest"], "version": row["round"]}
    narrow = partial(live.command, "dana", NarrowCommand, action_id=pending.action_id, **card)
    tight = await narrow(narrowing={"properties": {"amount": {"maximum": 200}}})
    assert (tight.status, tight.field, "deny instead" in tight.detail) == ("invalid", "narrowing", True)
    assert (await narrow(narrowing={"properties": {"amount": {"maximum": 250}}})).status == "ok"
    assert concluded(await pending.wait(20)).succeeded
    assert (await live.receipt(pending.action_id))["narrowed"] is True


async def test_grant_is_refused_to_people_who_may_not_delegate_and_for_what_does_not_exist(live: Live) -> None:
    good = live.terms("lab.ok")
    terms = [good, {**good, "grants": [{"type": "tool_call", "tool": "lab", "action": "fly"}]}]
    parsed = [RemitTerms.model_validate_json(_json(each)) for each in terms]
    stranger = await live.command("dana", GrantCommand, terms=parsed[0])
    empty = await live.command("emma", GrantCommand, terms=parsed[1])
    assert (stranger.status, empty.status, empty.field) == ("forbidden", "invalid", "terms.grants.0.action")
    assert "lab has no action fly; known: broken, " in empty.detail


def _json(terms: dict[str, Any]) -> bytes:
    return orjson.dumps(terms)


async def test_token_is_refused_when_the_remit_was_revoked_after_the_approval(live: Live) -> None:
    pending = await asks(live)
    remit = (await live.asked(pending.action_id))["remit_id"]
    with paused(live.stage.supervisor.pids("tokens")):
        assert (await live.approve("dana", pending.action_id)).status == "ok"
        assert (await live.revoke("emma", "remit", remit)).status == "ok"
    async with live.nothing_called():
        told = refused(await pending.wait(20))
    row = await live.receipt(pending.action_id)
    assert (told.reason, told.stage, "revoked; ask its human" in (told.detail or "")) == (
        Reason.REMIT_REVOKED,
        "tokens",
        True,
    )
    assert (row["approval_status"], row["jti"], row["outcome"]) == ("approved", None, None)


async def test_open_approval_is_withdrawn_with_its_remit(live: Live) -> None:
    pending = await asks(live)
    remit = (await live.asked(pending.action_id))["remit_id"]
    assert (await live.revoke("emma", "remit", remit)).status == "ok"
    told = refused(await pending.wait(20))
    assert (told.reason, told.stage) == (Reason.REVOKED, "approval")
    late = await live.command(
        "dana",
        ApproveCommand,
        action_id=pending.action_id,
        args_digest=(await live.receipt(pending.action_id))["args_digest"],
    )
    assert (late.status, late.decision) == ("decided", "refused")


async def test_revoked_action_is_never_called(live: Live) -> None:
    pending = await asks(live)
    assert (await live.revoke("emma", "action", pending.action_id)).status == "ok"
    told = refused(await pending.wait(20))
    assert (told.reason, told.detail) == (Reason.REVOKED, "test")
    assert (await live.receipt(pending.action_id))["terminal"] == "revoked"
    assert await live.calls(pending.action_id) == 0


@asynccontextmanager
async def proposing(live: Live, remit: str) -> AsyncGenerator[list[Result | Refusal | Pending]]:
    """Let eight loops propose for as long as the block runs, and collect what they hear."""
    heard: list[Result | Refusal | Pending] = []

    async def propose() -> None:
        while True:
            heard.append(await live.agent.propose("lab.ok", {}, remit=remit))

    loops = [asyncio.create_task(propose()) for _ in range(8)]
    try:
        yield heard
    finally:
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)


@pytest.mark.parametrize("kind", ["human", "agent", "tool", "global", "remit"])
async def test_no_claim_commits_after_a_revocation_returned(live: Live, kind: str) -> None:
    remit = await live.grant("lab.ok")
    targets = {"human": f"{live.stage.issuer}|emma", "agent": AGENT_ID, "tool": "lab.ok", "global": "*", "remit": remit}
    reason = Reason.REMIT_REVOKED if kind == "remit" else Reason.STOPPED
    async with proposing(live, remit) as heard:
        await eventually(lambda: len(heard) >= 16)
        assert (await live.revoke("otto", kind, targets[kind])).status == "ok"
        returned = await live.admin.fetchval("select clock_timestamp()")
        before = len(heard)
        await eventually(lambda: len(heard) >= before + 16)
    assert await live.admin.fetchval(LATER_CLAIMS, remit, returned) == 0
    told = refused(heard[-1])
    assert (told.reason, told.detail is not None) == (reason, True)
    if kind != "remit":
        assert (await live.revoke("emma", kind, targets[kind], lift=True)).status == "forbidden"
        assert (await live.revoke("otto", kind, targets[kind], lift=True)).status == "ok"
        assert concluded(await live.agent.propose("lab.ok", {}, remit=remit)).succeeded


async def test_switch_for_something_unknown_is_an_error_and_not_a_silent_success(live: Live) -> None:
    reply = await live.revoke("otto", "agent", "spiffe://acme.example/agent/bookeeper")
    assert (reply.status, reply.field) == ("invalid", "target")
    assert "nothing was stopped" in reply.detail


async def test_approval_that_nobody_gives_expires(tmp_path: Path) -> None:
    async with live_stage(tmp_path, settings=IMPATIENT) as impatient:
        remit = await impatient.grant("bank.send_money")
        async with impatient.nothing_called():
            told = refused(await impatient.agent.propose("bank.send_money", PAYMENT, remit=remit))
        row = await impatient.receipt(told.action_id)
        assert (told.reason, told.stage, told.detail) == (Reason.EXPIRED, "approval", "nobody decided in time")
        assert (row["approval_status"], row["outcome"]) == ("expired", None)

"""What people can do: delegate, agree, refuse, narrow, take back, stop; and what the clock does when they do nothing."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from infra.demo.tasks import AGENT_ID
from remit import Outcome, Reason, Refusal, Result
from remit.commands import ApproveCommand, DenyCommand, GrantCommand, NarrowCommand, RevokeCommand
from remit.ids import fresh_key
from remit.remits import RemitTerms
from tests.support.live_stage import concluded, live_stage, paused, refused, waiting
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from remit import Pending
    from tests.support.live_stage import Live

pytestmark = pytest.mark.timeout(60)

PAYMENT = {"recipient": "DE00000000000000000001", "amount": 250, "subject": "Rent", "date": "2022-01-01"}
IMPATIENT = {"approval": {"REMIT_APPROVAL_TIMEOUT_S": "1.5", "REMIT_SWEEP_S": "0.2"}}
LATER_CLAIMS = "select count(*) from control.execution where remit_id = $1 and state <> 'refused' and claimed_at > $2"


async def asks(live: Live, call: str = "bank.send_money", **arguments: Any) -> Pending:
    """Propose something that people are asked about, and wait until they can see it."""
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
    pending = await asks(live, **PAYMENT)
    row = await live.asked(pending.action_id)
    assert pending.awaits_approval or (await pending.wait(0.1))
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
    pending = await asks(live, **PAYMENT)
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
    assert isinstance(await pending.wait(0.3), type(pending))
    assert await live.calls(pending.action_id) == 0
    second = await live.approve("otto", pending.action_id)
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
    pending = await asks(live, **PAYMENT)
    row = await live.asked(pending.action_id)
    narrow = partial(live.command, "dana", NarrowCommand, action_id=pending.action_id, args_digest=row["args_digest"])
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
    assert "lab has no action fly; known: ok" in empty.detail


def _json(terms: dict[str, Any]) -> bytes:
    import orjson  # noqa: PLC0415

    return orjson.dumps(terms)

"""Everything an agent, a tool or an operator can send wrongly, one test each: a clear answer, no call, and evidence."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from infra.demo.stage import AGENT
from infra.demo.tasks import IDENTITY
from infra.local import key_ring
from remit import Outcome, Reason, Refusal
from remit.canonical import b64url, canonical, digest_bytes
from remit.clock import now
from remit.commands import ResolveCommand
from remit.ids import fresh_key
from remit.nkey import signing_key
from remit.proposal import MAX_PROPOSAL_BYTES, SIGNATURE_HEADER, Notice, signed_bytes
from tests.support.live_stage import CLERK, concluded, refused
from tests.support.servers import connected
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from remit import Pending, Result
    from tests.support.live_stage import Live

pytestmark = pytest.mark.timeout(60)

ABSENT_REMIT = f"rem_{0:032x}"
EVIDENCE = "select count(*) from audit.rejected where agent = $1 and code = $2 and detail = $3"


async def tell(live: Live, body: bytes) -> Notice:
    """Send bytes as the bookkeeper would, but past its SDK, and return what intake answers."""
    keys, seed = live.stage.environment.keys_dir, key_ring.load_agent_seed(live.stage.environment.keys_dir, AGENT)
    answer: asyncio.Future[Notice] = asyncio.get_running_loop().create_future()

    async def hear(message: Any) -> None:
        notice = Notice.model_validate_json(message.data)
        if notice.proposal_digest == digest_bytes(body) and not answer.done():
            answer.set_result(notice)

    async with connected(live.stage.environment.nats_url, keys, f"agents/{AGENT}") as client:
        await client.subscribe(f"results.{AGENT}.>", cb=hear)
        signature = b64url(signing_key(seed).sign(signed_bytes(AGENT, body)).signature)
        await client.request(f"propose.{AGENT}", body, headers={SIGNATURE_HEADER: signature})
        return await asyncio.wait_for(answer, 10)


async def is_turned_away(live: Live, answer: Result | Refusal | Pending, reason: Reason, *words: str) -> None:
    """Assert a refusal at the door: no action exists, and the dead letter holds what the agent was told."""
    told = refused(answer)
    assert (told.reason, told.stage, told.action_id) == (reason, "intake", None)
    says(told.detail, *words)

    async def kept() -> bool:
        return await live.admin.fetchval(EVIDENCE, AGENT, str(reason), told.detail) >= 1

    await eventually(kept)


async def is_refused(
    live: Live, answer: Result | Refusal | Pending, verdict: tuple[Reason, str | None], *words: str
) -> None:
    """Assert a refused action: reason, stage and words as the agent sees them, never claimed, and a receipt."""
    told = refused(answer)
    assert (told.reason, told.stage) == verdict
    says(told.detail, *words)
    row = await live.receipt(told.action_id)
    assert row["outcome"] is None
    assert verdict[0] in {row["refused_reason"], row["reason"]}
    assert await live.calls(told.action_id) == 0


def says(detail: str | None, *words: str) -> None:
    """Assert that a message names the thing and the remedy."""
    assert detail is not None
    assert [word for word in words if word not in detail] == []


async def test_unknown_tool(live: Live) -> None:
    async with live.nothing_called():
        answer = await live.agent.propose("bnak.get_iban", {}, remit=ABSENT_REMIT)
    await is_turned_away(live, answer, Reason.UNKNOWN_TOOL, "'bnak'", "did you mean bank?")
    assert refused(answer).alternatives == ("bank",)


async def test_unknown_action(live: Live) -> None:
    async with live.nothing_called():
        answer = await live.agent.propose("bank.send_mony", {}, remit=ABSENT_REMIT)
    await is_turned_away(live, answer, Reason.UNKNOWN_ACTION, "'send_mony'", "did you mean bank.send_money")
    assert refused(answer).alternatives == ("bank.send_money",)


async def test_unknown_argument(live: Live) -> None:
    async with live.nothing_called():
        answer = await live.agent.propose("bank.read_file", {"file_path": "x", "mode": "rw"}, remit=ABSENT_REMIT)
    await is_turned_away(live, answer, Reason.SCHEMA_VIOLATION, "'mode'", "bank.read_file takes file_path")


async def test_schema_violation(live: Live) -> None:
    async with live.nothing_called():
        wrong = await live.agent.propose("bank.read_file", {"file_path": 7}, remit=ABSENT_REMIT)
        missing = await live.agent.propose("bank.read_file", {}, remit=ABSENT_REMIT)
    await is_turned_away(live, wrong, Reason.SCHEMA_VIOLATION, "/file_path", "type")
    await is_turned_away(live, missing, Reason.SCHEMA_VIOLATION, "missing file_path")


async def test_oversize(live: Live) -> None:
    arguments = {"file_path": "x" * MAX_PROPOSAL_BYTES}
    async with live.nothing_called():
        answer = refused(await live.agent.propose("bank.read_file", arguments, remit=ABSENT_REMIT))
        assert (answer.reason, answer.stage) == (Reason.OVERSIZE, "intake")
        notice = await tell(live, proposal(arguments))
    assert (notice.status, notice.reason, notice.stage) == ("rejected", Reason.OVERSIZE, "intake")
    for detail in (answer.detail, notice.detail):
        says(detail, str(MAX_PROPOSAL_BYTES), "pass large content by reference")


async def test_malformed_json(live: Live) -> None:
    async with live.nothing_called():
        broken = await tell(live, proposal({})[:-1])
        twice = await tell(live, b'{"v":1,"v":1}')
        field = await tell(live, proposal({}, surprise=True))
    assert {n.status for n in (broken, twice, field)} == {"rejected"}
    assert {n.reason for n in (broken, twice, field)} == {Reason.MALFORMED}
    says(field.detail, "surprise")
    says(twice.detail, "twice")


def proposal(arguments: dict[str, Any], **more: Any) -> bytes:
    """Return the body of a proposal that no SDK checked."""
    fields = {"idempotency_key": fresh_key(), "remit_id": ABSENT_REMIT, "tool": "bank", "action": "read_file"}
    return canonical({"v": 1, **fields, "arguments": arguments, "identity": {**IDENTITY, "session": "s"}, **more})


async def test_wrong_signature(live: Live) -> None:
    agent = await live.stage.connect()
    agent._key = signing_key(key_ring.load_agent_seed(live.stage.environment.keys_dir, CLERK))
    async with live.nothing_called():
        answer = await agent.propose("bank.get_iban", {}, remit=ABSENT_REMIT)
    await is_turned_away(live, answer, Reason.BAD_SIGNATURE, "registered key of agent bookkeeper")


async def test_unknown_remit(live: Live) -> None:
    async with live.nothing_called():
        answer = await live.agent.propose("bank.get_iban", {}, remit=ABSENT_REMIT)
        await is_refused(live, answer, (Reason.UNKNOWN_REMIT, "policy"), ABSENT_REMIT, "ask")


async def test_foreign_remit(live: Live) -> None:
    remit = await live.grant("bank.get_iban")
    async with live.nothing_called():
        answer = await live.clerk.propose("bank.get_iban", {}, remit=remit)
        await is_refused(live, answer, (Reason.FOREIGN_REMIT, "policy"), remit, "ask")


async def test_expired_remit(live: Live) -> None:
    end = now() + timedelta(seconds=1)
    remit = await live.grant("bank.get_iban", expires_at=end.isoformat())
    await eventually(lambda: now() > end)
    async with live.nothing_called():
        answer = await live.agent.propose("bank.get_iban", {}, remit=remit)
        await is_refused(live, answer, (Reason.REMIT_EXPIRED, "policy"), "expired", "ask its human for a new one")


async def test_drifted_agent_identity(live: Live) -> None:
    remit = await live.grant("bank.get_iban")
    drifted = await live.stage.connect(model_version="v9")
    async with live.nothing_called():
        answer = await drifted.propose("bank.get_iban", {}, remit=remit)
        await is_refused(
            live, answer, (Reason.IDENTITY_DRIFT, "policy"), "model_version", "registered", "correct the agent"
        )


async def test_exhausted_budget_of_a_grant(live: Live) -> None:
    once = [{"type": "tool_call", "tool": "bank", "action": "get_iban", "max_calls": 1}]
    remit = await live.grant(grants=once)
    assert concluded(await live.agent.propose("bank.get_iban", {}, remit=remit)).succeeded
    async with live.nothing_called():
        answer = await live.agent.propose("bank.get_iban", {}, remit=remit)
        await is_refused(live, answer, (Reason.BUDGET_EXHAUSTED, "executor"), "no calls left", "ask its human")


async def test_exhausted_budget_of_a_remit(live: Live) -> None:
    remit = await live.grant("bank.get_iban", max_calls=1)
    assert concluded(await live.agent.propose("bank.get_iban", {}, remit=remit)).succeeded
    status = "select status from audit.remits where remit_id = $1"
    await eventually(lambda: live.admin.fetchval(status, remit), "exhausted")
    async with live.nothing_called():
        answer = await live.agent.propose("bank.get_iban", {}, remit=remit)
        # Policy may judge by a copy of the remit that is seconds old; tokens never does.
        stage = refused(answer).stage
        assert stage in {"policy", "tokens"}
        await is_refused(live, answer, (Reason.BUDGET_EXHAUSTED, stage), "exhausted", "ask its human for a new one")


async def test_duplicate_proposal(live: Live) -> None:
    remit = await live.grant("lab.ok")
    before = live.lab.arrivals["ok"]
    propose = partial(live.agent.propose, "lab.ok", {"text": "a"}, remit=remit, idempotency_key=f"twice-{fresh_key()}")
    first = concluded(await propose())
    again = await asyncio.gather(*(propose() for _ in range(4)))
    assert again == [first] * 4
    assert (first.succeeded, live.lab.arrivals["ok"] - before, live.lab.effects[first.action_id]) == (True, 1, 1)
    assert await live.calls(first.action_id) == 1


async def test_used_key_with_another_call(live: Live) -> None:
    remit = await live.grant("lab.ok")
    key = f"reused-{fresh_key()}"
    first = concluded(await live.agent.propose("lab.ok", {"text": "a"}, remit=remit, idempotency_key=key))
    async with live.nothing_called():
        answer = await live.agent.propose("lab.ok", {"text": "b"}, remit=remit, idempotency_key=key)
    await is_turned_away(live, answer, Reason.IDEMPOTENCY_CONFLICT, first.action_id, "use a new key")


async def test_unreachable_tool(live: Live) -> None:
    remit = await live.grant("gone.ok")
    answer = await live.agent.propose("gone.ok", {}, remit=remit)
    where = live.lab.gone_url.removeprefix("http://")
    await is_refused(live, answer, (Reason.TOOL_UNREACHABLE, "executor"), "gone", where)


async def test_tool_error_is_a_failure(live: Live) -> None:
    remit = await live.grant("lab.failing")
    answer = concluded(await live.agent.propose("lab.failing", {}, remit=remit))
    row = await live.receipt(answer.action_id)
    assert (answer.outcome, answer.detail, answer.value) == (Outcome.FAILED, "http_422", {"error": "no such sample"})
    assert (row["outcome"], row["error"]) == ("failed", "http_422")


async def test_tool_that_breaks_leaves_doubt(live: Live) -> None:
    await leaves_doubt(live, "lab.broken", "http_500")


async def test_tool_timeout_leaves_doubt(live: Live) -> None:
    await leaves_doubt(live, "lab.slow", "timeout")


async def leaves_doubt(live: Live, call: str, error: str) -> None:
    """Assert an unknown outcome after one request, and a receipt once a person found out what happened."""
    before = live.lab.arrivals[call.removeprefix("lab.")]
    answer = concluded(await live.agent.propose(call, {}, remit=await live.grant(call)))
    assert (answer.outcome, answer.detail, answer.value) == (Outcome.UNKNOWN, error, None)
    assert live.lab.arrivals[call.removeprefix("lab.")] == before + 1
    found = {"outcome": "failed", "finding": "the lab did nothing"}
    reply = await live.command("otto", ResolveCommand, action_id=answer.action_id, **found)
    assert reply.status == "ok", reply
    row = await live.receipt(answer.action_id)
    assert row["outcome"] == "failed"


@pytest.mark.parametrize(("call", "why"), [("lab.oversize", "too_large"), ("lab.off_schema", "schema_violation")])
async def test_odd_result_is_kept_from_the_agent(live: Live, call: str, why: str) -> None:
    answer = concluded(await live.agent.propose(call, {}, remit=await live.grant(call)))
    row = await live.receipt(answer.action_id)
    assert (answer.outcome, answer.value, answer.omitted) == (Outcome.SUCCEEDED, None, why)
    assert (row["outcome"], row["result_omitted"]) == ("succeeded", why)


async def test_invalid_bundle(live: Live) -> None:
    good = live.stage.registry(live.lab)
    widened = {**good.policies, "bad.cedar": '@id("bad") permit (principal, action == Action::"bank.rob", resource);'}
    worse = good.model_copy(update={"policies": widened, "agents": {}})
    reply = await live.apply(worse)
    assert reply.status == "invalid"
    says(f"{reply.field} {reply.detail}", "bad.cedar", "bank.rob")
    answer = concluded(await live.agent.propose("lab.ok", {}, remit=await live.grant("lab.ok")))
    row = await live.receipt(answer.action_id)
    assert (answer.succeeded, row["bundle_version"]) == (True, live.bundle_version)

"""The agent's patience, with a scripted connection instead of a broker: what it repeats, what it believes, when it gives up."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from infra.nats import identity as nkeys
from remit import Agent, Identity, NotConnectedError, Pending, Reason, Refusal, Result, UndeliveredError
from remit.canonical import b64url_decode, digest_bytes
from remit.client import agent as sdk
from remit.nkey import signing_key
from remit.proposal import SIGNATURE_HEADER, Notice, Proposal, signed_bytes
from remit.reasons import Outcome
from tests.support.factories import NOW

if TYPE_CHECKING:
    from collections.abc import Callable

REMIT = "rem_" + "0" * 32
ACTION = "c" * 32
STORED = b'{"stream":"INTAKE","seq":1}'
FULL = b'{"error":{"code":503,"err_code":10077,"description":"maximum messages per subject exceeded"}}'
SEED = nkeys.new_seed()
Reply = bytes | None | Exception


class Script:
    """Stands in for the link: answers in order, the last one for ever, and remembers what was sent."""

    def __init__(self, agent: Agent, proposals: list[Reply], statuses: list[Reply] | None = None) -> None:
        self.agent, self.problem = agent, "no answer"
        self.replies = {"propose": proposals, "status": statuses or [None]}
        self.sent: list[tuple[str, bytes, dict[str, str] | None]] = []
        self.after: Callable[[Script], None] = lambda _: None
        agent._link = self  # type: ignore[assignment]  # it has what the agent uses

    async def request(
        self, subject: str, body: bytes, *, headers: dict[str, str] | None, timeout_s: float
    ) -> bytes | None:
        assert timeout_s > 0
        self.sent.append((subject, body, headers))
        waiting = self.replies[subject.split(".", 1)[0]]
        reply = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        self.after(self)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def proposals(self) -> list[bytes]:
        return [body for subject, body, _ in self.sent if subject.startswith("propose.")]

    def tell(self, status: str, **more: Any) -> None:
        binding = digest_bytes(self.proposals()[0])
        self.agent._on_notice(notice(status, proposal_digest=binding, event_id=f"e{len(self.sent)}", **more))


def notice(status: str, **more: Any) -> bytes:
    told = {"status": status, "agent": "bookkeeper", "action_id": ACTION, "event_id": "e"}
    found = Notice.model_validate({**told, **more})
    return found.model_dump_json(exclude_none=True).encode()


ABSENT = notice("rejected", action_id=None)


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Agent:
    for name in ("FIRST_PAUSE_S", "MAX_PAUSE_S", "FIRST_POLL_S", "MAX_POLL_S"):
        monkeypatch.setattr(sdk, name, 0.01)
    monkeypatch.setattr(sdk, "DELIVERY_S", 0.1)
    identity = Identity(runtime="r", model_family="f", model_version="1", config_digest="sha-256:c")
    return Agent(name="bookkeeper", nkey_seed=SEED, identity=identity)


async def pay(agent: Agent, *, wait: float = 5.0) -> Result | Refusal | Pending:
    return await agent.propose("bank.send.money", {"amount": 5}, remit=REMIT, idempotency_key="k", wait=wait)


def succeed(script: Script) -> None:
    script.tell("succeeded", outcome=Outcome.SUCCEEDED, result=7)


async def test_proposal_is_signed_over_its_own_subject(agent: Agent) -> None:
    script = Script(agent, [STORED])
    script.after = succeed
    assert isinstance(await pay(agent), Result)
    [(subject, body, headers)] = script.sent
    assert (subject, headers is not None) == ("propose.bookkeeper", True)
    signature = b64url_decode((headers or {})[SIGNATURE_HEADER])
    signing_key(SEED).verify_key.verify(signed_bytes("bookkeeper", body), signature)
    proposal = Proposal.model_validate_json(body)
    assert (proposal.tool, proposal.action, proposal.arguments) == ("bank", "send.money", {"amount": 5})


@pytest.mark.parametrize("lost", [None, b"no json", b"[]", b"{}", NotConnectedError("gone"), FULL])
async def test_unacknowledged_proposal_is_sent_again_as_the_same_bytes(agent: Agent, lost: Reply) -> None:
    script = Script(agent, [lost, lost, STORED])
    script.after = lambda s: succeed(s) if len(s.proposals()) == 3 else None
    assert isinstance(await pay(agent), Result)
    assert len(script.proposals()) == 3
    assert len(set(script.proposals())) == 1


async def test_notice_counts_as_acknowledgement(agent: Agent) -> None:
    script = Script(agent, [None])
    script.after = succeed
    assert isinstance(await pay(agent), Result)
    assert len(script.proposals()) == 1


async def test_full_queue_to_the_end_is_a_quota_refusal(agent: Agent) -> None:
    Script(agent, [FULL])
    refusal = await pay(agent, wait=0.05)
    assert isinstance(refusal, Refusal)
    assert (refusal.reason, refusal.idempotency_key) == (Reason.QUOTA_EXCEEDED, "k")


async def test_one_unknown_outcome_among_refusals_leaves_it_unknown(agent: Agent) -> None:
    Script(agent, [FULL, None, FULL])
    with pytest.raises(UndeliveredError) as caught:
        await pay(agent, wait=0.05)
    assert caught.value.idempotency_key == "k"


async def test_undecided_call_is_pending_with_its_deadline(agent: Agent) -> None:
    script = Script(agent, [STORED])
    script.after = lambda s: s.tell("pending", expires_at=NOW)
    pending = await pay(agent, wait=0.03)
    assert isinstance(pending, Pending)
    assert (pending.action_id, pending.expires_at, pending.awaits_approval) == (ACTION, NOW, True)
    assert pending.handle == f"bookkeeper/{ACTION}/bound/k"


async def test_quota_refusal_by_intake_is_waited_out(agent: Agent) -> None:
    script = Script(agent, [STORED])

    def refuse_twice(s: Script) -> None:
        if len(s.proposals()) < 3:
            s.tell("rejected", action_id=None, reason=Reason.QUOTA_EXCEEDED)
        else:
            succeed(s)

    script.after = refuse_twice
    assert isinstance(await pay(agent), Result)
    assert len(set(script.proposals())) == 1


async def test_quota_refusal_without_time_left_is_told(agent: Agent) -> None:
    script = Script(agent, [STORED])
    script.after = lambda s: s.tell("rejected", action_id=None, reason=Reason.QUOTA_EXCEEDED)
    refusal = await pay(agent, wait=0.0)
    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason.QUOTA_EXCEEDED


async def test_silent_intake_is_asked_but_not_proposed_to_again(agent: Agent) -> None:
    script = Script(agent, [STORED], [None, NotConnectedError("gone"), b"junk", None])
    pending = await pay(agent, wait=0.2)
    assert isinstance(pending, Pending)
    assert len(script.proposals()) == 1
    assert len(script.sent) > 5


async def test_living_intake_that_knows_nothing_is_proposed_to_again(agent: Agent) -> None:
    script = Script(agent, [STORED], [ABSENT])
    script.after = lambda s: succeed(s) if len(s.proposals()) == 2 else None
    assert isinstance(await pay(agent), Result)
    assert len(script.sent) == 4


async def test_pending_in_the_same_process_can_still_propose_again(agent: Agent) -> None:
    script = Script(agent, [STORED], [ABSENT])
    pending = await pay(agent, wait=0.0)
    assert isinstance(pending, Pending)
    assert pending.handle.split("/")[2].startswith("sha-256:")
    script.after = lambda s: succeed(s) if len(s.proposals()) == 2 else None
    assert isinstance(await pending.wait(5), Result)


async def test_resumed_handle_asks_at_once(agent: Agent) -> None:
    answer = notice("succeeded", outcome=Outcome.SUCCEEDED, result=7)
    script = Script(agent, [STORED], [answer])
    result = await Pending.resume(agent, ACTION).wait(0)
    assert isinstance(result, Result)
    assert [subject for subject, _, _ in script.sent] == [f"status.bookkeeper.{ACTION}"]


async def test_handle_of_an_unanswered_proposal_believes_only_its_own_bytes(agent: Agent) -> None:
    handle = f"bookkeeper/{ACTION}/sha-256:mine/k"
    foreign = notice("succeeded", outcome=Outcome.SUCCEEDED, proposal_digest="sha-256:other")
    mine = notice("succeeded", outcome=Outcome.SUCCEEDED, proposal_digest="sha-256:mine")
    Script(agent, [STORED], [foreign])
    assert isinstance(await agent.pending(handle).wait(0.05), Pending)
    Script(agent, [STORED], [mine])
    assert isinstance(await agent.pending(handle).wait(0.05), Result)


async def test_notice_of_a_newer_contract_is_passed_over(agent: Agent, caplog: pytest.LogCaptureFixture) -> None:
    agent._on_notice(json.dumps({"v": 2, "status": "succeeded", "secret": "value"}).encode())
    assert "update the SDK" in caplog.text
    assert "value" not in caplog.text


@pytest.mark.parametrize("named", [None, "a1", "Bookkeeper"])
async def test_notice_that_names_nobody_or_another_agent_is_not_believed(agent: Agent, named: str | None) -> None:
    script = Script(agent, [STORED], [notice("succeeded", agent=named, outcome=Outcome.SUCCEEDED)])
    script.after = lambda sent: sent.tell("succeeded", agent=named, outcome=Outcome.SUCCEEDED)
    assert isinstance(await agent.propose("bank.read", {}, remit=REMIT, wait=0.05), Pending)


async def test_calls_without_a_key_are_different_calls(agent: Agent) -> None:
    script = Script(agent, [STORED])
    for _ in range(2):
        await agent.propose("bank.read", {}, remit=REMIT, wait=0.0)
    keys = {Proposal.model_validate_json(body).idempotency_key for body in script.proposals()}
    assert len(keys) == 2

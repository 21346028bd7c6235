"""Intake's shell over plain memory: one action per key, the same answer to a repetition, evidence of every refusal."""

from __future__ import annotations

from dataclasses import replace

import pytest

from remit.canonical import digest_bytes
from remit.errors import PermanentError, StaleBundleError, TransientError
from remit.fold import ActionState
from remit.ids import action_id
from remit.proposal import Notice
from remit.reasons import Reason
from remit.runtime.delivery import Inbound
from remit.runtime.ledger import OversizeError, Superseded
from services.intake.catalogue import Catalogue, CatalogueReader
from services.intake.handlers import EVIDENCE_BURST, STATUS_BURST
from tests.support.factories import EXECUTED_PATH, action_until
from tests.unit.intake.door import Door, arguments, body, catalogue, inbound

ACTION = action_id("default", "bookkeeper", "pay-the-bill")
RESULTS = f"results.bookkeeper.{ACTION}"
REJECTED = "results.bookkeeper.rejected"


@pytest.fixture
def door() -> Door:
    return Door()


async def test_accepted_proposal_is_stored_once_and_bound_to_its_bytes(door: Door) -> None:
    await door.handlers().on_proposal(inbound())
    [(subject, notice)] = door.told
    assert subject == RESULTS
    assert (notice.status, notice.action_id) == ("proposed", ACTION)
    assert notice.proposal_digest == digest_bytes(body())
    assert list(door.states) == [ACTION]
    assert door.letters == []


async def test_duplicate_proposal_returns_same_result(door: Door) -> None:
    door.states[ACTION] = action_until(*EXECUTED_PATH)
    await door.handlers().on_proposal(inbound())
    [(subject, notice)] = door.told
    assert subject == RESULTS
    assert notice.status == "succeeded"
    assert notice.result == {"message": "Transaction to UK12345678901234567890 sent."}


async def test_duplicate_proposal_makes_no_second_action(door: Door) -> None:
    for _ in range(3):
        await door.handlers().on_proposal(inbound())
    assert len(door.states[ACTION].chain) == 1
    assert [notice.status for _, notice in door.told] == ["proposed"] * 3


async def test_duplicate_proposal_in_other_words_is_the_same_call(door: Door) -> None:
    await door.handlers().on_proposal(inbound())
    spaced = body(rationale="asking again").replace(b'","', b'" , "')
    await door.handlers().on_proposal(inbound(spaced))
    assert [notice.status for _, notice in door.told] == ["proposed", "proposed"]
    assert door.told[1][1].proposal_digest == digest_bytes(spaced)


@pytest.mark.parametrize(
    "other",
    [body(arguments=arguments(amount=5)), body(action="read_file"), body(remit_id="rem_" + "f" * 32)],
    ids=["arguments", "action", "remit"],
)
async def test_reused_key_for_another_call_is_an_idempotency_conflict(door: Door, other: bytes) -> None:
    await door.handlers().on_proposal(inbound())
    before = door.states[ACTION]
    await door.handlers().on_proposal(inbound(other))
    subject, notice = door.told[-1]
    assert (subject, notice.status, notice.reason) == (REJECTED, "rejected", Reason.IDEMPOTENCY_CONFLICT)
    assert notice.proposal_digest == digest_bytes(other)
    assert door.states[ACTION] is before
    assert [code for code, _ in door.letters] == ["idempotency_conflict"]


async def test_junk_on_the_actions_subjects_cannot_block_it(door: Door) -> None:
    door.states[ACTION] = ActionState(action_id=ACTION, last_seq=41)
    await door.handlers().on_proposal(inbound())
    assert door.told[-1][1].status == "proposed"
    assert door.states[ACTION].last_seq == 42


async def test_lost_race_is_answered_with_the_winners_state(door: Door) -> None:
    async def lose(_state: ActionState, _draft: object) -> ActionState:
        raise Superseded(action_until(*EXECUTED_PATH))

    await replace(door.handlers(), append=lose).on_proposal(inbound())
    assert door.told[-1][1].status == "succeeded"


async def test_refused_proposal_is_told_and_kept_as_evidence(door: Door) -> None:
    broken = body(tool="bnak")
    await door.handlers().on_proposal(inbound(broken))
    [(subject, notice)] = door.told
    assert subject == REJECTED
    assert (notice.reason, notice.alternatives) == (Reason.UNKNOWN_TOOL, ["bank"])
    assert (notice.proposal_digest, notice.idempotency_key) == (digest_bytes(broken), "pay-the-bill")
    assert [code for code, _ in door.letters] == ["unknown_tool"]
    assert door.states == {}


async def test_repetition_after_the_registry_moved_still_finds_its_action(door: Door) -> None:
    door.states[ACTION] = action_until(*EXECUTED_PATH)
    door.catalogue = catalogue(tools={})
    await door.handlers().on_proposal(inbound())
    assert (door.told[-1][0], door.told[-1][1].status) == (RESULTS, "succeeded")
    assert door.letters == []


async def test_other_call_after_the_registry_moved_is_refused(door: Door) -> None:
    door.states[ACTION] = action_until(*EXECUTED_PATH)
    door.catalogue = catalogue(tools={})
    await door.handlers().on_proposal(inbound(body(arguments=arguments(amount=5))))
    assert door.told[-1][1].reason is Reason.UNKNOWN_TOOL


async def test_proposals_beyond_the_quota_are_refused_until_time_passes(door: Door) -> None:
    door.catalogue = catalogue(proposals_per_minute=2)
    handlers = door.handlers()
    for key in ("k1", "k2", "k3"):
        await handlers.on_proposal(inbound(body(idempotency_key=key)))
    assert [notice.reason for _, notice in door.told] == [None, None, Reason.QUOTA_EXCEEDED]
    assert "in 30.0 s" in (door.told[-1][1].detail or "")
    door.now = 30.0
    await handlers.on_proposal(inbound(body(idempotency_key="k3")))
    assert door.told[-1][1].status == "proposed"


async def test_redelivery_costs_no_quota(door: Door) -> None:
    door.catalogue = catalogue(proposals_per_minute=1)
    handlers = door.handlers()
    await handlers.on_proposal(inbound())
    await handlers.on_proposal(inbound(delivered=2))
    assert [notice.status for _, notice in door.told] == ["proposed", "proposed"]


async def test_flood_of_junk_is_answered_but_not_all_stored(door: Door) -> None:
    handlers = door.handlers()
    for _ in range(EVIDENCE_BURST + 3):
        await handlers.on_proposal(inbound(b"{"))
    assert len(door.letters) == EVIDENCE_BURST
    assert len(door.told) == EVIDENCE_BURST + 3
    assert door.alarms == ["refusal_evidence_left_out"] * 3


async def test_evidence_of_refusals_comes_back_slowly(door: Door) -> None:
    handlers = door.handlers()
    for _ in range(EVIDENCE_BURST):
        await handlers.on_proposal(inbound(b"{"))
    door.now = 60.0
    for _ in range(2):
        await handlers.on_proposal(inbound(b"{"))
    assert len(door.letters) == EVIDENCE_BURST + 1


@pytest.mark.parametrize("error", [TransientError("DLQ is full"), PermanentError("400")])
async def test_refusal_that_cannot_be_kept_is_still_told_and_done(door: Door, error: Exception) -> None:
    async def full(_: Inbound, *, code: str, detail: str, keep: int) -> None:
        assert (code, keep > 0, bool(detail)) == ("malformed", True, True)
        raise error

    await replace(door.handlers(), dead_letter=full).on_proposal(inbound(b"{"))
    assert door.alarms == ["refusal_evidence_lost"]
    assert [notice.reason for _, notice in door.told] == [Reason.MALFORMED]


@pytest.mark.parametrize(
    ("error", "reason"),
    [(OversizeError("70000 bytes"), Reason.OVERSIZE), (PermanentError("broker answered 400"), Reason.UNPROCESSABLE)],
)
async def test_proposal_that_the_ledger_never_takes_is_refused_like_any_other(
    door: Door, error: Exception, reason: Reason
) -> None:
    async def refuse(_state: ActionState, _draft: object) -> ActionState:
        raise error

    await replace(door.handlers(), append=refuse).on_proposal(inbound())
    assert [(subject, notice.reason) for subject, notice in door.told] == [(REJECTED, reason)]
    assert [code for code, _ in door.letters] == [reason.value]


async def test_given_up_proposal_is_told_and_kept(door: Door) -> None:
    await door.handlers().on_exhausted(inbound(delivered=20))
    assert [(subject, notice.reason) for subject, notice in door.told] == [(REJECTED, Reason.UNPROCESSABLE)]
    assert [code for code, _ in door.letters] == ["unprocessable"]


def test_questions_of_one_agent_are_limited_and_cost_the_others_nothing(door: Door) -> None:
    handlers = door.handlers()
    answered = [handlers.may_ask(f"status.evil.{n}") for n in range(2 * STATUS_BURST)]
    assert sum(answered) == STATUS_BURST
    assert handlers.may_ask(f"status.bookkeeper.{ACTION}")
    door.now = 1.0
    assert handlers.may_ask("status.evil.x")


async def test_sender_with_an_impossible_name_gets_a_dead_letter_and_no_notice(door: Door) -> None:
    await door.handlers().on_proposal(inbound(name="UPPER"))
    assert door.told == []
    assert [code for code, _ in door.letters] == ["unknown_agent"]


async def test_trace_context_is_kept_only_when_it_is_one(door: Door) -> None:
    good = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    for trace in (good, good + "\r\nX: y", "junk"):
        message = inbound(body(idempotency_key=f"k{len(trace)}"))
        await door.handlers().on_proposal(replace(message, headers={**message.headers, "traceparent": trace}))
    assert door.traces == [good, None, None]


async def test_event_is_told_to_the_agent_that_proposed(door: Door) -> None:
    for recorded in action_until(*EXECUTED_PATH).chain:
        await door.handlers().on_event(recorded)
    assert [(subject, notice.status) for subject, notice in door.told] == [
        (RESULTS, "pending"),
        (RESULTS, "succeeded"),
    ]


async def ask(door: Door, agent: str, action: str) -> Notice:
    reply = await door.handlers().on_status(Inbound(subject=f"status.{agent}.{action}", body=b"", headers={}))
    return Notice.model_validate_json(reply)


async def test_status_answers_the_owner(door: Door) -> None:
    door.states[ACTION] = action_until("proposed", "evaluated", "approval_requested")
    assert (await ask(door, "bookkeeper", ACTION)).status == "pending"


@pytest.mark.parametrize(("agent", "action"), [("a1", ACTION), ("bookkeeper", "0" * 32), ("bookkeeper", "not-an-id")])
async def test_status_tells_nothing_about_foreign_or_absent_actions(door: Door, agent: str, action: str) -> None:
    door.states[ACTION] = action_until("proposed")
    notice = await ask(door, agent, action)
    assert (notice.status, notice.action_id, notice.idempotency_key) == ("rejected", None, None)


async def test_proposals_wait_while_no_bundle_may_be_trusted(door: Door) -> None:
    def stale() -> Catalogue:
        raise StaleBundleError("no registry bundle was applied yet")

    with pytest.raises(StaleBundleError):
        await replace(door.handlers(), catalogue=stale).on_proposal(inbound())
    assert door.told == door.letters == []


def test_catalogue_is_derived_once_per_bundle() -> None:
    bundles = [catalogue().bundle, catalogue().bundle]
    reader = CatalogueReader(lambda: bundles[0])
    first = reader()
    assert reader() is first
    bundles.reverse()
    assert reader() is not first

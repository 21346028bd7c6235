"""What an agent is told about its action, event by event."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from remit.canonical import digest_bytes
from remit.reasons import Outcome, Reason, Stage, Verdict
from services.intake.decide import Rejected
from services.intake.notices import no_such_action, notice_for, notice_of, rejection
from tests.support import factories
from tests.support.factories import APPROVED_PATH, EXECUTED_PATH, NOW, action_until, grow

if TYPE_CHECKING:
    from remit.events import ActionEvent


def event(*path: str) -> ActionEvent:
    last = action_until(*path).last
    assert last is not None
    return last


def test_denied_action_is_refused_by_policy_with_what_is_grantable() -> None:
    data = factories.EVALUATED.model_copy(
        update={"decision": factories.decision(Verdict.DENY, Reason.NO_GRANT), "detail": "no grant covers it"}
    )
    last = grow(action_until("proposed"), "action.evaluated", data).last
    assert last is not None
    notice = notice_of(last)
    assert notice is not None
    assert (notice.status, notice.stage, notice.reason) == ("refused", Stage.POLICY, Reason.NO_GRANT)
    assert (notice.detail, notice.alternatives) == ("no grant covers it", ["bank.send_money"])


@pytest.mark.parametrize("verdict", [Verdict.ALLOW, Verdict.ASK])
def test_undecided_evaluation_tells_nothing(verdict: Verdict) -> None:
    data = factories.EVALUATED.model_copy(update={"decision": factories.decision(verdict)})
    last = grow(action_until("proposed"), "action.evaluated", data).last
    assert last is not None
    assert notice_of(last) is None


def test_approval_request_is_pending_with_its_deadline() -> None:
    state = grow(action_until("proposed", "evaluated"), "action.approval_requested", expirytime=NOW)
    notice = notice_for(state)
    assert (notice.status, notice.expires_at, notice.action_id) == ("pending", NOW, state.action_id)


def test_executed_action_carries_the_redacted_result() -> None:
    notice = notice_of(event(*EXECUTED_PATH))
    assert notice is not None
    assert (notice.status, notice.outcome) == ("succeeded", Outcome.SUCCEEDED)
    assert notice.result == factories.EXECUTED.result


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.UNKNOWN])
def test_failed_and_unknown_outcomes_are_told_as_they_are(outcome: Outcome) -> None:
    data = factories.EXECUTED.model_copy(update={"outcome": outcome, "error": "timeout", "result": None})
    last = grow(action_until(*EXECUTED_PATH[:-1]), "action.executed", data).last
    assert last is not None
    notice = notice_of(last)
    assert notice is not None
    assert (notice.status, notice.outcome, notice.detail) == (outcome.value, outcome, "timeout")


def test_refusal_names_stage_reason_and_alternatives_but_no_person() -> None:
    notice = notice_for(action_until("proposed", "evaluated", "approval_requested", "refused"))
    assert (notice.status, notice.stage, notice.reason) == ("refused", Stage.APPROVAL, Reason.DENIED)
    assert notice.alternatives == ["ask the human"]
    assert "dana" not in notice.model_dump_json()


def test_revoked_action_is_refused_as_revoked() -> None:
    notice = notice_for(action_until("proposed", "evaluated", "approval_requested", "revoked"))
    assert (notice.status, notice.reason, notice.detail) == ("refused", Reason.REVOKED, "changed my mind")


@pytest.mark.parametrize("length", [1, 2, 4])
def test_action_under_way_is_proposed(length: int) -> None:
    assert notice_for(action_until(*APPROVED_PATH[:length])).status == "proposed"


def test_receipt_does_not_hide_the_outcome() -> None:
    assert notice_for(action_until(*EXECUTED_PATH, "audited")).status == "succeeded"


def test_token_never_reaches_the_agent() -> None:
    assert (
        factories.TOKENIZED.sealed_token not in notice_for(action_until(*APPROVED_PATH, "tokenized")).model_dump_json()
    )


def test_notice_binds_the_answered_bytes_to_the_action() -> None:
    state = action_until("proposed")
    stored = digest_bytes(factories.PROPOSED.proposal.encode())
    assert notice_for(state).proposal_digest == stored
    assert notice_for(state, proposal_digest="sha-256:other").proposal_digest == "sha-256:other"
    assert notice_for(state).idempotency_key == "pay-the-bill"


def test_state_without_a_proposal_has_no_notice() -> None:
    with pytest.raises(LookupError):
        notice_for(factories.empty())


def test_rejection_repeats_its_id_on_redelivery_and_not_on_a_second_try() -> None:
    rejected = Rejected(reason=Reason.OVERSIZE, detail="too large")
    first, again, second = (rejection(rejected, proposal_digest="sha-256:x", seq=seq) for seq in (1, 1, 2))
    assert first == again
    assert first.event_id != second.event_id
    assert (first.status, first.stage, first.action_id) == ("rejected", Stage.INTAKE, None)


def test_absent_and_foreign_actions_look_alike() -> None:
    notice = no_such_action("bookkeeper", "0" * 32)
    assert (notice.status, notice.action_id, notice.reason) == ("rejected", None, None)

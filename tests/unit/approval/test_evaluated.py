"""What follows an evaluation: approval by policy, a question to people, or a refusal."""

from __future__ import annotations

from datetime import timedelta

import pytest

from remit.events import ActionApprovalRequested, ActionApproved, ActionRefused
from remit.reasons import Reason, Stage, Verdict
from services.approval.decide import Facts, decide_evaluated, shown_digest
from tests.support.factories import AGENT, COMMON, EVALUATED, NOW, PROPOSED, TOOL, Principal, action_until
from tests.unit.approval.people import LIMITS, NOTHING, drafted, evaluated, requested


def test_allow_is_approved_by_policy_for_a_minute() -> None:
    draft = drafted(decide_evaluated(evaluated(Verdict.ALLOW), NOTHING, LIMITS, NOW))
    assert draft.event is ActionApproved
    assert (draft.data.by, draft.data.votes) == ("policy", [])
    assert draft.data.approved_until == NOW + timedelta(minutes=1)


def test_ask_becomes_a_request_with_deadline_and_digest_of_what_is_shown() -> None:
    draft = drafted(decide_evaluated(evaluated(), NOTHING, LIMITS, NOW))
    assert draft.event is ActionApprovalRequested
    assert draft.expirytime == NOW + timedelta(minutes=15)
    assert draft.data.shown_digest == shown_digest(EVALUATED, PROPOSED.proposal)
    assert (draft.data.round, draft.data.quorum, draft.data.approvers) == (1, 1, ["payments"])


def test_what_is_shown_has_another_digest_when_the_agent_says_something_else() -> None:
    assert shown_digest(EVALUATED, PROPOSED.proposal) != shown_digest(EVALUATED, PROPOSED.proposal + " ")


@pytest.mark.parametrize("verdict", [Verdict.ALLOW, Verdict.ASK])
def test_an_engaged_switch_refuses_whatever_policy_said(verdict: Verdict) -> None:
    draft = drafted(decide_evaluated(evaluated(verdict), Facts(stopped_by="agent"), LIMITS, NOW))
    assert draft.event is ActionRefused
    assert (draft.data.stage, draft.data.reason) == (Stage.APPROVAL, Reason.STOPPED)
    assert "agent" in draft.data.detail


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (Facts(exhausted=True), Reason.BUDGET_EXHAUSTED),
        (Facts(blocked="wrong list"), Reason.BLOCKED),
        (Facts(exhausted=True, blocked="wrong list"), Reason.BUDGET_EXHAUSTED),
        (Facts(stopped_by="global", exhausted=True), Reason.STOPPED),
    ],
)
def test_nobody_is_asked_about_what_could_not_run(facts: Facts, reason: Reason) -> None:
    draft = drafted(decide_evaluated(evaluated(), facts, LIMITS, NOW))
    assert draft.data.reason is reason


def test_what_people_denied_is_not_allowed_by_rule_either() -> None:
    draft = drafted(decide_evaluated(evaluated(Verdict.ALLOW), Facts(blocked="wrong list"), LIMITS, NOW))
    assert (draft.event, draft.data.reason, draft.data.detail) == (ActionRefused, Reason.BLOCKED, "wrong list")


@pytest.mark.parametrize(("risk", "policy", "asked"), [("T3", 1, 1), ("T4", 1, 2), ("T4", 3, 3)])
def test_at_t4_two_people_are_asked_whatever_policy_says(risk: str, policy: int, asked: int) -> None:
    state = evaluated(quorum=policy, action=COMMON["action"].model_copy(update={"risk": risk}))
    assert drafted(decide_evaluated(state, NOTHING, LIMITS, NOW)).data.quorum == asked


def test_a_refusal_names_the_other_things_the_remit_offers() -> None:
    state = evaluated(scopes_grantable=["bank.send_money", "bank.read_file"])
    draft = drafted(decide_evaluated(state, Facts(blocked="wrong list"), LIMITS, NOW))
    assert draft.data.alternatives == ["bank.read_file"]


@pytest.mark.parametrize(
    "flaw",
    [{"approvers": []}, {"quorum": 0}, {"principal": Principal(agent=AGENT, tool=TOOL)}],
    ids=["no group", "no vote", "no human"],
)
def test_a_question_nobody_could_answer_is_refused(flaw: dict[str, object]) -> None:
    draft = drafted(decide_evaluated(evaluated(**flaw), NOTHING, LIMITS, NOW))
    assert draft.data.reason is Reason.EVALUATION_ERROR


def test_nothing_follows_a_denial_or_an_action_that_moved_on() -> None:
    assert decide_evaluated(evaluated(Verdict.DENY), NOTHING, LIMITS, NOW) is None
    assert decide_evaluated(requested(), NOTHING, LIMITS, NOW) is None
    assert decide_evaluated(action_until("proposed"), NOTHING, LIMITS, NOW) is None


def test_a_block_covers_the_operation_on_one_resource() -> None:
    action = COMMON["action"]
    assert action.block_class == "bank.send_money|UK12345678901234567890"
    assert action.model_copy(update={"resource_id": None}).block_class == "bank.send_money|"

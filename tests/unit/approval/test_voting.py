"""Who may vote on what, when a vote counts, and when votes are enough."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from remit.commands import NarrowCommand, Reply
from remit.events import ActionApprovalRequested, ActionApproved
from remit.runtime.ledger import Draft
from services.approval.voting import decide_vote, vote_reply
from tests.support.factories import APPROVED_PATH, DANA, DIGEST, EMMA, NOW, action_until, grow
from tests.unit.approval.people import (
    DEADLINE,
    LIMITS,
    MIA,
    answered,
    appended,
    approve,
    drafted,
    evaluated,
    moment,
    requested,
    voter,
)


def vote(state: Any, by: Any = None, **more: Any) -> Draft | Reply:
    return decide_vote(state, approve(**more), by or voter(), moment(), LIMITS)


def test_one_vote_of_the_group_approves_the_exact_arguments() -> None:
    draft = drafted(vote(requested()))
    assert draft.event is ActionApproved
    assert (draft.data.by, [v.sub for v in draft.data.votes]) == ("human", ["dana"])
    assert draft.data.approved_until == NOW + timedelta(minutes=5)
    assert draft.data.shown_digest == DIGEST


def test_an_approval_never_outlives_its_remit() -> None:
    ends = NOW + timedelta(seconds=30)
    draft = drafted(decide_vote(requested(), approve(), voter(), moment(remit_expires_at=ends), LIMITS))
    assert draft.data.approved_until == ends


@pytest.mark.parametrize(
    ("by", "more", "status"),
    [
        (voter(EMMA, "payments"), {}, "forbidden"),
        (voter(DANA, "security"), {}, "forbidden"),
        (voter(DANA, "admin", "operator"), {}, "forbidden"),
        (voter(), {"args_digest": DIGEST}, "stale"),
        (voter(), {"shown_digest": "sha-256:" + "A" * 43}, "stale"),
        (voter(), {"version": 2}, "stale"),
    ],
    ids=["self", "other group", "no group", "arguments", "card", "round"],
)
def test_a_vote_that_does_not_count_says_why(by: Any, more: dict[str, Any], status: str) -> None:
    reply = answered(vote(requested(), by, **more))
    assert reply.status == status
    assert reply.detail


def test_self_approval_is_refused_even_with_every_role() -> None:
    reply = answered(vote(requested(), voter(EMMA, "payments", "admin", "operator", "delegator")))
    assert "themselves" in reply.detail


def test_the_same_subject_of_another_issuer_is_another_person() -> None:
    stranger = EMMA.model_copy(update={"iss": "https://other.example"})
    assert isinstance(vote(requested(), voter(stranger)), Draft)


@pytest.mark.parametrize("late", [timedelta(0), timedelta(days=1)])
def test_after_the_deadline_nothing_is_approved(late: timedelta) -> None:
    reply = answered(decide_vote(requested(), approve(), voter(), moment(now=DEADLINE + late), LIMITS))
    assert (reply.status, reply.decision) == ("decided", "expired")


def test_a_quorum_needs_distinct_people() -> None:
    first = drafted(vote(requested(quorum=2)))
    assert first.event is ActionApprovalRequested
    assert (first.data.round, first.expirytime) == (2, DEADLINE)
    state = appended(requested(quorum=2), first)
    assert vote_reply(state).votes == 1

    again = answered(vote(state, voter(key="key-00002")))
    assert again.status == "forbidden"

    second = drafted(vote(state, voter(MIA, key="key-00003")))
    assert second.event is ActionApproved
    assert [v.sub for v in second.data.votes] == ["dana", "mia"]


def test_two_people_racing_for_a_round_never_share_an_event_id() -> None:
    first, other = drafted(vote(requested(quorum=2))), drafted(vote(requested(quorum=2), voter(MIA)))
    assert first.discriminator != other.discriminator


def test_the_same_key_again_gets_the_same_answer() -> None:
    draft = drafted(vote(requested()))
    state = appended(requested(), draft)
    reply = answered(vote(state))
    assert (reply.status, reply.votes, reply.quorum) == ("ok", 1, 1)


def test_a_counted_vote_of_a_quorum_is_repeated_without_counting_twice() -> None:
    draft = drafted(vote(requested(quorum=2)))
    reply = answered(vote(appended(requested(quorum=2), draft)))
    assert (reply.status, reply.votes) == ("ok", 1)


def test_the_loser_of_a_race_learns_who_decided_and_when() -> None:
    draft = drafted(vote(requested()))
    reply = answered(vote(appended(requested(), draft), voter(MIA)))
    assert (reply.status, reply.decision, reply.decided_by, reply.decided_at) == ("decided", "approved", DANA, NOW)


def test_somebody_elses_key_is_not_mine() -> None:
    draft = drafted(vote(requested(), voter(key="shared-key")))
    reply = answered(vote(appended(requested(), draft), voter(MIA, key="shared-key")))
    assert reply.status == "decided"


def test_a_refused_action_is_decided() -> None:
    reply = answered(vote(grow(requested(), "action.refused")))
    assert (reply.status, reply.decision, reply.decided_by) == ("decided", "refused", DANA)


def test_what_is_not_asked_yet_may_be_asked_again_and_what_does_not_exist_may_not() -> None:
    assert _status(vote(evaluated())) == "unavailable"
    assert _status(vote(action_until("proposed"))) == "unavailable"
    assert _status(vote(action_until())) == "invalid"
    assert _status(vote(action_until(*APPROVED_PATH, "tokenized"))) == "decided"


def _status(reply: Draft | Reply) -> str:
    return answered(reply).status


def narrowed(state: Any, narrowing: dict[str, Any], by: Any = None) -> Draft | Reply:
    command = NarrowCommand(**dict(approve(narrowing=narrowing)))
    return decide_vote(state, command, by or voter(), moment(), LIMITS)


def test_a_narrowing_that_fits_is_carried_to_the_tokens_service() -> None:
    narrowing = {"properties": {"amount": {"maximum": 100}}}
    draft = drafted(narrowed(requested(), narrowing))
    assert draft.data.narrowing == narrowing


@pytest.mark.parametrize(
    "narrowing",
    [
        {"properties": {"amount": {"maximum": 50}}},
        {"type": "nonsense"},
        {"$ref": "https://evil.example/schema.json"},
        {"required": ["memo"]},
    ],
    ids=["arguments do not fit", "no schema", "foreign reference", "missing argument"],
)
def test_a_narrowing_that_cannot_hold_is_invalid(narrowing: dict[str, Any]) -> None:
    reply = answered(narrowed(requested(), narrowing))
    assert (reply.status, reply.field) == ("invalid", "narrowing")
    assert "98.7" not in reply.detail


def test_only_the_last_vote_narrows_because_earlier_ones_carry_no_schema() -> None:
    reply = answered(narrowed(requested(quorum=2), {"properties": {"amount": {"maximum": 100}}}))
    assert reply.field == "narrowing"

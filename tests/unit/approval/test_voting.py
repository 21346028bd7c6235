"""Who may vote on what, when a vote counts, and when votes are enough."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from remit.commands import NarrowCommand, Reply
from remit.evaluation import CompiledAction, CompiledBundle
from remit.events import ActionApprovalRequested, ActionApproved, ActionRefused
from remit.reasons import Reason
from remit.registry_files import load_registry
from remit.runtime.ledger import Draft
from services.approval.entitlement import Ties
from services.approval.store import Denied
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

OWNER = "owner@acme.example"


def vote(state: Any, by: Any = None, **more: Any) -> Draft | Reply:
    """Vote on the card in front of the person; `moment_` holds what else is known then."""
    known = more.pop("moment_", {"ties": Ties(agent_owner=OWNER)})
    request = state.last
    version = request.data.round if isinstance(request, ActionApprovalRequested) else 1
    return decide_vote(state, approve(**{"version": version, **more}), by or voter(), moment(**known), LIMITS)


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


STRANGER = EMMA.model_copy(update={"iss": "https://other.example"})


def test_the_same_subject_of_another_issuer_is_another_person() -> None:
    assert isinstance(vote(requested(), voter(STRANGER)), Draft)


def test_a_second_account_with_the_address_of_the_human_is_the_human() -> None:
    ties = {"ties": Ties(human_email="emma@acme.example")}
    reply = answered(vote(requested(), voter(STRANGER, email="Emma@Acme.example "), moment_=ties))
    assert (reply.status, "themselves" in reply.detail) == ("forbidden", True)
    assert isinstance(vote(requested(), voter(STRANGER, email="other@acme.example"), moment_=ties), Draft)
    assert isinstance(vote(requested(), voter(email="dana@acme.example")), Draft)


def test_the_votes_on_one_action_come_from_one_issuer() -> None:
    state = appended(requested(quorum=2), drafted(vote(requested(quorum=2))))
    reply = answered(vote(state, voter(STRANGER)))
    assert (reply.status, DANA.iss in reply.detail) == ("forbidden", True)


@pytest.mark.parametrize("risk", ["T3", "T4"])
@pytest.mark.parametrize("missing", ["version", "shown_digest"])
def test_at_t3_and_t4_an_approval_names_its_card(risk: str, missing: str) -> None:
    reply = answered(vote(requested(risk=risk), **{missing: None}))
    assert (reply.status, reply.field) == ("invalid", missing)
    assert isinstance(vote(requested(risk="T2"), **{missing: None}), Draft)


def test_at_t4_the_owner_of_the_agent_does_not_approve() -> None:
    reply = answered(vote(requested(risk="T4"), voter(email="OWNER@acme.example")))
    assert (reply.status, "owner" in reply.detail) == ("forbidden", True)
    assert isinstance(vote(requested(risk="T3"), voter(email=OWNER)), Draft)
    assert isinstance(vote(requested(risk="T4"), voter(email="dana@acme.example")), Draft)
    assert answered(vote(requested(risk="T4"), moment_={})).status == "stale"


def test_what_was_denied_meanwhile_is_not_approved() -> None:
    denied = {"denied": Denied("wrong list", MIA)}
    draft = drafted(vote(requested(), moment_=denied))
    assert draft.event is ActionRefused
    assert (draft.data.reason, draft.data.by, draft.data.detail) == (
        Reason.BLOCKED,
        MIA,
        "its like was denied: wrong list",
    )
    assert answered(vote(requested(), voter(EMMA), moment_=denied)).status == "forbidden"


@pytest.mark.parametrize(
    "other",
    [
        {"args_digest": DIGEST},
        {"narrowing": {"properties": {}}},
        {"shown_digest": "sha-256:" + "A" * 43},
        {"version": 2},
    ],
    ids=["arguments", "narrowing", "card", "round"],
)
@pytest.mark.parametrize("quorum", [1, 2])
def test_a_key_with_another_body_is_another_command(quorum: int, other: dict[str, Any]) -> None:
    state = appended(requested(quorum=quorum), drafted(vote(requested(quorum=quorum))))
    assert answered(vote(state, version=1)).status == "ok"
    reply = answered(vote(state, **{"version": 1, **other}))
    assert (reply.status, reply.field) == ("invalid", "idempotency_key")


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
    reply = answered(vote(appended(requested(quorum=2), draft), version=1))
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


REGISTRY = Path(__file__).resolve().parents[3] / "infra" / "demo" / "registry"


def send_money() -> CompiledAction:
    values = {"BOOKKEEPER_PUBLIC_KEY": "U" + "A" * 55, "BANK_URL": "http://127.0.0.1:9", "BANK_HOST": "127.0.0.1:9"}
    found = CompiledBundle.compile(load_registry(REGISTRY, values), version=1).action("bank", "send_money")
    assert found is not None
    return found


def narrowed(state: Any, narrowing: dict[str, Any], by: Any = None) -> Draft | Reply:
    command = NarrowCommand(**dict(approve(narrowing=narrowing)))
    return decide_vote(state, command, by or voter(), moment(action=send_money()), LIMITS)


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


@pytest.mark.parametrize(
    ("narrowing", "field"),
    [
        ({"properties": {"amount": {"maxium": 100}}}, "narrowing.properties.amount.maxium"),
        ({"propertes": {"amount": {"maximum": 100}}}, "narrowing.propertes"),
        ({"amount": {"maximum": 100}}, "narrowing.amount"),
        ({"properties": {"amuont": {"maximum": 100}}}, "narrowing.properties.amuont"),
    ],
)
def test_a_misspelt_narrowing_is_no_approval_as_asked(narrowing: dict[str, Any], field: str) -> None:
    reply = answered(narrowed(requested(), narrowing))
    assert (reply.status, reply.field) == ("invalid", field)


def test_a_narrowing_of_what_is_not_registered_any_more_is_stale() -> None:
    command = NarrowCommand(**dict(approve(narrowing={"properties": {"amount": {"maximum": 100}}})))
    assert answered(decide_vote(requested(), command, voter(), moment(), LIMITS)).status == "stale"


def test_only_the_last_vote_narrows_because_earlier_ones_carry_no_schema() -> None:
    reply = answered(narrowed(requested(quorum=2), {"properties": {"amount": {"maximum": 100}}}))
    assert reply.field == "narrowing"

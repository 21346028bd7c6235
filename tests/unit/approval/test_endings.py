"""Denials, deadlines, withdrawals and revocations: every way an action ends without an effect."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from remit.events import ActionRefused, ActionRevoked
from remit.reasons import Reason, Stage, Verdict
from services.approval.decide import decide_expiry, decide_revocation, decide_withdrawal
from services.approval.voting import decide_denial
from tests.support.factories import APPROVED_PATH, DANA, EMMA, EXECUTED_PATH, NOW, action_until, grow
from tests.unit.approval.people import DEADLINE, MIA, answered, appended, deny, drafted, evaluated, requested, voter


@pytest.mark.parametrize("by", [voter(), voter(EMMA, "delegator")], ids=["approver", "the human it is for"])
def test_an_approver_or_the_human_may_deny(by: Any) -> None:
    draft = drafted(decide_denial(requested(), deny(reason="wrong recipient"), by))
    assert draft.event is ActionRefused
    assert (draft.data.stage, draft.data.reason, draft.data.by) == (Stage.APPROVAL, Reason.DENIED, by.person.human)
    assert draft.data.detail == "wrong recipient"


def test_nobody_else_may_deny() -> None:
    reply = answered(decide_denial(requested(), deny(), voter(MIA, "security", "admin")))
    assert (reply.status, "payments" in reply.detail) == ("forbidden", True)


def test_a_repeated_denial_is_the_same_denial() -> None:
    draft = drafted(decide_denial(requested(), deny(), voter()))
    state = appended(requested(), draft)
    again = answered(decide_denial(state, deny(), voter()))
    other = answered(decide_denial(state, deny(), voter(MIA)))
    assert (again.status, other.status, other.decided_by) == ("ok", "decided", DANA)


def test_a_key_with_another_reason_is_another_command() -> None:
    state = appended(requested(), drafted(decide_denial(requested(), deny(reason="wrong month"), voter())))
    assert answered(decide_denial(state, deny(reason="wrong month"), voter())).status == "ok"
    denial = answered(decide_denial(state, deny(reason="wrong list"), voter()))
    taken = appended(requested(), drafted(decide_revocation(requested(), by=EMMA, cause="stop", discriminator="d")))
    revocation = answered(decide_revocation(taken, by=EMMA, cause="other", discriminator="d"))
    assert {(r.status, r.field) for r in (denial, revocation)} == {("invalid", "idempotency_key")}


def test_an_approval_expires_at_its_deadline_and_not_before() -> None:
    assert decide_expiry(requested(), DEADLINE - timedelta(milliseconds=1)) is None
    draft = drafted(decide_expiry(requested(), DEADLINE))
    assert (draft.data.reason, draft.data.by) == (Reason.EXPIRED, None)


def test_a_request_without_a_deadline_counts_as_expired() -> None:
    assert decide_expiry(grow(evaluated(), "action.approval_requested"), NOW) is not None


def test_a_noted_but_never_asked_approval_expires_too() -> None:
    assert decide_expiry(evaluated(), NOW) is not None
    assert decide_expiry(evaluated(Verdict.ALLOW), NOW) is None


@pytest.mark.parametrize("path", [APPROVED_PATH, EXECUTED_PATH], ids=["approved", "executed"])
def test_what_was_decided_does_not_expire(path: tuple[str, ...]) -> None:
    assert decide_expiry(action_until(*path), DEADLINE + timedelta(days=1)) is None


def test_a_revoked_remit_withdraws_what_waits_and_nothing_else() -> None:
    draft = drafted(decide_withdrawal(requested(), by=EMMA, cause="changed my mind"))
    assert (draft.data.reason, draft.data.by, draft.data.detail) == (Reason.REVOKED, EMMA, "changed my mind")
    assert decide_withdrawal(action_until(*APPROVED_PATH), by=EMMA, cause="changed my mind") is None


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 6])
def test_an_action_can_be_revoked_in_every_state_before_its_end(length: int) -> None:
    state = action_until(*EXECUTED_PATH[:length])
    draft = drafted(decide_revocation(state, by=EMMA, cause="stop", discriminator="d"))
    assert draft.event is ActionRevoked
    assert appended(state, draft).is_terminal


def test_what_has_ended_is_decided() -> None:
    done = answered(decide_revocation(action_until(*EXECUTED_PATH), by=EMMA, cause="stop", discriminator="d"))
    denied = answered(decide_revocation(evaluated(Verdict.DENY), by=EMMA, cause="stop", discriminator="d"))
    assert (done.status, denied.status, denied.detail) == ("decided", "decided", "policy decided this action")


def test_a_repeated_revocation_is_the_same_revocation() -> None:
    draft = drafted(decide_revocation(requested(), by=EMMA, cause="stop", discriminator="d"))
    reply = answered(decide_revocation(appended(requested(), draft), by=EMMA, cause="stop", discriminator="d"))
    assert reply.status == "ok"

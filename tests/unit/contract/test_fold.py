"""The fold: legal order only, junk counts but never folds, nothing follows the receipt."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from remit.events import ActionApproved, ActionExecuted, ActionProposed
from remit.fold import ActionState, RemitState, fold_remit, is_terminal, junk, may_follow, step
from remit.reasons import Outcome, Reason, Stage, Verdict
from tests.support import factories
from tests.support.factories import (
    APPROVED_PATH,
    EXECUTED_PATH,
    Place,
    action_until,
    empty,
    grow,
    record,
)

KINDS = [kind for kind in factories.KINDS if kind.startswith("action.")]
DENIED = factories.EVALUATED.model_copy(
    update={"decision": factories.decision(Verdict.DENY, Reason.NO_GRANT), "approvers": []}
)
ALLOWED = factories.EVALUATED.model_copy(
    update={"decision": factories.decision(Verdict.ALLOW, Reason.POLICY_PERMITS), "approvers": []}
)
BY_POLICY = factories.APPROVED.model_copy(update={"by": "policy", "votes": []})

PATHS: dict[tuple[str, ...], set[str]] = {
    (): {"proposed"},
    ("proposed",): {"evaluated", "revoked"},
    ("proposed", "evaluated"): {"approval_requested", "refused", "revoked"},
    APPROVED_PATH[:3]: {"approved", "refused", "revoked"},
    APPROVED_PATH: {"tokenized", "revoked"},
    EXECUTED_PATH[:5]: {"started", "revoked"},
    EXECUTED_PATH[:6]: {"executed", "revoked"},
    EXECUTED_PATH: {"audited"},
    (*EXECUTED_PATH, "audited"): set(),
}


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path[-1] if path else "nothing")
@pytest.mark.parametrize("kind", KINDS)
def test_only_the_designed_successors_fold(path: tuple[str, ...], kind: str) -> None:
    state = action_until(*path)
    event = record(kind).event
    assert may_follow(state.last, event) == (kind.removeprefix("action.") in PATHS[path])  # type: ignore[arg-type]  # an action event


@pytest.mark.parametrize(
    ("stage", "path", "legal"),
    [
        (Stage.APPROVAL, APPROVED_PATH[:3], True),
        (Stage.APPROVAL, APPROVED_PATH, False),
        (Stage.TOKENS, APPROVED_PATH, True),
        (Stage.TOKENS, EXECUTED_PATH[:5], True),
        (Stage.TOKENS, EXECUTED_PATH[:6], False),
        (Stage.EXECUTOR, APPROVED_PATH, False),
        (Stage.EXECUTOR, EXECUTED_PATH[:5], True),
        (Stage.EXECUTOR, EXECUTED_PATH[:6], True),
        (Stage.EXECUTOR, EXECUTED_PATH, False),
    ],
)
def test_each_service_refuses_only_at_its_own_stage(stage: Stage, path: tuple[str, ...], legal: bool) -> None:
    refusal = record("action.refused", factories.REFUSED.model_copy(update={"stage": stage})).event
    assert may_follow(action_until(*path).last, refusal) == legal  # type: ignore[arg-type]  # an action event


def test_refusal_signed_for_another_stage_does_not_fold() -> None:
    data = factories.REFUSED.model_copy(update={"stage": Stage.TOKENS})
    event = record("action.refused", data, writer="approval").event
    assert not may_follow(action_until(*APPROVED_PATH).last, event)  # type: ignore[arg-type]  # an action event


def test_policy_may_approve_only_what_it_allowed() -> None:
    asked, allowed = action_until("proposed", "evaluated"), grow(action_until("proposed"), "action.evaluated", ALLOWED)
    approved = record("action.approved", BY_POLICY).event
    assert not may_follow(asked.last, approved)  # type: ignore[arg-type]  # an action event
    assert may_follow(allowed.last, approved)  # type: ignore[arg-type]  # an action event


def test_denial_is_terminal_and_only_the_receipt_follows() -> None:
    state = grow(action_until("proposed"), "action.evaluated", DENIED)
    assert state.is_terminal
    legal = {kind for kind in KINDS if may_follow(state.last, record(kind).event)}  # type: ignore[arg-type]  # action events
    assert legal == {"action.audited"}


def test_tokens_are_issued_at_most_three_times() -> None:
    state = action_until(*APPROVED_PATH)
    for attempt in (1, 2, 3):
        data = factories.TOKENIZED.model_copy(update={"attempt": attempt, "jti": f"tok_{attempt}"})
        state = grow(state, "action.tokenized", data, discriminator=str(attempt))
    fourth = record("action.tokenized", factories.TOKENIZED.model_copy(update={"attempt": 4})).event
    assert not may_follow(state.last, fourth)  # type: ignore[arg-type]  # an action event


def test_started_must_name_the_last_token() -> None:
    other = factories.STARTED.model_copy(update={"jti": "tok_other"})
    assert not may_follow(action_until(*EXECUTED_PATH[:5]).last, record("action.started", other).event)  # type: ignore[arg-type]


def test_unknown_outcome_is_resolved_once_by_the_same_attempt() -> None:
    unknown = factories.EXECUTED.model_copy(update={"outcome": Outcome.UNKNOWN, "error": "timeout"})
    state = grow(action_until(*EXECUTED_PATH[:6]), "action.executed", unknown)
    foreign = record("action.executed", factories.EXECUTED.model_copy(update={"attempt": 2})).event
    assert not may_follow(state.last, foreign)  # type: ignore[arg-type]  # an action event
    resolved = grow(state, "action.executed", discriminator="resolved")
    assert not may_follow(resolved.last, record("action.executed").event)  # type: ignore[arg-type]  # an action event


def test_junk_counts_as_last_sequence_but_does_not_block() -> None:
    state = junk(action_until("proposed"), 9)
    assert (state.last_seq, len(state.chain)) == (9, 1)
    assert grow(state, "action.evaluated", seq=10).last_seq == 10


@pytest.mark.parametrize(
    ("place", "finding"),
    [(Place(n=3), "order"), (Place(n=2, prev=factories.DIGEST), "chain"), (Place(n=2), "chain")],
)
def test_event_out_of_place_is_not_folded(place: Place, finding: str) -> None:
    state = action_until("proposed")
    grown, found = step(state, record("action.evaluated", place=place), 2)
    assert (found, grown.chain, grown.last_seq) == (finding, state.chain, 2)


def test_replayed_event_is_not_folded_again() -> None:
    state = action_until("proposed", "evaluated")
    assert step(state, state.chain[0], 7)[1] == "duplicate"


def test_illegal_successor_is_not_folded() -> None:
    state = action_until("proposed")
    place = Place(n=2, prev=state.head)
    assert step(state, record("action.approved", place=place), 2)[1] == "illegal"


def test_nothing_folds_after_the_receipt() -> None:
    state = action_until(*EXECUTED_PATH, "audited")
    assert step(state, record("action.revoked", place=Place(n=9, prev=state.head)), 99)[1] == "closed"


def test_state_finds_its_events() -> None:
    state = action_until(*APPROVED_PATH)
    assert isinstance(state.must(ActionApproved), ActionApproved)
    assert state.find(ActionExecuted) is None
    with pytest.raises(LookupError, match="executed"):
        state.must(ActionExecuted)
    assert empty().head is None
    assert not is_terminal(None)
    assert isinstance(state.chain[0].event, ActionProposed)


def _remit(state: RemitState, kind: str) -> RemitState:
    return fold_remit(state, record(f"remit.{kind}", place=Place(n=state.n + 1, prev=state.head)), state.last_seq + 1)


@pytest.mark.parametrize(
    ("kinds", "status"),
    [
        ((), "none"),
        (("granted",), "active"),
        (("granted", "granted"), "active"),
        (("granted", "amended"), "active"),
        (("granted", "exhausted"), "exhausted"),
        (("granted", "exhausted", "revoked"), "revoked"),
        (("granted", "revoked", "granted"), "revoked"),
        (("revoked",), "none"),
        (("amended",), "none"),
        (("granted", "revoked", "exhausted"), "revoked"),
    ],
)
def test_remit_folds_to_its_status(kinds: tuple[str, ...], status: str) -> None:
    state = RemitState(remit_id=factories.REMIT.remit_id)
    for kind in kinds:
        state = _remit(state, kind)
    assert state.status == status
    assert (state.document is not None) == (status != "none")


def test_amended_remit_replaces_the_document() -> None:
    state = _remit(RemitState(remit_id=factories.REMIT.remit_id), "granted")
    narrower = factories.REMIT.model_copy(update={"expires_at": factories.NOW + timedelta(minutes=1)})
    data = factories.EXAMPLES["remit.amended"].model_copy(update={"remit": narrower})
    state = fold_remit(state, record("remit.amended", data, place=Place(n=2, prev=state.head)), 2)
    assert state.document == narrower


def test_remit_event_out_of_place_only_counts() -> None:
    state = _remit(RemitState(remit_id=factories.REMIT.remit_id), "granted")
    after = fold_remit(state, record("remit.revoked", place=Place(n=5, prev=state.head)), 8)
    assert after == replace(state, last_seq=8)


def test_terminal_states_are_exactly_the_designed_ones() -> None:
    assert [len(action_until(*path).chain) for path in PATHS if action_until(*path).is_terminal] == [7, 8]
    assert isinstance(action_until(), ActionState)

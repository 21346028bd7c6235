"""The decisions of the screen, without a screen: states, changes, sentences, custody, searches, words."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from dashboard.model import search, today, words
from dashboard.model.card import CardState, Change, changes, exact_call, may_approve, may_deny, sentence, state_of
from dashboard.model.custody import boxes, checks
from dashboard.model.replies import answer
from dashboard.model.rows import ActionRow, TodayRow, Vote
from dashboard.model.viewer import viewer_of
from remit.canonical import digest
from remit.clock import now
from remit.commands import Reply
from remit.remits import Human
from tests.unit.dashboard.support import DANA, EMMA, ISSUER, a_done_action, a_remit, a_viewer, an_action, at

DECIDED: dict[str, Any] = {"approver": DANA, "decided_at": at(-5)}


COLLECTED = now()
"""When the rows below were made; the tests run minutes later when the whole suite does."""


@pytest.mark.parametrize(
    ("row", "state"),
    [
        (an_action(), CardState.WAITING),
        (an_action(approvers=("security",)), CardState.NOT_YOURS),
        (an_action(human=DANA), CardState.OWN_TASK),
        (an_action(votes=(Vote(human=DANA, at=None),), quorum=2), CardState.VOTED),
        (an_action(votes=(Vote(human=EMMA, at=None),), quorum=2), CardState.WAITING),
        (an_action(expires_at=at(-1)), CardState.EXPIRED),
        (an_action(args={"amount": 1}, args_digest=digest({"amount": 2})), CardState.UNINSPECTABLE),
        (an_action(args={"pin": "redacted (4 chars)"}, args_digest=digest({"pin": "1234"})), CardState.WAITING),
        (an_action(approval_status="denied", terminal="refused", **DECIDED), CardState.DENIED),
        (an_action(approval_status="expired", terminal="refused", **DECIDED), CardState.EXPIRED),
        (an_action(approval_status="withdrawn", terminal="refused", **DECIDED), CardState.WITHDRAWN),
        (an_action(approval_status="approved", **DECIDED), CardState.APPROVED),
        (an_action(approval_status="approved", tokenized_at=at(-1), **DECIDED), CardState.EXECUTING),
        (an_action(approval_status="approved", terminal="refused", **DECIDED), CardState.REFUSED),
        (a_done_action(), CardState.SUCCEEDED),
        (a_done_action(outcome="failed"), CardState.FAILED),
        (a_done_action(outcome="unknown"), CardState.UNKNOWN),
        (an_action(verdict="deny", approval_status=None, terminal="evaluated"), CardState.REFUSED),
        (an_action(verdict="allow", approval_status=None), CardState.NOT_ASKED),
    ],
)
def test_a_card_is_in_exactly_one_state(row: ActionRow, state: CardState) -> None:
    viewer = a_viewer()
    found = state_of(row, viewer, COLLECTED)
    assert found is state
    assert may_approve(found) is (state is CardState.WAITING)


def test_the_person_a_task_is_done_for_may_deny_and_never_approve() -> None:
    row, viewer = an_action(human=DANA), a_viewer(roles=frozenset[str]())
    state = state_of(row, viewer, now())
    assert may_deny(state, row, viewer)
    assert not may_approve(state)


def test_strangers_may_not_deny() -> None:
    row, viewer = an_action(), a_viewer(roles=frozenset({"security"}))
    assert not may_deny(state_of(row, viewer, now()), row, viewer)


def test_the_exact_call_is_the_canonical_form() -> None:
    row = an_action(args={"b": 1.0, "a": "ü"})
    assert exact_call(row).text == '{"a":"ü","b":1}'
    assert exact_call(row).fidelity == "whole"


def test_only_what_differs_is_a_change() -> None:
    old, new = {"to": "a", "n": 1, "deep": {"x": True}}, {"to": "a", "n": "1", "deep": {"x": False}, "cc": "b"}
    assert changes(old, new) == (
        Change("n", "1", '"1"'),
        Change("deep.x", "true", "false"),
        Change("cc", None, '"b"'),
    )


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("Send {amount} to {recipient}", "Send 98.7 to DE89370400440532013000"),
        (None, "Call bank.send_money on DE89370400440532013000"),
        ("Send {missing}", "Call bank.send_money on DE89370400440532013000"),
        ("Look at [this](http://evil.example) {amount}", "Call bank.send_money on DE89370400440532013000"),
        ("See www.evil.example for {amount}", "Call bank.send_money on DE89370400440532013000"),
    ],
)
def test_the_sentence_is_ours_or_the_plain_call(template: str | None, text: str) -> None:
    parts = sentence(an_action(), template)
    assert "".join(part.text for part in parts) == text
    assert all(part.is_value for part in parts if part.text not in {"Send ", " to ", "Call ", " on "})


def test_the_chain_of_a_finished_action_is_whole() -> None:
    found = boxes(a_done_action(), a_remit())
    assert [box.title for box in found] == [
        "Human", "Agent", "Proposed", "Policy", "Approved", "Token", "Executed", "Result",
    ]  # fmt: skip
    assert {box.state for box in found} == {"done"}
    assert [check.answer for check in checks(a_done_action())] == ["yes"] * 4


def test_what_was_not_recorded_is_never_a_tick() -> None:
    assert [check.answer for check in checks(an_action())] == ["not checked"] * 4
    assert boxes(an_action(), None)[0].state == "missing"


@pytest.mark.parametrize(
    ("row", "number"),
    [
        (a_done_action(executed_digest=digest("other")), 0),
        (a_done_action(grant_no=None), 1),
        (a_done_action(token_expires_at=at(-100)), 2),
        (a_done_action(effect_ok=False), 3),
    ],
)
def test_each_mismatch_has_its_own_check(row: ActionRow, number: int) -> None:
    assert [check.answer for check in checks(row)].index("NO") == number


@pytest.mark.parametrize(
    ("typed", "kind", "is_digest"),
    [
        ("", "nothing", False),
        ("  " + "a" * 32 + " ", "action", False),
        ("rem_" + "0" * 32, "remit", False),
        ("tok_ab12", "jti", False),
        ("spiffe://acme.example/agent/x", "agent", False),
        ("sha-256:ui30kDos", "digest", True),
        ("ui30kDosFOht", "text", True),
        ("bank.send_money", "text", False),
    ],
)
def test_one_box_finds_by_what_was_typed(typed: str, kind: str, *, is_digest: bool) -> None:
    found = search.parse(typed)
    assert (found.kind, found.also_digest) == (kind, is_digest)


def test_wildcards_are_searched_as_themselves() -> None:
    assert search.like("a_b%c\\d") == "a\\_b\\%c\\\\d"


def test_today_counts_in_words() -> None:
    row = TodayRow(
        n=2744, agents=31, humans=88, by_rule=1921, asked=604, blocked=219, matched=2000, differs=11, unknown=0,
        wait_p50_ms=42_000,
    )  # fmt: skip
    assert today.sentence(row) == (
        "2,744 actions by 31 agents for 88 people. 70 % ran by rule, 22 % asked a person, 8 % were blocked. "
        "99 % of results matched what was approved; 11 differ. Median wait for a person 42 s."
    )


@pytest.mark.parametrize(
    ("reply", "title", "tone"),
    [
        (Reply(status="ok"), "Done", "good"),
        (Reply(status="ok", votes=1, quorum=2), "Vote 1 of 2 counted: another person must approve too", "good"),
        (Reply(status="unavailable", detail="x"), "No answer", "bad"),
        (Reply(status="forbidden"), "Not allowed for you", "bad"),
    ],
)
def test_answers_are_said_in_words(reply: Reply, title: str, tone: str) -> None:
    found = answer(reply)
    assert (found.title, found.tone) == (title, tone)


def test_a_lost_race_names_the_winner() -> None:
    reply = Reply(status="decided", decision="approved", decided_by=Human(iss=ISSUER, sub="dana"))
    assert answer(reply).detail == "approved by dana."


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "—"),
        (0.25, "250 ms"),
        (42, "42 s"),
        (192, "3:12 min"),
        (timedelta(hours=5, minutes=4), "5 h 04"),
        (timedelta(days=12), "12 d"),
    ],
)
def test_durations_read_well(value: timedelta | float | None, text: str) -> None:
    assert words.duration(value) == text


@pytest.mark.parametrize("roles", [None, "payments", {"payments": True}, [1, None]])
def test_a_roles_claim_of_another_shape_grants_nothing(roles: object) -> None:
    found = viewer_of({"iss": ISSUER, "sub": "x", "exp": 1, "roles": roles}, "roles")
    assert found is not None
    assert found.roles == frozenset()


@pytest.mark.parametrize("claims", [{}, {"iss": 1, "sub": "x", "exp": 1}, {"iss": "i", "sub": "x", "exp": "soon"}])
def test_claims_that_name_nobody_are_nobody(claims: dict[str, object]) -> None:
    assert viewer_of(claims, "roles") is None

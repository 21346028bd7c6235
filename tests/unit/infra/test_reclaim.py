"""What a ledger implies about claims, open questions, denials and remits."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from infra.postgres import reclaim_rules as rules
from infra.postgres.reclaim_rules import Event

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HUMAN = {"iss": "https://idp", "sub": "emma"}
COMMON: dict[str, Any] = {
    "remit_id": "rmt_1",
    "principal": {"human": HUMAN, "agent": {"id": "agent", "session": "s1"}},
    "action": {"name": "bank.pay", "args_digest": "sha-256:a", "resource_id": "DE1"},
}


def event(kind: str, seq: int, **data: Any) -> Event:
    deadline = data.pop("deadline", None)
    return Event(type=kind, seq=seq, at=NOW + timedelta(seconds=seq), data={**COMMON, **data}, deadline=deadline)


EVALUATED = event("evaluated", 2, grant_no=3)
STARTED = event("started", 5, claim_id="clm_1", attempt=2, jti="jti_1", executor="executor-1")


def test_nothing_announced_implies_no_claim() -> None:
    assert rules.execution("a", [EVALUATED, event("refused", 3, reason="denied")]) is None


def test_announced_call_without_outcome_is_in_doubt_and_never_repeated() -> None:
    row = rules.execution("a", [EVALUATED, STARTED])
    assert row is not None
    assert (row.state, row.claim_id, row.jti, row.attempt, row.grant_no) == ("in_flight", "clm_1", "jti_1", 2, 3)
    assert row.request["repeated"] is True
    assert (row.claimed_at, row.finished_at, row.draft) == (STARTED.at, None, None)


@pytest.mark.parametrize("outcome", ["succeeded", "failed", "unknown"])
def test_outcome_and_claim_are_those_of_the_last_outcome(outcome: str) -> None:
    said = event("executed", 6, outcome="unknown", claim_id="clm_1")
    last = event("executed", 7, outcome=outcome, claim_id="clm_1.2")
    row = rules.execution("a", [EVALUATED, STARTED, said, last, event("audited", 8)])
    assert row is not None
    assert (row.state, row.claim_id, row.draft) == (outcome, "clm_1.2", {"data": last.data})


@pytest.mark.parametrize(
    ("end", "claim_id", "reason"),
    [(event("refused", 6, reason="stopped"), "clm_1", "stopped"), (event("revoked", 6, cause="x"), None, "revoked")],
)
def test_refusal_keeps_its_claim_and_revocation_has_none(end: Event, claim_id: str | None, reason: str) -> None:
    row = rules.execution("a", [EVALUATED, STARTED, end])
    assert row is not None
    assert (row.state, row.claim_id, row.reason) == ("refused", claim_id, reason)


def test_question_is_open_only_while_it_is_the_last_word() -> None:
    asked = event("approval_requested", 3, round=2, quorum=2, approvers=["payments"], deadline=NOW)
    found = rules.pending("a", [EVALUATED, asked])
    assert found is not None
    assert (found.round, found.quorum, found.requested_seq, found.expires_at) == (2, 2, 3, NOW)
    assert rules.pending("a", [EVALUATED, asked, event("approved", 4)]) is None


def test_denial_of_a_person_blocks_its_like_and_no_other_refusal_does() -> None:
    found = rules.block([EVALUATED, event("refused", 3, reason="denied", by=HUMAN, detail="no")])
    assert found is not None
    assert (found.block_class, found.session, found.by) == ("bank.pay|DE1", "s1", ("https://idp", "emma"))
    assert rules.block([EVALUATED, event("refused", 3, reason="expired")]) is None
    assert rules.block([EVALUATED, event("refused", 3, reason="blocked", by=HUMAN)]) is None


def test_remit_is_what_its_newest_document_says_and_ends_by_its_first_end() -> None:
    document = {"max_calls": 9, "grants": [{}, {"max_calls": 2}], "human": HUMAN, "agent_id": "agent"}
    granted = event("granted", 1, remit=document, remit_digest="d1")
    amended = event("amended", 2, remit=document | {"max_calls": 8}, remit_digest="d2")
    revoked = event("revoked", 3, by=HUMAN, cause="done")
    found = rules.remit("rmt_1", [granted, amended, revoked])
    assert found is not None
    assert found.budgets == [(0, 8), (1, 8), (2, 2)]
    assert found.stops == [("human", "https://idp|emma"), ("agent", "agent"), ("remit", "rmt_1")]
    assert (found.digest, found.granted_seq, found.ended) == ("d2", 1, "revoked")
    assert found.revoked == ("done", "https://idp", "emma")
    assert rules.remit("rmt_1", [revoked]) is None

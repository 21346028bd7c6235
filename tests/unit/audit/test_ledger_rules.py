"""What a valid event may not contradict in its action: same call, real votes in time, a token that permits, one effect."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from remit.ledger_proof import Finding, Verifier
from remit.reasons import Reason, Verdict
from tests.support import factories as f
from tests.support.ledger_stream import StreamWriter, data_for, rows_of

OTHER_TOOL = f.TOOL.model_copy(update={"name": "mail"})


def findings(writer: StreamWriter) -> list[Finding]:
    verifier = Verifier("ACTIONS", f.TRUST, checkpoint_keys={})
    for row in rows_of(writer):
        verifier.add(row)
    return verifier.finish().findings


@pytest.mark.parametrize(
    ("kind", "changes", "word"),
    [
        ("proposed", {"proposal": '{"arguments":{"amount":1}}'}, "digest"),
        ("proposed", {"proposal": "no json"}, "digest"),
        ("evaluated", {"remit_id": "rem_" + "f" * 32}, "remit"),
        ("evaluated", {"txn": "0" * 32}, "another action"),
        ("approval_requested", {"principal": f.EVALUATED.principal.model_copy(update={"human": f.DANA})}, "human"),
        ("evaluated", {"principal": f.EVALUATED.principal.model_copy(update={"tool": OTHER_TOOL})}, "agent or tool"),
        ("approved", {"votes": []}, "quorum"),
        (
            "approved",
            {"votes": [f.VOTE, f.Vote(iss=f.EMMA.iss, sub=f.EMMA.sub, at=f.NOW)]},
            "the human the action is for",
        ),
        ("tokenized", {"reevaluation": f.decision(Verdict.ASK)}, "re-evaluation"),
        ("tokenized", {"action": f.EVALUATED.action.model_copy(update={"risk": "T1"})}, "another call"),
        ("started", {"attempt": 2}, "attempt"),
        ("executed", {"effect_matches_decision": False}, "contradicts"),
        ("executed", {"executed_digest": f.DIGEST, "effect_matches_decision": False}, "other arguments"),
    ],
)
def test_a_signed_event_that_contradicts_its_action_is_named(kind: str, changes: dict[str, Any], word: str) -> None:
    writer = StreamWriter()
    path = f.EXECUTED_PATH[: f.EXECUTED_PATH.index(kind)]
    state = writer.action("bad", *path)
    writer.grow(state, kind, "bad", data=data_for(kind, state.action_id, "bad", **changes))
    [finding, *_] = findings(writer)
    assert (finding.seq, finding.code) == (len(path) + 1, "lifecycle")
    assert word in finding.detail


def asked(quorums: tuple[int, int], *people: str) -> list[str]:
    """Return what is wrong with an approval: quorum of evaluation and of request, and who voted."""
    writer = StreamWriter()
    state = writer.action("ask", "proposed")
    for kind, changes in (
        ("evaluated", {"quorum": quorums[0]}),
        ("approval_requested", {"quorum": quorums[1]}),
        ("approved", {"votes": [f.Vote(iss=f.EMMA.iss, sub=name, at=f.NOW) for name in people]}),
    ):
        state = writer.grow(state, kind, "ask", data=data_for(kind, state.action_id, "ask", **changes))
    return [finding.detail for finding in findings(writer)]


def test_the_quorum_counts_distinct_people_and_is_never_lowered() -> None:
    assert asked((1, 2), "dana", "otto") == []
    assert asked((1, 2), "dana", "dana") == ["1 people approved, the quorum is 2"]
    assert asked((2, 1), "dana") == ["1 people approved, the quorum is 2"]
    assert asked((1, 2), "dana", "emma") == [
        "the human the action is for approved it",
        "1 people approved, the quorum is 2",
    ]


UNTIL = f.NOW + timedelta(minutes=15)


@pytest.mark.parametrize(
    ("until", "late_s", "codes"),
    [
        (UNTIL, -1, []),
        (UNTIL, 1, ["a token was minted on an approval that came too late"]),
        (UNTIL, 6, ["people approved after the deadline", "a token was minted on an approval that came too late"]),
        (None, -1, ["people approved what was asked without a deadline", "a token was minted on an approval that came too late"]),
    ],
)  # fmt: skip
def test_an_approval_is_held_against_its_deadline_by_the_broker_s_time(
    until: datetime | None, late_s: int, codes: list[str]
) -> None:
    writer = StreamWriter()
    state = writer.action("late", "proposed", "evaluated")
    state = writer.grow(state, "approval_requested", "late", expirytime=until)
    # What the event says about its own time is in good order.
    state = writer.grow(state, "approved", "late", time=f.NOW, at=UNTIL + timedelta(seconds=late_s))
    writer.grow(state, "tokenized", "late")
    assert [finding.detail for finding in findings(writer)] == codes


def test_a_start_after_the_token_expired_is_named() -> None:
    writer = StreamWriter()
    state = writer.action("late", *f.APPROVED_PATH, "tokenized")
    writer.grow(state, "started", "late", time=f.NOW.replace(hour=23))
    assert [(x.seq, x.code) for x in findings(writer)] == [(6, "lifecycle")]


def test_a_human_may_become_known_with_the_evaluation_only() -> None:
    writer = StreamWriter()
    state = writer.action("pay", "proposed", "evaluated")
    assert (state.chain[0].event.data.principal.human, f.EVALUATED.principal.human) == (None, f.EMMA)  # type: ignore[attr-defined]  # actions have data
    assert findings(writer) == []


def test_policy_approvals_need_no_votes() -> None:
    writer = StreamWriter()
    state = writer.action("rule", "proposed")
    allowed = data_for("evaluated", state.action_id, "rule", decision=f.decision(Verdict.ALLOW, Reason.POLICY_PERMITS))
    state = writer.grow(state, "evaluated", "rule", data=allowed)
    writer.grow(state, "approved", "rule", data=data_for("approved", state.action_id, "rule", by="policy", votes=[]))
    assert findings(writer) == []

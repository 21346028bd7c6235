"""One row per action, recomputed from its fold: every state a card or a report can show."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from remit import tables
from remit.canonical import canonical, digest
from remit.fold import ActionState
from remit.projection.action_columns import action_row, opening
from remit.projection.tracking import Tracked, first_effect, is_unresolved, touches_approval
from remit.reasons import Outcome, Reason, Stage, Verdict
from remit.remits import Human
from tests.support import factories as f
from tests.support.ledger_stream import StreamWriter, data_for

ALLOW = f.decision(Verdict.ALLOW, Reason.POLICY_PERMITS)
DENY = f.decision(Verdict.DENY, Reason.NO_GRANT)
VOTES = [f.VOTE]


def tracked(state: ActionState, **more: Any) -> Tracked:
    return Tracked(state=state, recorded_at=f.NOW, opening=opening(state.chain[0].event), **more)  # type: ignore[arg-type]  # the first event is `proposed`


def grown(*kinds: str | tuple[str, dict[str, Any]], **event: Any) -> ActionState:
    """Return the state after events; a tuple changes the example data of its event."""
    writer = StreamWriter()
    state = ActionState(f.ACTION_ID)
    for each in kinds:
        kind, changes = each if isinstance(each, tuple) else (each, {})
        data = data_for(kind, state.action_id, "pay", **changes)
        more: dict[str, Any] = event if kind == "approval_requested" else {}
        more = {"discriminator": str(len(state.chain)), **more}
        state = writer.grow(state, kind, "pay", data=data, **more)
    return state


def row(*kinds: str | tuple[str, dict[str, Any]], **event: Any) -> dict[str, Any]:
    return action_row(tracked(grown(*kinds, **event)))


def test_every_column_of_a_row_exists_in_the_table() -> None:
    full = row(*f.EXECUTED_PATH)
    assert full.keys() <= set(tables.actions_all.columns.keys())
    # What no event says: filled from the remit by the store, or measured by nobody yet.
    absent = set(tables.actions_all.columns.keys()) - full.keys()
    assert absent == {"task", "task_shape", "review_ms", "refused_stage", "refused_reason"}


def test_a_proposal_alone_is_a_row_without_decision() -> None:
    found = row("proposed")
    assert (found["tool"], found["action"], found["tier"], found["version"]) == ("bank", "send_money", 3, 1)
    assert (found["args"], found["args_digest"]) == (f.ARGUMENTS, f.PROPOSED.action.args_digest)
    assert "verdict" not in found
    assert (found["terminal"], found["latency_ms"], found["receipt_seq"]) == (None, {}, None)


@pytest.mark.parametrize("text", ["no json", "[]", "{}", '{"arguments":1}', '{"arguments":{},"rationale":1}'])
def test_a_proposal_that_is_none_shows_no_arguments(text: str) -> None:
    assert opening(f.record("action.proposed", f.PROPOSED.model_copy(update={"proposal": text})).event)["args"] == {}  # type: ignore[arg-type]  # it is `proposed`


def test_the_rationale_of_the_agent_is_kept_without_secrets() -> None:
    text = canonical(f.PROPOSAL | {"rationale": "key eyJhbGciOiJFUzI1NiJ9.e30.c2ln"}).decode()
    found = opening(f.record("action.proposed", f.PROPOSED.model_copy(update={"proposal": text})).event)  # type: ignore[arg-type]  # it is `proposed`
    assert found["rationale"] == "key redacted (29 chars)"


def test_a_marked_argument_is_hidden() -> None:
    assert opening(f.record("action.proposed").event, {"recipient"})["args"]["recipient"] == "redacted (22 chars)"  # type: ignore[arg-type]  # it is `proposed`


def proposal_row(resource_id: str | None, sensitive: Any, **arguments: Any) -> dict[str, Any]:
    """Return the opening of a proposal with other arguments, whose resource is what intake took it for."""
    action = f.PROPOSED.action.model_copy(update={"resource_id": resource_id})
    text = canonical(f.PROPOSAL | {"arguments": arguments}).decode()
    said = f.PROPOSED.model_copy(update={"proposal": text, "action": action})
    return opening(f.record("action.proposed", said).event, sensitive)  # type: ignore[arg-type]  # it is `proposed`


@pytest.mark.parametrize(
    ("resource_id", "sensitive", "arguments", "shown"),
    [
        ("UK12", (), {"to": "UK12"}, "UK12"),
        ("UK12", {"to"}, {"to": "UK12"}, "redacted (4 chars)"),
        ("UK12", None, {"to": "UK12"}, "redacted (4 chars)"),
        ("UK12", {"memo"}, {"to": "UK12", "memo": "x"}, "UK12"),
        ("7", (), {"to": 7}, "7"),
        ("7", {"to"}, {"to": 7}, "redacted (1 chars)"),
        (digest("x" * 999), (), {"to": "x" * 999}, digest("x" * 999)),
        (digest("x" * 999), {"to"}, {"to": "x" * 999}, "redacted (51 chars)"),
        (None, {"to"}, {"to": "UK12"}, None),
        ("password: hunter2", (), {"to": "password: hunter2"}, "redacted (17 chars)"),
    ],
)
def test_a_resource_shows_no_more_than_its_argument(
    resource_id: str | None, sensitive: Any, arguments: dict[str, Any], shown: str | None
) -> None:
    assert proposal_row(resource_id, sensitive, **arguments)["resource_id"] == shown


def test_a_denied_action_is_blocked() -> None:
    found = row(
        "proposed", ("evaluated", {"decision": DENY, "approvers": [], "matched_policies": [], "grant_no": None})
    )
    assert (found["verdict"], found["reason"], found["result_status"]) == ("deny", "no_grant", "blocked")
    assert (found["terminal"], found["rule_id"], found["grant_no"]) == ("evaluated", None, None)
    assert found["latency_ms"]["total"] == found["total_ms"]


def test_an_unknown_remit_leaves_the_human_open() -> None:
    nobody = f.EVALUATED.principal.model_copy(update={"human": None})
    found = row("proposed", ("evaluated", {"decision": DENY, "principal": nobody}))
    assert (found["human"], found["human_iss"], found["human_sub"]) == (None, None, None)


def test_an_open_approval_says_whom_and_until_when() -> None:
    until = f.NOW + timedelta(minutes=15)
    found = row("proposed", "evaluated", "approval_requested", expirytime=until)
    assert (found["approval_status"], found["approver_group"], found["round"]) == ("requested", ["payments"], 1)
    assert (found["expires_at"], found["decided_at"], found["wait_ms"]) == (until.isoformat(), None, None)
    assert (found["dwell_min_ms"], found["terminal"]) == (3_000, None)


def test_a_vote_below_the_quorum_keeps_the_approval_open() -> None:
    voted = ("approval_requested", {"round": 2, "votes": VOTES, "quorum": 2})
    found = row("proposed", "evaluated", ("approval_requested", {"quorum": 2}), voted)
    assert (found["approval_status"], found["round"], found["quorum"]) == ("requested", 2, 2)
    assert [vote["by"] for vote in found["votes"]] == ["https://idp.example|dana"]


def test_an_approval_names_who_and_how_long_it_took() -> None:
    found = row(*f.APPROVED_PATH)
    assert (found["approval_status"], found["approver"]) == ("approved", "https://idp.example|dana")
    assert (found["wait_ms"], found["narrowed"]) == (10, False)


def test_an_approval_without_votes_names_nobody() -> None:
    found = row("proposed", "evaluated", "approval_requested", ("approved", {"votes": []}))
    assert (found["approval_status"], found["approver"]) == ("approved", None)


def test_a_narrowed_approval_says_so() -> None:
    narrowing = {"properties": {"amount": {"maximum": 50}}}
    assert row("proposed", "evaluated", "approval_requested", ("approved", {"narrowing": narrowing}))["narrowed"]


def test_an_action_by_rule_was_never_asked() -> None:
    found = row("proposed", ("evaluated", {"decision": ALLOW}), ("approved", {"by": "policy", "votes": []}))
    assert "approval_status" not in found
    assert "wait_ms" not in found


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        (Reason.DENIED, "denied"), (Reason.EXPIRED, "expired"), (Reason.WITHDRAWN, "withdrawn"), (Reason.BLOCKED, "withdrawn"),
    ],
)  # fmt: skip
def test_a_refusal_by_approval_ends_the_approval(reason: Reason, status: str) -> None:
    found = row("proposed", "evaluated", "approval_requested", ("refused", {"reason": reason, "detail": "no"}))
    assert (found["approval_status"], found["approver"]) == (status, "https://idp.example|dana")
    assert (found["refused_stage"], found["refused_reason"], found["detail"]) == ("approval", reason.value, "no")
    assert (found["result_status"], found["terminal"]) == ("refused", "refused")


def test_a_refusal_after_the_approval_leaves_it_approved() -> None:
    stage = ("refused", {"stage": Stage.TOKENS, "reason": Reason.POLICY_DENIED, "by": None})
    found = row(*f.APPROVED_PATH, stage)
    assert (found["approval_status"], found["refused_stage"]) == ("approved", "tokens")


def test_a_revoked_question_was_withdrawn() -> None:
    found = row("proposed", "evaluated", "approval_requested", "revoked")
    assert (found["approval_status"], found["approver"]) == ("withdrawn", "https://idp.example|emma")
    assert (found["result_status"], found["detail"]) == ("revoked", "changed my mind")


def test_an_execution_that_matches() -> None:
    found = row(*f.EXECUTED_PATH)
    assert (found["outcome"], found["match"], found["effect_ok"]) == ("succeeded", "match", None)
    assert (found["executor"], found["attempt"], found["scopes_granted"]) == ("executor-1", 1, ["bank.send_money"])
    assert found["latency_ms"] == {
        "policy": 10, "approval": 20, "tokens": 10, "executor": 20, "call": 12, "total": 80,
    }  # fmt: skip
    assert found["total_ms"] == 80


@pytest.mark.parametrize(
    ("changes", "match", "effect_ok", "status"),
    [
        ({"outcome": Outcome.FAILED, "error": "tool_error"}, "match", None, "failed: tool_error"),
        ({"outcome": Outcome.UNKNOWN, "error": "timeout"}, "not_checked", None, "unknown: timeout"),
        ({"executed_digest": f.DIGEST, "effect_matches_decision": False}, "differs", False, "succeeded"),
        ({"result_omitted": "schema_violation"}, "differs", False, "succeeded"),
        ({"result_omitted": "too_large"}, "match", None, "succeeded"),
    ],
)
def test_what_an_outcome_is_worth(changes: dict[str, Any], match: str, effect_ok: object, status: str) -> None:
    found = row(*f.EXECUTED_PATH[:-1], ("executed", changes))
    assert (found["match"], found["effect_ok"], found["result_status"]) == (match, effect_ok, status)


def test_a_receipt_closes_the_row() -> None:
    writer = StreamWriter()
    state = writer.audited(writer.action("done", *f.EXECUTED_PATH), "done")
    found = action_row(tracked(state, flags={"evidence_kid"}))
    assert (found["receipt_seq"], found["terminal"], found["last_type"]) == (8, "executed", "audited")
    assert found["flags"] == ["evidence_kid"]


def test_values_that_no_column_takes_are_bounded() -> None:
    said = f.PROPOSED
    huge = said.model_copy(
        update={
            "action": said.action.model_copy(update={"resource_id": "r\x00" * 9_999}),
            "principal": said.principal.model_copy(
                update={"agent": f.AGENT.model_copy(update={"session": "s" * 9_999})}
            ),
        }
    )
    found = opening(f.record("action.proposed", huge).event)  # type: ignore[arg-type]  # it is `proposed`
    assert (found["resource_id"], len(found["session"])) == ("redacted (19998 chars)", 512)
    late = row(*f.APPROVED_PATH, ("tokenized", {"exp": 10**30}))
    assert late["token_expires_at"] is None
    slow = row(*f.EXECUTED_PATH[:-1], ("executed", {"latency_ms": {"total": 10**30}}))
    assert slow["total_ms"] == 2**31 - 1


def test_which_events_change_what_approvers_see() -> None:
    changing = ("approval_requested", "approved", "refused", "revoked")
    assert {kind for kind in f.EXAMPLES if kind.startswith("action.") and touches_approval(f.record(kind).event)} == {  # type: ignore[arg-type]  # they are action events
        f"action.{kind}" for kind in changing
    }
    policy = f.record("action.approved", f.APPROVED.model_copy(update={"by": "policy"}))
    tokens = f.record("action.refused", f.REFUSED.model_copy(update={"stage": Stage.TOKENS}))
    assert not touches_approval(policy.event)  # type: ignore[arg-type]  # it is an action event
    assert not touches_approval(tokens.event)  # type: ignore[arg-type]  # it is an action event


def test_a_grant_is_used_by_the_first_outcome_only() -> None:
    unknown = ("executed", {"outcome": Outcome.UNKNOWN})
    state = grown(*f.EXECUTED_PATH[:-1], unknown)
    doubt = tracked(state)
    assert first_effect(doubt, state.last) == (f.REMIT.remit_id, 1)  # type: ignore[arg-type]  # there is a last event
    assert is_unresolved(doubt)
    writer = StreamWriter()
    writer.messages = [None] * 7  # type: ignore[list-item]  # only their number counts here
    data = data_for("executed", state.action_id, "pay")
    resolved = tracked(writer.grow(state, "executed", "pay", data=data, discriminator="2"))
    assert first_effect(resolved, resolved.state.last) is None  # type: ignore[arg-type]  # there is a last event
    assert not is_unresolved(resolved)


def test_a_call_without_a_grant_uses_none() -> None:
    state = grown("proposed", ("evaluated", {"grant_no": None}), *f.EXECUTED_PATH[2:])
    assert first_effect(tracked(state), state.last) is None  # type: ignore[arg-type]  # there is a last event


def test_people_are_spelled_as_stop_rows_spell_them() -> None:
    human = f.EVALUATED.principal.model_copy(update={"human": Human(iss="https://idp", sub="k|m")})
    assert row("proposed", ("evaluated", {"principal": human}))["human"] == "https://idp|k|m"

"""Which tokenized action may become a call: one table a rule, one reason to fail each."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from remit.canonical import digest
from remit.events import ActionApproved, ActionRef
from remit.ids import human_subject, jti
from remit.reasons import Reason, Stage
from remit.verify import VerifiedToken
from services.executor import decide
from services.executor.decide import Next, Order, Refuse
from tests.support import execution as x
from tests.support import factories as f

TOOL = x.tool_entry()
ACTION = x.action_of(TOOL)
BUNDLE = x.bundle_of(TOOL)


def order() -> Order:
    found = decide.read_order(x.tokenized_state(ACTION), BUNDLE)
    assert isinstance(found, Order)
    return found


def refusal(found: Order | Refuse | None) -> Reason:
    assert isinstance(found, Refuse)
    return found.reason


def test_an_order_is_what_the_events_and_the_registry_agree_on() -> None:
    found = order()
    assert (found.action.id, found.arguments, found.grant_no, found.attempt) == ("echo.say", {"text": "hello"}, 1, 1)
    assert found.args_digest == digest({"text": "hello"})
    assert (found.human, found.agent) == (f"{f.EMMA.iss}|{f.EMMA.sub}", f.AGENT.id)


def test_an_action_that_left_the_registry_is_refused() -> None:
    other = x.bundle_of(x.tool_entry(tool="other", resource="https://remit.example/tools/other"))
    assert refusal(decide.read_order(x.tokenized_state(ACTION), other)) is Reason.UNKNOWN_ACTION


def test_a_changed_registry_entry_is_drift() -> None:
    changed = x.bundle_of(x.tool_entry({"say": x.action_entry(description="Now does something else.")}))
    assert refusal(decide.read_order(x.tokenized_state(ACTION), changed)) is Reason.SCHEMA_DRIFT


def test_arguments_outside_the_schema_are_refused() -> None:
    state = x.tokenized_state(ACTION, arguments={"text": 5})
    assert refusal(decide.read_order(state, BUNDLE)) is Reason.SCHEMA_VIOLATION


def changed_action(**more: Any) -> dict[str, Any]:
    common = x.common_of(ACTION, {"text": "hello"}, x.order_of().action_id)
    return {"action": common["action"].model_copy(update=more)}


DISAGREEMENTS: list[tuple[str, dict[str, Any], Reason]] = [
    ("other arguments", changed_action(args_digest=f.DIGEST), Reason.ARGS_MISMATCH),
    ("other action", changed_action(name="echo.shout"), Reason.ARGS_MISMATCH),
    ("other txn", {"txn": "0" * 32}, Reason.ARGS_MISMATCH),
    ("other remit", {"remit_id": "rem_" + "9" * 32}, Reason.ARGS_MISMATCH),
]


@pytest.mark.parametrize(("case", "fields", "reason"), DISAGREEMENTS, ids=[case for case, _, _ in DISAGREEMENTS])
def test_an_event_that_speaks_of_something_else_refuses(case: str, fields: dict[str, Any], reason: Reason) -> None:
    assert case
    assert refusal(decide.read_order(x.tokenized_state(ACTION, **fields), BUNDLE)) is reason
    assert refusal(decide.read_order(x.tokenized_state(ACTION, approved=fields), BUNDLE)) is reason


def test_another_agent_in_one_event_is_identity_drift() -> None:
    common = x.common_of(ACTION, {"text": "hello"}, x.order_of().action_id)
    agent = f.AGENT.model_copy(update={"id": "spiffe://acme.example/agent/other"})
    principal = common["principal"].model_copy(update={"agent": agent})
    state = x.tokenized_state(ACTION, approved={"principal": principal})
    assert refusal(decide.read_order(state, BUNDLE)) is Reason.IDENTITY_DRIFT


def test_without_a_human_or_a_grant_there_is_no_order() -> None:
    common = x.common_of(ACTION, {"text": "hello"}, x.order_of().action_id)
    nobody = common["principal"].model_copy(update={"human": None})
    assert refusal(decide.read_order(x.tokenized_state(ACTION, principal=nobody), BUNDLE)) is Reason.FOREIGN_REMIT
    uncovered = x.tokenized_state(ACTION, approved={"grant_no": None})
    assert refusal(decide.read_order(uncovered, BUNDLE)) is Reason.NO_GRANT


def test_an_unreadable_proposal_is_refused() -> None:
    state = x.tokenized_state(ACTION)
    first = state.chain[0].event
    broken = first.model_copy(update={"data": first.data.model_copy(update={"proposal": '{"a":1,"a":2}'})})  # type: ignore[attr-defined]
    chain = (replace(state.chain[0], event=broken), *state.chain[1:])
    assert refusal(decide.read_order(replace(state, chain=chain), BUNDLE)) is Reason.ARGS_MISMATCH


def token(**more: Any) -> VerifiedToken:
    wanted = order()
    fields: dict[str, Any] = {
        "issuer": "https://remit.example",
        "subject": wanted.subject,
        "client_id": wanted.client_id,
        "agent": wanted.agent,
        "audience": TOOL.resource,
        "jti": wanted.jti,
        "txn": wanted.action_id,
        "issued_at": 0,
        "expires_at": int(wanted.expires_at.timestamp()),
        "tool": "echo",
        "action": "say",
        "location": ACTION.location,
        "args_digest": wanted.args_digest,
        "schema_digest": ACTION.schema_digest,
        "key_thumbprint": "jkt",
    }
    return VerifiedToken(**fields | more)


def test_a_token_for_this_call_fits() -> None:
    fields = {"expires_at": int((wanted := order()).expires_at.timestamp())}
    assert decide.check_token(wanted, token(**fields)) is None


TOKENS: list[tuple[dict[str, Any], Reason]] = [
    ({"txn": "0" * 32}, Reason.TOKEN_INVALID),
    ({"jti": jti("x", 1)}, Reason.TOKEN_INVALID),
    ({"subject": human_subject(f.DANA.iss, f.DANA.sub)}, Reason.TOKEN_INVALID),
    ({"client_id": "https://agents.example/other"}, Reason.TOKEN_INVALID),
    ({"agent": "spiffe://other"}, Reason.TOKEN_INVALID),
    ({"expires_at": 1}, Reason.TOKEN_INVALID),
    ({"tool": "bank"}, Reason.TOKEN_INVALID),
    ({"action": "shout"}, Reason.TOKEN_INVALID),
    ({"location": "https://elsewhere.example"}, Reason.TOKEN_INVALID),
    ({"args_digest": f.DIGEST}, Reason.ARGS_MISMATCH),
    ({"schema_digest": f.DIGEST}, Reason.SCHEMA_DRIFT),
]


@pytest.mark.parametrize(("fields", "reason"), TOKENS)
def test_a_token_for_anything_else_is_refused(fields: dict[str, Any], reason: Reason) -> None:
    wanted = order()
    fields = {"expires_at": int(wanted.expires_at.timestamp())} | fields
    assert refusal(decide.check_token(wanted, token(**fields))) is reason


NARROWINGS: list[tuple[dict[str, Any] | None, Reason | None]] = [
    (None, None),
    ({"properties": {"text": {"const": "hello"}}}, None),
    ({"properties": {"text": {"const": "other"}}}, Reason.OUT_OF_SCOPE),
    ({"properties": {"text": {"maxLength": 3}}}, Reason.OUT_OF_SCOPE),
    ({"$ref": "https://evil.example/schema"}, Reason.OUT_OF_SCOPE),
    ({"type": 5}, Reason.OUT_OF_SCOPE),
]


@pytest.mark.parametrize(("narrowing", "reason"), NARROWINGS)
def test_an_approval_carries_only_what_it_was_narrowed_to(narrowing: Any, reason: Reason | None) -> None:
    state = x.tokenized_state(ACTION, approved={"narrowing": narrowing})
    approved = state.must(ActionApproved)
    found = decide.check_approval(order(), approved, now=approved.data.approved_at)
    assert (found.reason if found else None) is reason


def test_an_approval_that_ended_carries_nothing() -> None:
    approved = x.tokenized_state(ACTION).must(ActionApproved)
    at = approved.data.approved_until
    assert decide.check_approval(order(), approved, now=at - timedelta(milliseconds=1)) is None
    assert refusal(decide.check_approval(order(), approved, now=at)) is Reason.APPROVAL_EXPIRED


@pytest.mark.parametrize(
    ("attempt", "is_started", "expected"),
    [
        (1, False, Next.REISSUE),
        (2, False, Next.REISSUE),
        (3, False, Reason.TOKEN_EXPIRED),
        (1, True, Reason.TOKEN_EXPIRED),
    ],
)
def test_an_expired_token_is_replaced_while_nothing_started(
    attempt: int, is_started: bool, expected: Next | Reason
) -> None:
    found = decide.when_expired(replace(order(), attempt=attempt), is_started=is_started)
    assert (found.reason if isinstance(found, Refuse) else found) is expected


@pytest.mark.parametrize(("idempotency", "calls"), [("none", 1), ("queryable", 1), ("key", 3), ("natural", 3)])
def test_the_deadline_leaves_room_for_every_permitted_call(idempotency: str, calls: int) -> None:
    entry = x.action_entry(idempotency=idempotency, timeout_s=4.0)
    found = x.order_of(x.tool_entry({"say": entry}))
    assert found.is_repeatable is (calls > 1)
    assert found.deadline_s == calls * 4.0 + decide.CLAIM_MARGIN_S


def test_the_events_repeat_what_was_decided() -> None:
    state = x.tokenized_state(ACTION)
    announced = decide.started(state, order(), claim_id="clm", replica="executor-2")
    assert (announced.jti, announced.executor, announced.claim_id) == (order().jti, "executor-2", "clm")
    ended = decide.refused(state, Refuse(Reason.EGRESS_DENIED, "why"))
    assert (ended.stage, ended.reason, ended.detail) == (Stage.EXECUTOR, Reason.EGRESS_DENIED, "why")
    assert isinstance(ended.action, ActionRef)


@pytest.mark.parametrize(("word", "reason"), [("stopped", Reason.STOPPED), ("from the future", Reason.UNPROCESSABLE)])
def test_a_stored_refusal_keeps_its_reason(word: str, reason: Reason) -> None:
    assert decide.refusal_of(word).reason is reason


def test_a_claim_is_named_by_action_and_attempt_and_its_continuation_by_the_claim() -> None:
    first = decide.claim_id("a" * 32, 1)
    assert first == decide.claim_id("a" * 32, 1)
    names = {first, decide.claim_id("a" * 32, 2), decide.claim_id("b" * 32, 1), decide.continued(first)}
    assert len(names) == 4
    assert all(name.startswith("clm_") for name in names)

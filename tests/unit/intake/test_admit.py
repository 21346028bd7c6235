"""Which proposals become actions: each bad input ends in its own reason, and no message repeats an argument value."""

from __future__ import annotations

import json
from typing import Any

import pytest

from remit.canonical import digest
from remit.ids import action_id
from remit.proposal import MAX_PROPOSAL_BYTES
from remit.reasons import Reason
from services.intake.decide import Admitted, Rejected, Submission, admit, over_quota
from tests.unit.intake.door import FOREIGN_KEY, SECRET, TOOL, arguments, body, catalogue, signature, submission


def refused(raw: bytes | None = None, *, tools: dict[str, Any] | None = None, **changes: Any) -> Rejected:
    decided = admit(submission(raw, **changes), catalogue(tools), tenant="default")
    assert isinstance(decided, Rejected)
    assert SECRET not in decided.detail
    return decided


def admitted(raw: bytes | None = None) -> Admitted:
    decided = admit(submission(raw), catalogue(), tenant="default")
    assert isinstance(decided, Admitted), decided
    return decided


def test_valid_proposal_becomes_the_action_of_its_idempotency_key() -> None:
    decided = admitted()
    assert decided.action_id == action_id("default", "bookkeeper", "pay-the-bill")
    assert decided.proposed.txn == decided.action_id


def test_proposed_carries_the_signed_bytes_verbatim() -> None:
    proposed = admitted().proposed
    assert proposed.proposal.encode() == body()
    assert proposed.proposal_sig == signature(body())


def test_proposed_names_what_the_registry_says_about_the_call() -> None:
    proposed = admitted().proposed
    assert proposed.action.name == "bank.send_money"
    assert proposed.action.args_digest == digest(arguments())
    assert proposed.action.resource_id == arguments()["recipient"]
    assert (proposed.action.risk, proposed.action.effect, proposed.action.environment) == ("T3", "write", "demo")
    assert proposed.principal.human is None
    assert proposed.principal.agent.id == "spiffe://acme.example/agent/bookkeeper"
    assert proposed.principal.tool.schema_digest.startswith("sha-256:")
    assert proposed.scopes_requested == ["bank.send_money"]


def test_long_resource_is_named_by_its_digest() -> None:
    short, long = "UK" + "1" * 510, "UK" + '"' * 11_900
    assert admitted(body(arguments=arguments(recipient=short))).proposed.action.resource_id == short
    assert admitted(body(arguments=arguments(recipient=long))).proposed.action.resource_id == digest(long)


@pytest.mark.parametrize("spelled", ['"' * 11_900, "\\" * 11_900, "é" * 11_000])
def test_largest_proposal_always_fits_into_its_event(spelled: str) -> None:
    raw = body(arguments=arguments(recipient="UK" + spelled))
    assert len(raw) <= MAX_PROPOSAL_BYTES
    proposed = admitted(raw).proposed
    assert len(proposed.model_dump_json(exclude_none=True).encode()) < 60_000


def test_nul_in_a_proposal_is_refused() -> None:
    assert refused(body(rationale="a\x00b")).reason is Reason.MALFORMED


def test_identity_is_passed_on_as_presented_so_that_policy_can_see_drift() -> None:
    identity = {**json.loads(body())["identity"], "model_version": "6"}
    assert admitted(body(identity=identity)).proposed.principal.agent.model_version == "6"


def test_unknown_tool_is_refused_with_close_names() -> None:
    decided = refused(body(tool="bnak"))
    assert decided.reason is Reason.UNKNOWN_TOOL
    assert decided.alternatives == ("bank",)
    assert "did you mean bank?" in decided.detail


def test_unknown_action_is_refused_with_at_most_three_close_names() -> None:
    actions = {f"send_money_{n}": TOOL["actions"]["send_money"] for n in range(9)}
    decided = refused(body(action="send_mony"), tools={"bank": {**TOOL, "actions": actions}})
    assert decided.reason is Reason.UNKNOWN_ACTION
    assert len(decided.alternatives) == 3
    assert all(name.startswith("bank.send_money_") for name in decided.alternatives)


def test_unknown_tool_without_a_close_name_suggests_nothing() -> None:
    decided = refused(body(tool="zzzzzzzz"))
    assert (decided.reason, decided.alternatives) == (Reason.UNKNOWN_TOOL, ())


def test_tool_and_action_cannot_be_shifted_across_the_dot() -> None:
    tools = {"bank": {**TOOL, "actions": {"a.b": TOOL["actions"]["send_money"]}}}
    assert refused(body(tool="bank.a", action="b"), tools=tools).reason is Reason.UNKNOWN_TOOL


def test_unknown_argument_is_refused_by_name() -> None:
    decided = refused(body(arguments=arguments(bcc=SECRET)))
    assert decided.reason is Reason.SCHEMA_VIOLATION
    assert "unknown argument 'bcc'" in decided.detail
    assert "recipient, amount" in decided.detail


def test_missing_argument_is_refused_by_name() -> None:
    decided = refused(body(arguments={"recipient": "UK1"}))
    assert decided.reason is Reason.SCHEMA_VIOLATION
    assert "missing amount" in decided.detail


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [({"recipient": SECRET}, "/recipient: "), ({"amount": SECRET}, "/amount: "), ({"amount": -1}, "/amount: ")],
)
def test_schema_violation_names_pointer_and_keyword_and_never_the_value(changes: dict[str, Any], pointer: str) -> None:
    decided = refused(body(arguments=arguments(**changes)))
    assert decided.reason is Reason.SCHEMA_VIOLATION
    assert decided.detail.startswith(pointer)


def test_oversize_proposal_is_refused_before_anything_is_looked_up() -> None:
    decided = refused(b"x" * (MAX_PROPOSAL_BYTES + 1), agent="nobody", signature=None)
    assert decided.reason is Reason.OVERSIZE


def test_largest_proposal_is_read() -> None:
    room = MAX_PROPOSAL_BYTES - len(body(rationale=""))
    filled = body(rationale="r" * 2000)
    assert len(body(arguments=arguments(subject="s" * room))) <= MAX_PROPOSAL_BYTES
    admitted(filled)


def test_unknown_agent_is_refused() -> None:
    assert refused(agent="stranger").reason is Reason.UNKNOWN_AGENT


@pytest.mark.parametrize("broken", [b"", b"{", b'{"v":1', b"[]", b"null", b'"text"', b"\xff\xfe", b"{} {}"])
def test_malformed_json_is_refused(broken: bytes) -> None:
    assert refused(broken).reason is Reason.MALFORMED


@pytest.mark.parametrize(
    "ambiguous",
    [
        b'{"v":1,"tool":"bank","tool":"safe"}',
        b'{"amount":NaN}',
        b'{"amount":1e999}',
        b'{"amount":9007199254740993}',
        b'{"x":"\\ud800"}',
        b'{"x":' + b"[" * 60 + b"]" * 60 + b"}",
    ],
    ids=["duplicate key", "NaN", "infinite", "beyond 2^53", "lone surrogate", "deep"],
)
def test_ambiguous_json_is_refused_as_malformed(ambiguous: bytes) -> None:
    assert refused(ambiguous).reason is Reason.MALFORMED


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"surprise": SECRET}, "surprise"),
        ({"tool": 7}, "tool"),
        ({"arguments": [SECRET]}, "arguments"),
        ({"idempotency_key": "with space"}, "idempotency_key"),
        ({"idempotency_key": ""}, "idempotency_key"),
        ({"remit_id": "rem_x.>"}, "remit_id"),
        ({"remit_id": "rem_" + "0" * 32 + "\n"}, "remit_id"),
        ({"remit_id": "*"}, "remit_id"),
        ({"identity": {"runtime": SECRET}}, "identity"),
        ({"rationale": "x" * 2001}, "rationale"),
    ],
)
def test_malformed_field_is_named_and_its_value_is_not(changes: dict[str, Any], field: str) -> None:
    decided = refused(body(**changes))
    assert decided.reason is Reason.MALFORMED
    assert decided.detail.startswith(field)


@pytest.mark.parametrize("version", [2, 0, "1", True, 1.5, None])
def test_unsupported_version_is_refused(version: object) -> None:
    raw = json.dumps({**json.loads(body()), "v": version}).encode()
    assert refused(raw).reason is Reason.UNSUPPORTED_VERSION


def test_wrong_signature_of_another_key_is_refused() -> None:
    assert refused(signature=signature(body(), key=FOREIGN_KEY)).reason is Reason.BAD_SIGNATURE


def test_wrong_signature_made_for_another_agents_subject_is_refused() -> None:
    assert refused(signature=signature(body(), name="other")).reason is Reason.BAD_SIGNATURE


def test_wrong_signature_over_other_bytes_is_refused() -> None:
    changed = body(arguments=arguments(amount=99.7))
    assert refused(changed, signature=signature(body())).reason is Reason.BAD_SIGNATURE


@pytest.mark.parametrize("text", [None, "", "not base64url!", "AAAA", "A" * 86 + "=="])
def test_wrong_signature_spelling_is_refused(text: str | None) -> None:
    assert refused(signature=text).reason is Reason.BAD_SIGNATURE


def test_unusable_registry_key_verifies_nothing() -> None:
    decided = admit(submission(), catalogue(public_key="U" + "A" * 55), tenant="default")
    assert isinstance(decided, Rejected)
    assert decided.reason is Reason.BAD_SIGNATURE
    assert "agents.yaml" in decided.detail


def test_signature_is_checked_before_the_body_is_parsed() -> None:
    assert refused(b"{", signature=None).reason is Reason.BAD_SIGNATURE


def test_tenants_do_not_share_actions() -> None:
    mine, theirs = (admit(submission(), catalogue(), tenant=tenant) for tenant in ("a", "b"))
    assert isinstance(mine, Admitted)
    assert isinstance(theirs, Admitted)
    assert mine.action_id != theirs.action_id


def test_quota_refusal_says_when_to_come_back() -> None:
    decided = over_quota(2.5, 600)
    assert decided.reason is Reason.QUOTA_EXCEEDED
    assert "in 2.5 s" in decided.detail


def test_submission_of_any_agent_name_text_is_looked_up_and_never_trusted() -> None:
    strange = Submission(agent="a.b>*" * 40, body=body(), signature=None)
    decided = admit(strange, catalogue(), tenant="default")
    assert isinstance(decided, Rejected)
    assert decided.reason is Reason.UNKNOWN_AGENT
    assert len(decided.detail) < 200

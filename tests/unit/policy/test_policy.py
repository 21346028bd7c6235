"""What policy says about a proposed action, and when it says nothing."""

from __future__ import annotations

from typing import Any, cast

import pytest

from remit.canonical import b64url, digest
from remit.errors import PermanentError, StaleBundleError
from remit.evaluation import disowned, read_proposal
from remit.events import ActionEvaluated, Evaluated
from remit.fold import ActionState, RemitState
from remit.reasons import Reason, Verdict
from remit.runtime.delivery import Inbound
from remit.runtime.ledger import Superseded
from services.intake.decide import Admitted, admit
from services.policy.bundle import BundleInForce, Stale
from services.policy.handlers import PolicyHandlers
from tests.support.factories import EMMA, grow
from tests.unit.evaluation.bank import NOW, bundle, document, proposal, remit
from tests.unit.evaluation.chains import ACTION_ID, LARGE, RememberingLedger, by_policy, new_action
from tests.unit.intake import door


def handlers(state: ActionState | None = None, **changes: Any) -> PolicyHandlers:
    async def read_remit(remit_id: str) -> RemitState:
        return remit(remit_id=remit_id)

    base: dict[str, Any] = {
        "clock": lambda: NOW,
        "tenant": "default",
        "bundle": bundle,
        "read_remit": read_remit,
        "ledger": RememberingLedger(state or new_action(proposal())),
    }
    return PolicyHandlers(**{**base, **changes})


async def said(state: ActionState, **changes: Any) -> Evaluated:
    draft = await handlers(state, **changes).on_action_proposed(state)
    assert draft is not None
    assert draft.event is ActionEvaluated
    grow(state, "action.evaluated", draft.data, subject=ACTION_ID)
    return cast(Evaluated, draft.data)


async def test_permitted_call_is_evaluated_allow_with_its_evidence() -> None:
    data = await said(new_action(proposal()))
    assert (data.decision.verdict, data.decision.reason) == (Verdict.ALLOW, Reason.POLICY_PERMITS)
    assert (data.decision.policy_version, data.decision.bundle_version) == (bundle().digest, 7)
    assert data.principal.human == EMMA
    assert data.grant_no == 2
    assert data.task_digest == digest(document().task)
    assert data.scopes_grantable == ["bank.read_file", "bank.send_money"]


async def test_ask_names_whom_to_ask() -> None:
    data = await said(new_action(LARGE))
    assert data.decision.verdict is Verdict.ASK
    assert (data.approvers, data.quorum, data.unnamed_sinks) == (["payments"], 1, ["recipient"])


async def test_same_facts_give_the_same_event() -> None:
    state = new_action(proposal())
    assert await said(state) == await said(state)


async def test_unknown_remit_is_denied_without_a_human() -> None:
    async def nobody(remit_id: str) -> RemitState:
        return RemitState(remit_id=remit_id)

    data = await said(new_action(proposal()), read_remit=nobody)
    assert data.decision.reason is Reason.UNKNOWN_REMIT
    assert data.principal.human is None
    assert data.remit_version is None


async def test_schema_that_changed_since_intake_is_denied() -> None:
    state = new_action(proposal())
    first = state.chain[0].event.data  # type: ignore[attr-defined]  # every action event has `data`
    tool = first.principal.tool.model_copy(update={"schema_digest": digest("other")})
    drifted = new_action(proposal(), principal=first.principal.model_copy(update={"tool": tool}))
    assert (await said(drifted)).decision.reason is Reason.SCHEMA_DRIFT


@pytest.mark.parametrize(
    ("changes", "tenant", "reason"),
    [
        ({"proposal_sig": b64url(b"\x00" * 64)}, "default", Reason.BAD_SIGNATURE),
        ({"idempotency_key": "another"}, "default", Reason.ARGS_MISMATCH),
        ({}, "other", Reason.ARGS_MISMATCH),
    ],
)
async def test_what_the_agent_did_not_sign_is_denied_before_people_see_it(
    changes: dict[str, Any], tenant: str, reason: Reason
) -> None:
    data = await said(new_action(LARGE, **changes), tenant=tenant)
    assert (data.decision.verdict, data.decision.reason) == (Verdict.DENY, reason)
    assert data.principal.human == EMMA
    assert data.scopes_grantable == ["bank.read_file", "bank.send_money"]


def test_what_intake_admits_is_the_agents_own() -> None:
    admitted = admit(door.submission(), door.catalogue(), tenant="default")
    assert isinstance(admitted, Admitted)
    proposal_read = read_proposal(admitted.proposed)
    assert disowned(admitted.proposed, proposal_read, door.catalogue().bundle, tenant="default") is None


async def test_event_that_lies_about_its_proposal_is_not_processed() -> None:
    lies = [
        {"proposal": "{}"},
        {"proposal": '{"a":1,"a":2}'},
        {"remit_id": "rem_" + "f" * 32},
        {"proposal": new_action(LARGE).chain[0].event.data.proposal},  # type: ignore[attr-defined]  # `data`, as above
    ]
    for lie in lies:
        with pytest.raises(PermanentError):
            await handlers().on_action_proposed(new_action(proposal(), **lie))


async def test_action_that_is_past_this_step_is_left_alone() -> None:
    assert await handlers().on_action_proposed(by_policy()) is None
    assert handlers().unprocessable(by_policy()) is None


async def test_stale_bundle_denies_and_names_the_last_one() -> None:
    data = await said(new_action(proposal()), bundle=lambda: Stale(bundle().digest, 7))
    assert (data.decision.verdict, data.decision.reason) == (Verdict.DENY, Reason.STALE_BUNDLE)
    assert data.decision.bundle_version == 7


def test_bundle_is_remembered_so_that_never_read_and_stale_differ() -> None:
    is_stale = True

    def current() -> Any:
        if is_stale:
            raise StaleBundleError("stale")
        return bundle()

    in_force = BundleInForce(current)
    with pytest.raises(StaleBundleError):
        in_force.read()
    is_stale = False
    assert in_force.read().digest == bundle().digest
    is_stale = True
    assert in_force.read() == Stale(bundle().digest, 7)


async def test_unprocessable_action_ends_in_a_denial() -> None:
    state = new_action(proposal())
    draft = handlers().unprocessable(state)
    assert draft is not None
    data = cast(Evaluated, draft.data)
    assert (data.decision.verdict, data.decision.reason) == (Verdict.DENY, Reason.UNPROCESSABLE)
    assert grow(state, "action.evaluated", data, subject=ACTION_ID).is_terminal


async def redriven(state: ActionState, body: bytes, conflict: Exception | None = None) -> list[Any]:
    ledger = RememberingLedger(state, conflict=conflict)
    await handlers(state, ledger=ledger).on_redrive(Inbound(subject="redrive.policy", body=body, headers={}))
    return ledger.appended


async def test_redrive_does_again_what_a_delivery_would() -> None:
    state = new_action(proposal())
    assert len(await redriven(state, ACTION_ID.encode())) == 1
    assert await redriven(state, b"\xff") == []
    assert await redriven(by_policy(), ACTION_ID.encode()) == []
    assert await redriven(new_action(proposal(), proposal="{}"), ACTION_ID.encode()) == []
    assert await redriven(state, ACTION_ID.encode(), Superseded(state)) == []

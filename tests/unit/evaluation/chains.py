"""Actions as policy and tokens meet them: signed chains over the bank's proposals, and a ledger that only remembers."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from remit.canonical import canonical, digest
from remit.evaluation import evaluate
from remit.events import (
    ActionRef,
    AgentIdentity,
    ApprovalRequested,
    Approved,
    Decision,
    Evaluated,
    Principal,
    Proposed,
    ToolIdentity,
    Vote,
)
from remit.fold import ActionState
from remit.ids import action_id
from remit.reasons import Reason, Verdict
from tests.support.factories import DANA, EMMA, NOW, grow, proposal_sig
from tests.unit.evaluation.bank import AGENT, IDENTITY, REMIT_ID, bundle, facts, proposal

if TYPE_CHECKING:
    from datetime import datetime

    from remit.proposal import Proposal
    from remit.runtime.ledger import Draft

ACTION_ID = action_id("default", "bookkeeper", "pay")
DEADLINE = NOW + timedelta(minutes=10)
"""Until when people may decide."""
LARGE = proposal(recipient="X9", amount=500)


def common(given: Proposal) -> dict[str, Any]:
    action = bundle().action("bank", "send_money")
    assert action is not None
    agent = AgentIdentity(id=AGENT["id"], name="bookkeeper", client_id=AGENT["client_id"], **IDENTITY)
    tool = ToolIdentity(
        kind="mcp", resource="https://remit.example/tools/bank", name="bank", schema_digest=action.schema_digest
    )
    return {
        "txn": ACTION_ID,
        "remit_id": REMIT_ID,
        "principal": Principal(human=EMMA, agent=agent, tool=tool),
        "action": ActionRef(
            name=f"{given.tool}.{given.action}",
            args_digest=digest(given.arguments),
            environment="demo",
            risk="T3",
            effect="write",
        ),
    }


def proposed(given: Proposal, **changes: Any) -> Proposed:
    said = common(given)
    said["principal"] = said["principal"].model_copy(update={"human": None})
    said["proposal"] = canonical(given.model_dump(mode="json", exclude_none=True)).decode()
    rest: dict[str, Any] = {
        "proposal_sig": proposal_sig(said["proposal"]),
        "idempotency_key": given.idempotency_key,
        "scopes_requested": ["bank.send_money"],
        "bundle_digest": bundle().digest,
    }
    return Proposed(**{**said, **rest, **changes})


def evaluated(given: Proposal, verdict: Verdict) -> Evaluated:
    said = evaluate(bundle(), facts(given))
    reason = Reason.APPROVAL_REQUIRED if verdict is Verdict.ASK else Reason.POLICY_PERMITS
    decision = Decision(
        evaluation_id="eval_1",
        verdict=verdict,
        reason=reason,
        policy_version=bundle().digest,
        bundle_version=7,
        evaluated_at=NOW,
    )
    return Evaluated(
        **common(given),
        decision=decision,
        matched_policies=[],
        unnamed_sinks=list(said.unnamed_sinks),
        approvers=list(said.approvers),
        quorum=said.quorum,
        grant_no=2,
        scopes_grantable=[],
    )


def votes(*names: str) -> list[Vote]:
    return [Vote(iss=DANA.iss, sub=name, at=NOW) for name in names]


def approved(given: Proposal, **changes: Any) -> Approved:
    said: dict[str, Any] = {
        **common(given),
        "by": "policy",
        "approval_id": "apr_1",
        "votes": [],
        "approved_at": NOW,
        "approved_until": NOW + timedelta(minutes=5),
    }
    return Approved(**{**said, **changes})


def new_action(given: Proposal, **changes: Any) -> ActionState:
    return grow(ActionState(action_id=ACTION_ID), "action.proposed", proposed(given, **changes), subject=ACTION_ID)


def by_policy(given: Proposal | None = None, **changes: Any) -> ActionState:
    """An action that policy allowed, approved by policy; `changes` go into `approved`."""
    call = given or proposal()
    state = grow(new_action(call), "action.evaluated", evaluated(call, Verdict.ALLOW), subject=ACTION_ID)
    return grow(state, "action.approved", approved(call, **changes), subject=ACTION_ID)


def by_intake_alone(**changes: Any) -> ActionState:
    """An action as a taken-over intake could write it: `changes` go into `proposed`, and all later events repeat them."""
    call = proposal()
    shared = {name: value for name, value in changes.items() if name in {"principal", "txn"}}
    state = grow(
        new_action(call, **changes),
        "action.evaluated",
        _with(evaluated(call, Verdict.ALLOW), shared),
        subject=ACTION_ID,
    )
    return grow(state, "action.approved", _with(approved(call), shared), subject=ACTION_ID)


def _with(data: Any, changes: dict[str, Any]) -> Any:
    return data.model_copy(update=changes)


def by_people(
    *names: str, approvers: tuple[str, ...] = ("payments",), deadline: datetime | None = DEADLINE, **changes: Any
) -> ActionState:
    """An action that people approved: a large payment to somebody nobody named."""
    state = grow(new_action(LARGE), "action.evaluated", evaluated(LARGE, Verdict.ASK), subject=ACTION_ID)
    request = ApprovalRequested(
        **common(LARGE), round=1, approvers=list(approvers), quorum=1, votes=[], shown_digest=digest("shown")
    )
    state = grow(state, "action.approval_requested", request, subject=ACTION_ID, expirytime=deadline)
    body = approved(LARGE, by="human", votes=votes(*names), **changes)
    return grow(state, "action.approved", body, subject=ACTION_ID)


@dataclass
class RememberingLedger:
    """Answers `read` with one state and remembers what is appended to it."""

    state: ActionState
    appended: list[Draft] = field(default_factory=list["Draft"])
    conflict: Exception | None = None

    async def read(self, action_id: str) -> ActionState:
        assert action_id == self.state.action_id
        return self.state

    async def append(self, state: ActionState, draft: Draft) -> ActionState:
        if self.conflict is not None:
            raise self.conflict
        self.appended.append(draft)
        return state

"""Values for tests: fixed time, fixed keys, one example of every event, chained and signed as in a real action."""

from __future__ import annotations

import base64
import binascii
import json
import struct
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from nacl.signing import SigningKey

from remit.bundle_store import SIGNED_AS
from remit.canonical import b64url, canonical, digest
from remit.envelope import Recorded, Signer, TrustedKey, event_type_key, seal, source_of
from remit.events import (
    ACTION_EVENTS,
    REMIT_EVENTS,
    ActionRef,
    AgentIdentity,
    ApprovalRequested,
    Approved,
    Audited,
    Decision,
    Evaluated,
    Event,
    Executed,
    Principal,
    Proposed,
    Refused,
    RemitAmended,
    RemitExhausted,
    RemitGranted,
    RemitRevoked,
    Revoked,
    Started,
    Tokenized,
    ToolIdentity,
    Vote,
    subject_of,
)
from remit.fold import ActionState, step
from remit.ids import action_id, event_id, jti
from remit.proposal import signed_bytes
from remit.reasons import Outcome, Reason, Stage, Verdict
from remit.remits import Grant, Human, RemitDocument

if TYPE_CHECKING:
    from pydantic import BaseModel

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
SERVICES = ("intake", "policy", "approval", "tokens", "executor", "audit")
EMMA = Human(iss="https://idp.example", sub="emma")
DANA = Human(iss="https://idp.example", sub="dana")
ARGUMENTS: dict[str, Any] = {
    "recipient": "UK12345678901234567890",
    "amount": 98.7,
    "subject": "Bill",
    "date": "2024-01-01",
}
ACTION_ID = action_id("default", "bookkeeper", "pay-the-bill")
DIGEST = digest({"any": "value"})


def _seed(name: str) -> bytes:
    return name.encode().ljust(32, b"\x01")[:32]


SIGNERS = {
    name: Signer(
        kid=f"{name}-2026-11", service=name, key=SigningKey(_seed(name)), message_id_secret=_seed(f"{name}-id")
    )
    for name in SERVICES
}
TRUST = {
    signer.kid: TrustedKey(
        kid=signer.kid,
        service=name,
        types=frozenset(event_type_key(e) for e in (*ACTION_EVENTS, *REMIT_EVENTS) if name in e.writers)
        | ({SIGNED_AS} if name == "approval" else frozenset[str]()),
        key=signer.key.verify_key,
    )
    for name, signer in SIGNERS.items()
}

AGENT_KEY = SigningKey(_seed("agent"))


def public_nkey(key: SigningKey) -> str:
    """Return the public user nkey of a key, as the registry lists an agent's."""
    raw = bytes([20 << 3]) + bytes(key.verify_key)
    return base64.b32encode(raw + struct.pack("<H", binascii.crc_hqx(raw, 0))).decode().rstrip("=")


def proposal_sig(proposal: str, *, agent: str = "bookkeeper", key: SigningKey = AGENT_KEY) -> str:
    """Return an agent's signature over its proposal, as `proposed` carries it."""
    return b64url(key.sign(signed_bytes(agent, proposal.encode())).signature)


AGENT = AgentIdentity(
    id="spiffe://acme.example/agent/bookkeeper",
    name="bookkeeper",
    client_id="https://agents.example/bookkeeper",
    runtime="python-3.11",
    model_family="claude",
    model_version="5",
    config_digest="sha-256:config",
    session="run-1",
)
TOOL = ToolIdentity(kind="mcp", resource="https://remit.example/tools/bank", name="bank", schema_digest=DIGEST)
REMIT = RemitDocument(
    remit_id="rem_" + "0" * 31 + "1",
    human=EMMA,
    agent_id=AGENT.id,
    task="Pay the bill in bill-december-2023.txt to UK12345678901234567890",
    grants=[Grant(type="tool_call", tool="bank", action="send_money", max_calls=1)],
    environment="demo",
    not_before=NOW - timedelta(hours=1),
    expires_at=NOW + timedelta(hours=1),
    max_calls=5,
)
COMMON: dict[str, Any] = {
    "txn": ACTION_ID,
    "remit_id": REMIT.remit_id,
    "principal": Principal(human=EMMA, agent=AGENT, tool=TOOL),
    "action": ActionRef(
        name="bank.send_money",
        args_digest=digest(ARGUMENTS),
        resource_id="UK12345678901234567890",
        environment="demo",
        risk="T3",
        effect="write",
    ),
}
PROPOSAL: dict[str, Any] = {
    "v": 1,
    "idempotency_key": "pay-the-bill",
    "remit_id": REMIT.remit_id,
    "tool": "bank",
    "action": "send_money",
    "arguments": ARGUMENTS,
    "identity": {
        "runtime": AGENT.runtime,
        "model_family": AGENT.model_family,
        "model_version": AGENT.model_version,
        "config_digest": AGENT.config_digest,
        "session": AGENT.session,
    },
}


def decision(verdict: Verdict = Verdict.ASK, reason: Reason = Reason.APPROVAL_REQUIRED) -> Decision:
    return Decision(
        evaluation_id="eval-1",
        verdict=verdict,
        reason=reason,
        policy_version=DIGEST,
        bundle_version=1,
        evaluated_at=NOW,
    )


VOTE = Vote(iss=DANA.iss, sub=DANA.sub, at=NOW)
PROPOSED = Proposed(
    **dict[str, Any]({**COMMON, "principal": Principal(agent=AGENT, tool=TOOL)}),
    proposal=canonical(PROPOSAL).decode(),
    proposal_sig=proposal_sig(canonical(PROPOSAL).decode()),
    idempotency_key="pay-the-bill",
    scopes_requested=["bank.send_money"],
    bundle_digest=DIGEST,
)
EVALUATED = Evaluated(
    **COMMON,
    decision=decision(),
    matched_policies=["ask-payments"],
    unnamed_sinks=[],
    approvers=["payments"],
    quorum=1,
    grant_no=1,
    remit_version=1,
    task_digest=digest(REMIT.task),
    scopes_grantable=["bank.send_money"],
)
REQUESTED = ApprovalRequested(**COMMON, round=1, approvers=["payments"], quorum=1, votes=[], shown_digest=DIGEST)
APPROVED = Approved(
    **COMMON,
    by="human",
    approval_id="apr-1",
    votes=[VOTE],
    approved_at=NOW,
    approved_until=NOW + timedelta(minutes=5),
    shown_digest=DIGEST,
)
TOKENIZED = Tokenized(
    **COMMON,
    reevaluation=decision(Verdict.ALLOW, Reason.POLICY_PERMITS),
    scopes_granted=["bank.send_money"],
    jti=jti(ACTION_ID, 1),
    attempt=1,
    exp=int((NOW + timedelta(seconds=60)).timestamp()),
    token_digest=DIGEST,
    sealed_token="c2VhbGVk",
    sealed_to="thumbprint",
)
STARTED = Started(**COMMON, claim_id="claim-1", attempt=1, jti=jti(ACTION_ID, 1), executor="executor-1")
EXECUTED = Executed(
    **COMMON,
    outcome=Outcome.SUCCEEDED,
    attempt=1,
    claim_id="claim-1",
    latency_ms={"call": 12, "total": 80},
    result={"message": "Transaction to UK12345678901234567890 sent."},
    result_digest=DIGEST,
    redacted_paths=[],
    scopes_used=["bank.send_money"],
    executed_digest=digest(ARGUMENTS),
    effect_matches_decision=True,
)
REFUSED = Refused(**COMMON, stage=Stage.APPROVAL, reason=Reason.DENIED, by=DANA, alternatives=["ask the human"])
REVOKED = Revoked(**COMMON, by=EMMA, cause="changed my mind")
AUDITED = Audited(
    **COMMON, terminal="executed", events=7, first_seq=1, last_seq=7, action_head=DIGEST, ledger_head=DIGEST, flags=[]
)
REMIT_DIGEST = digest(json.loads(REMIT.model_dump_json(exclude_none=True)))
EXAMPLES: dict[str, BaseModel] = {
    "action.proposed": PROPOSED,
    "action.evaluated": EVALUATED,
    "action.approval_requested": REQUESTED,
    "action.approved": APPROVED,
    "action.tokenized": TOKENIZED,
    "action.started": STARTED,
    "action.executed": EXECUTED,
    "action.refused": REFUSED,
    "action.revoked": REVOKED,
    "action.audited": AUDITED,
    "remit.granted": RemitGranted(remit=REMIT, remit_digest=REMIT_DIGEST, by=EMMA),
    "remit.amended": RemitAmended(remit=REMIT, remit_digest=REMIT_DIGEST, by=EMMA),
    "remit.revoked": RemitRevoked(remit_digest=REMIT_DIGEST, by=EMMA, cause="done"),
    "remit.exhausted": RemitExhausted(remit_digest=REMIT_DIGEST, used=5),
}
KINDS: dict[str, type[Event]] = {event_type_key(e): e for e in (*ACTION_EVENTS, *REMIT_EVENTS)}


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a chain an event stands."""

    n: int = 1
    prev: str | None = None
    causeseq: int | None = None
    causationid: str | None = None


def record(
    kind: str, data: BaseModel | None = None, *, place: Place = Place(), discriminator: str = "1", **more: Any
) -> Recorded:
    """Return one signed event of a kind such as `action.approved`, by the (first) service that may write it."""
    event = KINDS[kind]
    body = data if data is not None else EXAMPLES[kind]
    writer = more.pop("writer", None) or (str(body.stage) if isinstance(body, Refused) else event.writers[0])
    subject_id = more.pop("subject", ACTION_ID if kind.startswith("action") else REMIT.remit_id)
    built = event(
        id=event_id(subject_id, kind, discriminator),
        source=source_of(writer),
        subject=subject_id,
        time=more.pop("time", NOW),
        type=event.model_fields["type"].default,
        dataschema=f"https://remit.example/schemas/{kind}/1.0.0",
        n=place.n,
        prev=place.prev,
        causeseq=place.causeseq,
        causationid=place.causationid,
        correlationid=subject_id,
        kid=SIGNERS[writer].kid,
        partitionkey="default",
        data=body,  # type: ignore[call-arg]  # every concrete event class has it
        **more,
    )
    return seal(built, subject=subject_of(event, subject_id), signer=SIGNERS[writer])


def grow(state: ActionState, kind: str, data: BaseModel | None = None, **more: Any) -> ActionState:
    """Append one valid event to a state at the next sequence; fails when the fold refuses it."""
    place = Place(
        n=len(state.chain) + 1,
        prev=state.head,
        causeseq=state.chain[-1].seq if state.chain else None,
        causationid=state.last.id if state.last else None,
    )
    seq = more.pop("seq", state.last_seq + 1)
    grown, finding = step(state, replace(record(kind, data, place=place, **more), seq=seq), seq)
    assert finding is None, f"{kind} does not fold: {finding}"
    return grown


def empty() -> ActionState:
    return ActionState(action_id=ACTION_ID)


def action_until(*kinds: str) -> ActionState:
    """Return the state after a run of example events, such as `action_until("proposed", "evaluated")`."""
    state = empty()
    for kind in kinds:
        state = grow(state, f"action.{kind}")
    return state


APPROVED_PATH = ("proposed", "evaluated", "approval_requested", "approved")
EXECUTED_PATH = (*APPROVED_PATH, "tokenized", "started", "executed")

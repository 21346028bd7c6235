"""Whether a token may become a call: pure rules over the action's events, the registry entry and the token's claims.

Everything here must agree before anything is started; the first disagreement is the answer.
Source: design, standards section 2.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Literal

from pydantic import ValidationError

from remit.canonical import digest, strict_loads
from remit.errors import CanonicalError
from remit.evaluation.schemas import SchemaRefusedError, compile_schema, violation
from remit.events import ActionApproved, ActionEvaluated, ActionProposed, ActionTokenized, Refused, Started
from remit.fold import MAX_ATTEMPTS
from remit.ids import derive, human_subject
from remit.proposal import Proposal
from remit.reasons import Reason, Stage

if TYPE_CHECKING:
    from pydantic import JsonValue

    from remit.evaluation import CompiledAction, CompiledBundle
    from remit.events import Common
    from remit.fold import ActionState
    from remit.verify import VerifiedToken

RETRIES = 2
"""Repetitions of a doubtful call whose action is declared safe to repeat (design, bus section 7)."""
REPEATABLE = frozenset({"key", "natural"})
CLAIM_MARGIN_S = 10.0
"""Beyond the sum of all time limits, until a claim without an outcome counts as interrupted."""
REMEDIES = {
    Reason.BUDGET_EXHAUSTED: "the remit or its grant has no calls left; ask its human for a new one",
    Reason.REMIT_REVOKED: "the remit was revoked before the call; ask its human for a new one",
    Reason.REMIT_EXPIRED: "the remit expired before the call; ask its human for a new one",
    Reason.BLOCKED: "its like was denied under this remit before the call; do something else",
    Reason.STOPPED: "a kill switch was engaged before the call; propose again when operators have lifted it",
}
"""What the agent can do about the refusals that a claim meets in ordinary operation."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """The action ends here, before any effect."""

    reason: Reason
    detail: str


class Next(Enum):
    """What else may become of a token that cannot be used now."""

    REISSUE = "ask the tokens service for another one"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One call, exactly as it was decided."""

    action_id: str
    remit_id: str
    grant_no: int
    attempt: int
    jti: str
    action: CompiledAction
    arguments: dict[str, JsonValue]
    args_digest: str
    human: str
    """`<issuer>|<subject>`, as the stop row names the person."""
    subject: str
    """The same person as tokens name them."""
    agent: str
    client_id: str
    block_class: str
    """What a denial must be of to forbid this call (`ActionRef.block_class`)."""
    expires_at: datetime
    """When the token ends."""
    traceparent: str | None = None

    @property
    def is_repeatable(self) -> bool:
        """Whether the registry declares that a second identical call does no harm."""
        return self.action.entry.idempotency in REPEATABLE

    @property
    def deadline_s(self) -> float:
        """Seconds from the claim until it counts as interrupted."""
        calls = 1 + RETRIES if self.is_repeatable else 1
        return calls * self.action.entry.timeout_s + CLAIM_MARGIN_S


def read_order(state: ActionState, bundle: CompiledBundle) -> Order | Refuse:
    """Return the call that the action's own events and the registry in force agree on."""
    tokenized = state.must(ActionTokenized).data
    proposal = _proposal(state.must(ActionProposed).data.proposal)
    if proposal is None:
        return Refuse(Reason.ARGS_MISMATCH, "the agent's signed proposal cannot be read")
    action = bundle.action(proposal.tool, proposal.action)
    if action is None:
        return Refuse(Reason.UNKNOWN_ACTION, f"{proposal.tool}.{proposal.action} is not registered any more")
    if tokenized.principal.human is None:
        return Refuse(Reason.FOREIGN_REMIT, "no human stands behind this action")
    evaluated = state.must(ActionEvaluated).data
    grant_no = evaluated.grant_no
    if grant_no is None:
        return Refuse(Reason.NO_GRANT, "the evaluation names no grant, so there is no budget to count")
    order = Order(
        action_id=state.action_id,
        remit_id=tokenized.remit_id,
        grant_no=grant_no,
        attempt=tokenized.attempt,
        jti=tokenized.jti,
        action=action,
        arguments=proposal.arguments,
        args_digest=digest(proposal.arguments),
        human=f"{tokenized.principal.human.iss}|{tokenized.principal.human.sub}",
        subject=human_subject(tokenized.principal.human.iss, tokenized.principal.human.sub),
        agent=tokenized.principal.agent.id,
        client_id=tokenized.principal.agent.client_id,
        block_class=evaluated.action.block_class,
        expires_at=datetime.fromtimestamp(tokenized.exp, UTC),
        traceparent=state.chain[0].event.traceparent,
    )
    return _disagreement(state, order, proposal) or order


def _proposal(signed: str) -> Proposal | None:
    try:
        return Proposal.model_validate(strict_loads(signed.encode()))
    except (CanonicalError, ValidationError, UnicodeEncodeError):
        return None


def _disagreement(state: ActionState, order: Order, proposal: Proposal) -> Refuse | None:
    """Compare what each event says with the call; the events are signed by different services on purpose."""
    for recorded in state.chain:
        common: Common = recorded.event.data  # type: ignore[attr-defined]  # every action event has `data`
        where = f"event {common.action.name} n={recorded.event.n}"
        if common.txn != order.action_id or common.remit_id != proposal.remit_id:
            return Refuse(Reason.ARGS_MISMATCH, f"{where} speaks of another action or remit")
        if common.action.name != order.action.id:
            return Refuse(Reason.ARGS_MISMATCH, f"{where} is not {order.action.id}")
        if common.action.args_digest != order.args_digest:
            return Refuse(Reason.ARGS_MISMATCH, f"{where} was decided on other arguments")
        if common.action.block_class != order.block_class:
            return Refuse(Reason.ARGS_MISMATCH, f"{where} was decided on another resource")
        if common.principal.agent.id != order.agent:
            return Refuse(Reason.IDENTITY_DRIFT, f"{where} was decided for another agent")
        if common.principal.tool.schema_digest != order.action.schema_digest:
            return Refuse(Reason.SCHEMA_DRIFT, f"the registry entry of {order.action.id} changed after the decision")
    broken = order.action.violation(order.arguments)
    return None if broken is None else Refuse(Reason.SCHEMA_VIOLATION, broken)


def check_token(order: Order, token: VerifiedToken) -> Refuse | None:
    """Return what in a verified token does not fit this one call."""
    if token.txn != order.action_id or token.jti != order.jti:
        return Refuse(Reason.TOKEN_INVALID, "the token was minted for another action or attempt")
    if (token.subject, token.client_id) != (order.subject, order.client_id):
        return Refuse(Reason.TOKEN_INVALID, "the token names another human or client than its event")
    if token.agent != order.agent or token.expires_at != int(order.expires_at.timestamp()):
        return Refuse(Reason.TOKEN_INVALID, "the token names another agent or end than its event")
    if (token.tool, token.action) != (order.action.tool.tool, order.action.name):
        return Refuse(Reason.TOKEN_INVALID, f"the token is not for {order.action.id}")
    if token.location != order.action.location:
        return Refuse(Reason.TOKEN_INVALID, f"the token names another location of {order.action.id}")
    if token.args_digest != order.args_digest:
        return Refuse(Reason.ARGS_MISMATCH, "the token was minted for other arguments")
    if token.schema_digest != order.action.schema_digest:
        return Refuse(Reason.SCHEMA_DRIFT, f"the registry entry of {order.action.id} changed after minting")
    return None


def check_approval(order: Order, approved: ActionApproved, *, now: datetime) -> Refuse | None:
    """Return why the approval does not carry this call: it ended, or was narrowed to something else."""
    if now >= approved.data.approved_until:
        return Refuse(Reason.APPROVAL_EXPIRED, "the approval ended before the call")
    if approved.data.narrowing is None:
        return None
    try:
        outside = violation(compile_schema(approved.data.narrowing), order.arguments)
    except SchemaRefusedError as refusal:
        outside = str(refusal)
    return None if outside is None else Refuse(Reason.OUT_OF_SCOPE, f"outside what was approved: {outside}")


def when_expired(order: Order, *, is_started: bool) -> Refuse | Literal[Next.REISSUE]:
    """Return what follows when the token's time ran out: another one, unless the call was announced or tokens are spent."""
    if is_started:
        return Refuse(Reason.TOKEN_EXPIRED, "the token expired between the announcement and the claim")
    if order.attempt < MAX_ATTEMPTS:
        return Next.REISSUE
    return Refuse(Reason.TOKEN_EXPIRED, f"token {MAX_ATTEMPTS} of {MAX_ATTEMPTS} expired before the call could start")


def claim_id(action_id: str, attempt: int) -> str:
    """Return the claim of one token: derived, so that announcement, claim and outcome name the same one after a crash too."""
    return f"clm_{derive('claim', action_id, str(attempt)).hex}"


def continued(interrupted: str) -> str:
    """Return the claim that continues an interrupted one; that happens once (design, bus section 7)."""
    return f"{interrupted}.2"


def started(state: ActionState, order: Order, *, claim_id: str, replica: str) -> Started:
    """Return the event that announces the claim."""
    data = state.must(ActionTokenized).data
    return Started(
        txn=data.txn, remit_id=data.remit_id, principal=data.principal, action=data.action,
        claim_id=claim_id, attempt=order.attempt, jti=order.jti, executor=replica,
    )  # fmt: skip


def refused(state: ActionState, refusal: Refuse) -> Refused:
    """Return the event that ends the action without an effect."""
    data = state.must(ActionTokenized).data
    return Refused(
        txn=data.txn, remit_id=data.remit_id, principal=data.principal, action=data.action,
        stage=Stage.EXECUTOR, reason=refusal.reason, detail=refusal.detail,
    )  # fmt: skip


def refusal_of(reason: str) -> Refuse:
    """Return the refusal that a stored claim names; a word this build does not know is still a refusal."""
    try:
        known = Reason(reason)
        return Refuse(known, REMEDIES.get(known, "refused in the claim, right before the call"))
    except ValueError:
        return Refuse(Reason.UNPROCESSABLE, "refused in the claim for a reason this executor does not know")

"""Rules of voting, pure: who may say yes or no to what, and when that is enough.

Bound to the exact arguments, by named and distinct people, never by the one the task is done for. Who is entitled stands
in `entitlement`. Source: design, section 7; dashboard section 2 (Commands).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from remit.canonical import digest
from remit.commands import Reply
from remit.events import ActionApprovalRequested, ActionApproved, ActionEvaluated, ActionRefused, Approved, Vote
from remit.ids import event_id
from remit.reasons import Reason
from remit.runtime.ledger import Draft
from services.approval.answers import forbidden, invalid, not_waiting, other_body, stale
from services.approval.decide import Limits, approval_id, refuse
from services.approval.entitlement import Ties, not_entitled
from services.approval.narrowing import narrowing_refusal

if TYPE_CHECKING:
    from datetime import datetime

    from remit.commands import ApproveCommand, DenyCommand
    from remit.evaluation.actions import CompiledAction
    from remit.fold import ActionState
    from remit.identity_claims import Person
    from services.approval.store import Denied

SHOWN_TIERS = frozenset({"T3", "T4"})
"""Where an approval must name the card it was given for: arguments alone do not tell what else was shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Voter:
    """A person and the key of the command: together they name one decision."""

    person: Person
    idempotency_key: str

    @property
    def fingerprint(self) -> str:
        """Discriminator of this person's event; two people with one key never share an event id."""
        human = self.person.human
        return digest([human.iss, human.sub, self.idempotency_key])


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What is known when a vote is cast, beyond the action's own events."""

    now: datetime
    remit_expires_at: datetime | None = None
    ties: Ties = field(default_factory=Ties)
    denied: Denied | None = None
    """A denial of the same kind of action under the same remit, given while this one waited."""
    action: CompiledAction | None = None
    """The registry's entry, against which a narrowing is checked; None when it is not registered any more."""


def decide_vote(
    state: ActionState, command: ApproveCommand, voter: Voter, moment: Moment, limits: Limits
) -> Draft | Reply:
    """Return the approval, the next round while votes are missing, or why this vote does not count.

    A yes to what somebody denied meanwhile ends the action: the denial stands for every like request of the remit.
    """
    repeated = _repeated(state, command, voter)
    if repeated is not None:
        return repeated
    request = state.last
    if not isinstance(request, ActionApprovalRequested):
        return not_waiting(state)
    evaluated = state.must(ActionEvaluated)
    refusal = (
        _passed(request, moment.now)
        or not_entitled(evaluated, request, voter.person, moment.ties)
        or _stale(evaluated, request, command)
    )
    if refusal is not None:
        return refusal
    if moment.denied is not None:
        detail, by = f"its like was denied: {moment.denied.reason}", moment.denied.by
        return refuse(evaluated.data, Reason.BLOCKED, detail=detail, by=by, discriminator="blocked")
    human = voter.person.human
    votes = [*request.data.votes, Vote(iss=human.iss, sub=human.sub, at=moment.now)]
    complete = len(votes) >= request.data.quorum
    if command.narrowing is not None:
        refusal = narrowing_refusal(state, command.narrowing, complete=complete, action=moment.action)
    if refusal is not None:
        return refusal
    if not complete:
        return _next_round(request, votes, voter)
    return _approved_by_people(request, command, voter, moment, limits)


def _passed(request: ActionApprovalRequested, now: datetime) -> Reply | None:
    if request.expirytime is not None and now < request.expirytime:
        return None
    return Reply(status="decided", decision="expired", detail="the deadline has passed; the action is refused")


def _stale(evaluated: ActionEvaluated, request: ActionApprovalRequested, command: ApproveCommand) -> Reply | None:
    if command.args_digest != evaluated.data.action.args_digest:
        return stale("the arguments are not the ones that were shown; read the action again")
    if evaluated.data.action.risk in SHOWN_TIERS:
        for name in ("shown_digest", "version"):
            if getattr(command, name) is None:
                return invalid(name, f"at {evaluated.data.action.risk} an approval names the card it is given for")
    if command.shown_digest is not None and command.shown_digest != request.data.shown_digest:
        return stale("the card that was shown is not the one that is asked; read the action again")
    if command.version is not None and command.version != request.data.round:
        return stale(f"the approval is in round {request.data.round}, not {command.version}; read the action again")
    return None


def _next_round(request: ActionApprovalRequested, votes: list[Vote], voter: Voter) -> Draft:
    data = request.data.model_copy(update={"round": request.data.round + 1, "votes": votes})
    return Draft(
        event=ActionApprovalRequested,
        data=data,
        discriminator=_next_key(data.round, voter),
        expirytime=request.expirytime,
    )


def _approved_by_people(
    request: ActionApprovalRequested, command: ApproveCommand, voter: Voter, moment: Moment, limits: Limits
) -> Draft:
    said, human = request.data, voter.person.human
    until = moment.now + limits.approved_for_human
    data = Approved(
        txn=said.txn,
        remit_id=said.remit_id,
        principal=said.principal,
        action=said.action,
        by="human",
        approval_id=approval_id(said.txn, voter.fingerprint),
        votes=[*said.votes, Vote(iss=human.iss, sub=human.sub, at=moment.now)],
        approved_at=moment.now,
        approved_until=min(until, moment.remit_expires_at or until),
        narrowing=command.narrowing,
        shown_digest=said.shown_digest,
    )
    return Draft(event=ActionApproved, data=data, discriminator=voter.fingerprint)


def _repeated(state: ActionState, command: ApproveCommand, voter: Voter) -> Reply | None:
    """Return the answer to a command that is in the chain already; None when it is new.

    One key is one question: with another body it gets no answer that would look like a yes to it.
    """
    voted, counted = _counted(state, voter)
    if counted is None:
        return None
    narrowing = counted.data.narrowing if isinstance(counted, ActionApproved) else None
    same = (
        command.args_digest == counted.data.action.args_digest
        and command.narrowing == narrowing
        and command.shown_digest in {None, counted.data.shown_digest}
        and command.version in {None, voted}
    )
    return vote_reply(state) if same else other_body()


def _counted(state: ActionState, voter: Voter) -> tuple[int, ActionApprovalRequested | ActionApproved | None]:
    """Return the round this very command voted in, and the event that counted it."""
    round_ = 0
    for recorded in state.chain:
        event = recorded.event
        if isinstance(event, ActionApprovalRequested):
            if event.id == event_id(state.action_id, "action.approval_requested", _next_key(event.data.round, voter)):
                return round_, event
            round_ = event.data.round
        elif isinstance(event, ActionApproved) and event.id == event_id(
            state.action_id, "action.approved", voter.fingerprint
        ):
            return round_, event
    return round_, None


def _next_key(round_: int, voter: Voter) -> str:
    return f"{round_}:{voter.fingerprint}"


def vote_reply(state: ActionState) -> Reply:
    """Return what a counted vote led to."""
    request = state.must(ActionApprovalRequested).data
    approved = state.find(ActionApproved)
    votes = len(approved.data.votes) if approved else len(request.votes)
    detail = "approved" if approved else f"vote {votes} of {request.quorum} counted; more are needed"
    return Reply(status="ok", detail=detail, round=request.round, votes=votes, quorum=request.quorum)


def decide_denial(state: ActionState, command: DenyCommand, voter: Voter) -> Draft | Reply:
    """Return the refusal by an approver or by the human the task is for, or why this no does not count.

    The `version` of the card is not compared: the denial of an older card is still a denial.
    """
    refused = state.find(ActionRefused)
    if refused is not None and refused.id == event_id(state.action_id, "action.refused", voter.fingerprint):
        return Reply(status="ok", detail="denied") if refused.data.detail == command.reason else other_body()
    request = state.last
    if not isinstance(request, ActionApprovalRequested):
        return not_waiting(state)
    evaluated = state.must(ActionEvaluated)
    own = voter.person.human == evaluated.data.principal.human
    if not own and not voter.person.has(*request.data.approvers):
        groups = ", ".join(sorted(request.data.approvers))
        return forbidden(f"denying this needs one of the groups {groups}, or to be the person the task is for")
    return refuse(
        evaluated.data,
        Reason.DENIED,
        detail=command.reason,
        by=voter.person.human,
        discriminator=voter.fingerprint,
    )

"""Rules of voting, pure: who may say yes or no to what, and when that is enough.

Bound to the exact arguments, by named and distinct people, never by the one the task is done for.
Source: design, section 7; dashboard section 2 (Commands).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from remit.canonical import digest
from remit.commands import Reply
from remit.events import ActionApprovalRequested, ActionApproved, ActionEvaluated, Approved, Vote
from remit.ids import event_id
from remit.reasons import Reason
from remit.runtime.ledger import Draft
from services.approval.answers import forbidden, not_waiting, stale
from services.approval.decide import Limits, approval_id, refuse
from services.approval.narrowing import narrowing_refusal

if TYPE_CHECKING:
    from datetime import datetime

    from remit.commands import ApproveCommand, DenyCommand
    from remit.fold import ActionState
    from remit.identity_claims import Person


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
    """When a vote is cast, and until when its remit could hold at all."""

    now: datetime
    remit_expires_at: datetime | None = None


def decide_vote(
    state: ActionState, command: ApproveCommand, voter: Voter, moment: Moment, limits: Limits
) -> Draft | Reply:
    """Return the approval, the next round while votes are missing, or why this vote does not count."""
    if _is_repeated(state, voter):
        return vote_reply(state)
    request = state.last
    if not isinstance(request, ActionApprovalRequested):
        return not_waiting(state)
    evaluated = state.must(ActionEvaluated)
    refusal = (
        _passed(request, moment.now)
        or _stale(evaluated, request, command)
        or _not_entitled(evaluated, request, voter.person)
    )
    if refusal is not None:
        return refusal
    human = voter.person.human
    votes = [*request.data.votes, Vote(iss=human.iss, sub=human.sub, at=moment.now)]
    complete = len(votes) >= request.data.quorum
    if command.narrowing is not None:
        refusal = narrowing_refusal(state, command.narrowing, complete=complete)
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
    if command.shown_digest is not None and command.shown_digest != request.data.shown_digest:
        return stale("the card that was shown is not the one that is asked; read the action again")
    if command.version is not None and command.version != request.data.round:
        return stale(f"the approval is in round {request.data.round}, not {command.version}; read the action again")
    return None


def _not_entitled(evaluated: ActionEvaluated, request: ActionApprovalRequested, person: Person) -> Reply | None:
    groups = ", ".join(sorted(request.data.approvers))
    if not person.has(*request.data.approvers):
        return forbidden(f"approving this needs one of the groups {groups}")
    if person.human == evaluated.data.principal.human:
        return forbidden(f"nobody approves what is done for themselves; another person of {groups} must")
    if any((vote.iss, vote.sub) == (person.human.iss, person.human.sub) for vote in request.data.votes):
        return forbidden(f"you have voted already; another person of {groups} must")
    return None


def _next_round(request: ActionApprovalRequested, votes: list[Vote], voter: Voter) -> Draft:
    data = request.data.model_copy(update={"round": request.data.round + 1, "votes": votes})
    return Draft(
        event=ActionApprovalRequested,
        data=data,
        discriminator=f"{data.round}:{voter.fingerprint}",
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


def _is_repeated(state: ActionState, voter: Voter) -> bool:
    """Return whether this very command is in the chain already; a repeated question gets the same answer."""
    mine = {
        event_id(state.action_id, "action.approved", voter.fingerprint),
        *(
            event_id(
                state.action_id,
                "action.approval_requested",
                f"{recorded.event.data.round}:{voter.fingerprint}",
            )
            for recorded in state.chain
            if isinstance(recorded.event, ActionApprovalRequested)
        ),
    }
    return any(recorded.event.id in mine for recorded in state.chain)


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
    if any(r.event.id == event_id(state.action_id, "action.refused", voter.fingerprint) for r in state.chain):
        return Reply(status="ok", detail="denied")
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

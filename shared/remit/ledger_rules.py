"""The life cycle of an action beyond "which type may follow which": what each event must agree with. Pure.

Source: design, standards section 3.3 (life cycle) and README section 3, rules 2 to 4.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, cast

from remit.canonical import digest, strict_loads
from remit.errors import CanonicalError
from remit.events import (
    ActionApprovalRequested,
    ActionApproved,
    ActionAudited,
    ActionEvaluated,
    ActionEvent,
    ActionExecuted,
    ActionProposed,
    ActionStarted,
    ActionTokenized,
)
from remit.ledger_chain import spelled
from remit.reasons import Verdict

if TYPE_CHECKING:
    from datetime import datetime

    from remit.fold import ActionState


SETTLING = timedelta(seconds=5)
"""An approval given in time may be stored a little late, and clocks differ; a token may never be minted on it all the same."""


def life_cycle(before: ActionState, event: ActionEvent, stored_at: datetime) -> list[str]:
    """Return what a valid event contradicts in its action, in words; nothing when all agrees.

    That it may follow at all (started after tokenized, one outcome, one receipt, nothing after it) is the fold's business.
    `stored_at` is the broker's time: a signer can write any time into its own event.
    """
    found = _same_call(before, event)
    match event:
        case ActionProposed():
            found += _arguments(event)
        case ActionApproved():
            found += _votes(before, event) + _deadline(before, event, stored_at - SETTLING)
        case ActionTokenized():
            found += _token(before, event)
        case ActionStarted():
            found += _start(before, event)
        case ActionExecuted():
            found += _effect(event)
        case _:
            pass
    return found


def _same_call(before: ActionState, event: ActionEvent) -> list[str]:
    found: list[str] = []
    if event.data.txn != event.subject or event.correlationid != event.subject:
        found.append("the event names another action inside than outside")
    if not before.chain:
        return found
    first = before.must(ActionProposed).data
    if event.data.remit_id != first.remit_id:
        found.append("the event names another remit than the proposal")
    if event.data.action != first.action:
        found.append("the event is about another call than the proposal")
    if (event.data.principal.agent, event.data.principal.tool) != (first.principal.agent, first.principal.tool):
        found.append("the event names another agent or tool than the proposal")
    evaluated = before.find(ActionEvaluated)
    if evaluated is not None and event.data.principal.human != evaluated.data.principal.human:
        found.append("the event names another human than the evaluation")
    return found


def _arguments(event: ActionProposed) -> list[str]:
    try:
        arguments = strict_loads(event.data.proposal.encode())["arguments"]
        agrees = digest(arguments) == event.data.action.args_digest
    except (CanonicalError, KeyError, TypeError):
        agrees = False
    return [] if agrees else ["the digest is not that of the proposed arguments"]


def _votes(before: ActionState, event: ActionApproved) -> list[str]:
    if event.data.by == "policy":
        return []
    found: list[str] = []
    people = {(vote.iss, vote.sub) for vote in event.data.votes}
    evaluated = before.must(ActionEvaluated).data
    human = evaluated.principal.human
    if human is not None and (human.iss, human.sub) in people:
        found.append("the human the action is for approved it")
        people.discard((human.iss, human.sub))
    # A request may ask for more people than the evaluation, never for fewer.
    quorum = max(evaluated.quorum, before.must(ActionApprovalRequested).data.quorum)
    if len(people) < quorum:
        found.append(f"{len(people)} people approved, the quorum is {quorum}")
    return found


def _deadline(before: ActionState, event: ActionApproved, stored_at: datetime) -> list[str]:
    if event.data.by == "policy":
        return []
    until = before.must(ActionApprovalRequested).expirytime
    if until is None:
        return ["people approved what was asked without a deadline"]
    return ["people approved after the deadline"] if stored_at >= until else []


def _token(before: ActionState, event: ActionTokenized) -> list[str]:
    found: list[str] = []
    if event.data.reevaluation.verdict is not Verdict.ALLOW:
        found.append("a token was minted without a permitting re-evaluation")
    approved = next(r for r in reversed(before.chain) if isinstance(r.event, ActionApproved))
    if _deadline(before, cast("ActionApproved", approved.event), approved.stored_at or approved.event.time):
        found.append("a token was minted on an approval that came too late")
    return found


def _start(before: ActionState, event: ActionStarted) -> list[str]:
    minted = before.must(ActionTokenized).data
    found = ["the start is for another attempt than the token"] if event.data.attempt != minted.attempt else []
    if event.time.timestamp() >= minted.exp:
        found.append("the call was started after its token had expired")
    return found


def _effect(event: ActionExecuted) -> list[str]:
    agrees = event.data.executed_digest == event.data.action.args_digest
    if agrees is not event.data.effect_matches_decision:
        return ["the executor's word on the effect contradicts the digests"]
    return [] if agrees else ["other arguments were executed than were decided on"]


def receipt_breaks(before: ActionState, receipt: ActionAudited, head: bytes) -> list[str]:
    """Return what a receipt gets wrong about the action it closes; `head` is the chain hash at its last event."""
    said, last = receipt.data, before.last
    facts = {
        "terminal": (said.terminal, last.short if last else None),
        "events": (said.events, len(before.chain)),
        "first_seq": (said.first_seq, before.chain[0].seq),
        "last_seq": (said.last_seq, before.chain[-1].seq),
        "action_head": (said.action_head, before.head),
        "ledger_head": (said.ledger_head, spelled(head)),
    }
    return [f"{name} is not what the ledger holds" for name, (claimed, true) in facts.items() if claimed != true]

"""Resolving an unknown outcome: a person's finding becomes the executor's event, through the outbox.

Only the executor may sign `executed`; approval only vouches for who found what.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from remit.commands import Reply
from remit.events import ActionExecuted, Executed
from remit.reasons import Outcome
from services.approval.answers import decided, invalid
from services.approval.authority import OPERATOR, needs

if TYPE_CHECKING:
    from remit.commands import ResolveCommand
    from remit.runtime.ledger import Ledger
    from services.approval.store import ActionStore
    from services.approval.voting import Voter


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolutions:
    """The command that ends a doubt."""

    ledger: Ledger
    store: ActionStore

    async def resolve(self, command: ResolveCommand, voter: Voter) -> Reply:
        """State what became of an effect; the executor's relay writes it into the ledger."""
        refusal = needs(voter.person, OPERATOR)
        if refusal is not None:
            return refusal
        state = await self.ledger.read(command.action_id)
        last = state.last
        if last is None:
            return invalid("action_id", f"there is no action {command.action_id}")
        if not isinstance(last, ActionExecuted) or last.data.outcome is not Outcome.UNKNOWN:
            return decided(state)
        executed = resolved(last.data, command, voter)
        # The attempt is told apart from its own `unknown`, which has the plain number.
        if not await self.store.resolve(command.action_id, executed, f"{last.data.attempt}:resolved"):
            return Reply(status="decided", decision="executed", detail="somebody resolved this outcome already")
        return Reply(status="ok", detail=f"recorded as {command.outcome}; the receipt follows")


def resolved(unknown: Executed, command: ResolveCommand, voter: Voter) -> Executed:
    """Return the outcome as found: same attempt, same arguments, and who says so."""
    human = voter.person.human
    finding = f"{human.iss}|{human.sub}: {command.finding}"
    return unknown.model_copy(update={"outcome": Outcome(command.outcome), "error": None, "finding": finding})

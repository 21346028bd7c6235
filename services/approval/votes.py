"""Approve, narrow and deny: read the truth, decide, append by compare-and-set, decide again when it moved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from remit.commands import Reply
from remit.events import ActionApprovalRequested, ActionEvaluated, ActionRefused
from remit.runtime.ledger import Ledger, Superseded
from services.approval.answers import decided, unavailable
from services.approval.entitlement import Ties
from services.approval.store import Block
from services.approval.voting import Moment, Voter, decide_denial, decide_vote, vote_reply

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from remit.commands import ApproveCommand, DenyCommand
    from remit.fold import ActionState
    from remit.runtime.bundles import BundleReader
    from services.approval.decide import Limits
    from services.approval.remit_store import RemitStore
    from services.approval.store import ActionStore

MAX_REDECISIONS = 5
"""A lost race ends after one more look; only a flood of junk could take longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Votes:
    """Commands of approvers."""

    clock: Callable[[], datetime]
    ledger: Ledger
    store: ActionStore
    remits: RemitStore
    bundles: BundleReader
    limits: Limits
    block_for_s: float

    async def approve(self, command: ApproveCommand, voter: Voter) -> Reply:
        """Count one vote for the exact arguments that were shown."""
        state = await self.ledger.read(command.action_id)
        for _ in range(MAX_REDECISIONS):
            decision = decide_vote(state, command, voter, await self._moment(state, command), self.limits)
            if isinstance(decision, Reply):
                return decision
            try:
                state = await self.ledger.append(state, decision)
            except Superseded as lost:
                state = lost.state
                continue
            await self._note_vote(state)
            return _blocked(state, state.last) if isinstance(state.last, ActionRefused) else vote_reply(state)
        return unavailable("the action kept moving; ask again with the same key")

    async def _moment(self, state: ActionState, command: ApproveCommand) -> Moment:
        if not isinstance(state.last, ActionApprovalRequested):
            return Moment(now=self.clock())
        said = state.last.data
        remit = await self.remits.find(said.remit_id)
        # A vote that needs nothing of the registry does not wait for it.
        bundle = self.bundles.current() if said.action.risk == "T4" or command.narrowing is not None else None
        agent = bundle.agent(said.principal.agent.name) if bundle else None
        tool, _, name = said.action.name.partition(".")
        return Moment(
            now=self.clock(),
            remit_expires_at=remit.expires_at if remit else None,
            ties=Ties(
                human_email=remit.human_email if remit else None,
                agent_owner=agent.owner if agent else None,
            ),
            denied=await self.store.blocked(said.remit_id, said.action.block_class),
            action=bundle.action(tool, name) if bundle else None,
        )

    async def _note_vote(self, state: ActionState) -> None:
        if isinstance(state.last, ActionApprovalRequested):
            await self.store.next_round(state.last, state.last_seq)
        else:
            await self.store.close(state.action_id)

    async def deny(self, command: DenyCommand, voter: Voter) -> Reply:
        """Refuse the action, then block its like under the remit."""
        state = await self.ledger.read(command.action_id)
        for _ in range(MAX_REDECISIONS):
            decision = decide_denial(state, command, voter)
            if isinstance(decision, Reply) and decision.status != "ok":
                return decision
            if not isinstance(decision, Reply):
                try:
                    state = await self.ledger.append(state, decision)
                except Superseded as lost:
                    state = lost.state
                    continue
            await self._block(state, command, voter)
            return Reply(status="ok", detail="denied; its like is blocked under this remit")
        return unavailable("the action kept moving; ask again with the same key")

    async def _block(self, state: ActionState, command: DenyCommand, voter: Voter) -> None:
        """Follow the event, so that a lost race blocks nothing; a repeated command makes up for a crash."""
        said = state.must(ActionEvaluated).data
        block = Block(
            remit_id=said.remit_id,
            session=said.principal.agent.session,
            block_class=said.action.block_class,
            reason=command.reason or "denied before",
            by=voter.person.human,
            seconds=self.block_for_s,
        )
        await self.store.block(block)
        await self.store.close(state.action_id)


def _blocked(state: ActionState, refused: ActionRefused) -> Reply:
    reply = decided(state)
    return reply.model_copy(update={"detail": f"{reply.detail}: {refused.data.detail}"})

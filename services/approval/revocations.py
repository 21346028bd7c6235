"""Revoking: first the row that every claim must pass, committed, then the event: nothing starts afterwards.

Source: design, bus section 7 (Revoke).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from remit.commands import Reply
from remit.events import RemitRevoked, RemitRevokedEvent
from remit.ids import ACTION_ID, REMIT_ID
from remit.runtime.ledger import Draft, Ledger, Superseded, SupersededRemit
from services.approval.answers import invalid, unavailable
from services.approval.authority import revocation_refusal
from services.approval.decide import decide_revocation, decide_withdrawal

if TYPE_CHECKING:
    from remit.commands import RevokeCommand
    from remit.fold import ActionState, RemitState
    from remit.remits import Human
    from services.approval.remit_store import RemitStore
    from services.approval.stops import StopSnapshot
    from services.approval.store import ActionStore
    from services.approval.voting import Voter

MAX_REDECISIONS = 8
"""A revocation races with the whole pipeline, which has fewer steps than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocations:
    """The command that takes back, and the switches."""

    ledger: Ledger
    store: ActionStore
    remits: RemitStore
    stops: StopSnapshot

    async def revoke(self, command: RevokeCommand, voter: Voter) -> Reply:
        """Stop what the command names; when this returns ok, no later claim can commit."""
        match command.kind:
            case "action":
                return await self._action(command, voter)
            case "remit":
                return await self._remit(command, voter)
            case _:
                return await self._switch(command, voter)

    async def _switch(self, command: RevokeCommand, voter: Voter) -> Reply:
        refusal = revocation_refusal(command, voter.person, None)
        if refusal is not None:
            return refusal
        change = self.remits.lift if command.lift else self.remits.engage
        known = await change((command.kind, command.target), reason=command.reason, by=voter.person.human)
        if not known:
            return invalid("target", f"no {command.kind} {command.target} was ever registered, so nothing was stopped")
        await self.stops.refresh()
        return Reply(status="ok", detail=f"{command.kind} switch {'lifted' if command.lift else 'engaged'}")

    async def _action(self, command: RevokeCommand, voter: Voter) -> Reply:
        if not ACTION_ID.match(command.target):
            return invalid("target", "an action id is 32 hexadecimal digits")
        state = await self.ledger.read(command.target)
        if state.last is None:
            return invalid("target", f"there is no action {command.target}")
        remit = await self.remits.find(state.last.data.remit_id)
        refusal = revocation_refusal(command, voter.person, remit.human if remit else None)
        if refusal is not None:
            return refusal
        decision = self._decide(state, command, voter)
        if isinstance(decision, Reply):
            return decision
        first = await self.store.forestall(command.target, state.last.data.remit_id)
        if first is not None:
            return Reply(status="revoke_too_late", detail=f"the executor claimed it first; the call is {first}")
        return await self._append(state, command, voter)

    @staticmethod
    def _decide(state: ActionState, command: RevokeCommand, voter: Voter) -> Draft | Reply:
        return decide_revocation(state, by=voter.person.human, cause=command.reason, discriminator=voter.fingerprint)

    async def _append(self, state: ActionState, command: RevokeCommand, voter: Voter) -> Reply:
        for _ in range(MAX_REDECISIONS):
            decision = self._decide(state, command, voter)
            if isinstance(decision, Reply):
                return decision
            try:
                await self.ledger.append(state, decision)
            except Superseded as lost:
                state = lost.state
                continue
            await self.store.close(command.target)
            return Reply(status="ok", detail="revoked; nothing will be called")
        return unavailable("nothing will be called, but the action kept moving; repeat to record it")

    async def _remit(self, command: RevokeCommand, voter: Voter) -> Reply:
        remit = await self.remits.find(command.target) if REMIT_ID.match(command.target) else None
        if remit is None:
            return invalid("target", f"there is no remit {command.target}")
        refusal = revocation_refusal(command, voter.person, remit.human)
        if refusal is not None:
            return refusal
        await self.remits.end(command.target, reason=command.reason, by=voter.person.human)
        if not await self._record(command, remit.digest, voter.person.human):
            return unavailable("nothing starts any more, but the revocation is not recorded yet; repeat it")
        for action_id in await self.store.open_under(command.target):
            await self._withdraw(action_id, command, voter.person.human)
        await self.stops.refresh()
        return Reply(status="ok", detail="revoked; no later call can start", remit_id=command.target)

    async def _record(self, command: RevokeCommand, digest: str, by: Human) -> bool:
        data = RemitRevoked(remit_digest=digest, by=by, cause=command.reason)
        state: RemitState = await self.ledger.read_remit(command.target)
        for _ in range(MAX_REDECISIONS):
            # `none`: the grant never got beyond its rows, and those are stopped now.
            if state.status in {"revoked", "none"}:
                return True
            try:
                await self.ledger.append_remit(state, Draft(event=RemitRevokedEvent, data=data))
            except SupersededRemit as lost:
                state = lost.state
                continue
            return True
        return False

    async def _withdraw(self, action_id: str, command: RevokeCommand, by: Human) -> None:
        state = await self.ledger.read(action_id)
        for _ in range(MAX_REDECISIONS):
            draft = decide_withdrawal(state, by=by, cause=command.reason)
            if draft is None:
                break
            try:
                state = await self.ledger.append(state, draft)
            except Superseded as lost:
                state = lost.state
                continue
            await self.store.close(action_id)
            break

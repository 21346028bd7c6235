"""Revoking: first the row that every claim must pass, committed, then the event: nothing starts afterwards.

Row and event to come are one transaction, so a crash in between loses nothing (`relay`).
Source: design, bus section 7 (Revoke).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from remit.commands import Reply
from remit.ids import ACTION_ID, REMIT_ID
from services.approval.answers import invalid, unavailable
from services.approval.authority import revocation_refusal
from services.approval.decide import decide_revocation
from services.approval.stop_store import whole_tool

if TYPE_CHECKING:
    from remit.commands import RevokeCommand
    from remit.events import Revoked
    from remit.fold import ActionState
    from remit.runtime.ledger import Draft, Ledger
    from services.approval.relay import Relay
    from services.approval.remit_store import RemitStore
    from services.approval.stop_store import Stop, StopStore
    from services.approval.stops import StopSnapshot
    from services.approval.store import ActionStore
    from services.approval.voting import Voter


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocations:
    """The command that takes back, and the switches."""

    ledger: Ledger
    store: ActionStore
    remits: RemitStore
    switches: StopStore
    stops: StopSnapshot
    relay: Relay

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
        stop: Stop = (command.kind, command.target)
        reply = await (self._lift(stop, command, voter) if command.lift else self._engage(stop, command, voter))
        await self.stops.refresh()
        return reply

    async def _engage(self, stop: Stop, command: RevokeCommand, voter: Voter) -> Reply:
        stopped = await self.switches.engage(stop, reason=command.reason, by=voter.person.human)
        if stopped == 0:
            return _unknown(command)
        if whole_tool(stop) is not None:
            return Reply(status="ok", detail=f"tool switch engaged for {stopped} actions and all registered later")
        return Reply(status="ok", detail=f"{command.kind} switch engaged")

    async def _lift(self, stop: Stop, command: RevokeCommand, voter: Voter) -> Reply:
        match await self.switches.lift(stop, reason=command.reason, by=voter.person.human):
            case "unknown":
                return _unknown(command)
            case "held":
                tool = command.target.partition(".")[0]
                return invalid("target", f"the whole tool {tool} is stopped; lift tool {tool} first")
            case "lifted":
                return Reply(status="ok", detail=f"{command.kind} switch lifted")

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
        return await self._forestall(state, command, voter)

    async def _forestall(self, state: ActionState, command: RevokeCommand, voter: Voter) -> Reply:
        decision = _decide(state, command, voter)
        if isinstance(decision, Reply):
            return decision
        held = await self.store.forestall(cast("Revoked", decision.data), decision.discriminator)
        if held.earlier is not None:
            return _too_late(*held.earlier)
        for row in held.queued:
            if await self.relay.deliver(row) != "recorded":
                return unavailable("nothing will be called; that it was revoked is being recorded, ask again")
        final = _decide(await self.ledger.read(command.target), command, voter)
        if isinstance(final, Reply) and final.status != "ok":
            return final
        return Reply(status="ok", detail="revoked; nothing will be called")

    async def _remit(self, command: RevokeCommand, voter: Voter) -> Reply:
        remit = await self.remits.find(command.target) if REMIT_ID.match(command.target) else None
        if remit is None:
            return invalid("target", f"there is no remit {command.target}")
        refusal = revocation_refusal(command, voter.person, remit.human)
        if refusal is not None:
            return refusal
        by = voter.person.human
        for row in await self.remits.end(command.target, digest=remit.digest, reason=command.reason, by=by):
            if await self.relay.deliver(row) == "kept_moving":
                return unavailable("nothing starts any more, but the revocation is not recorded yet; ask again")
        await self.stops.refresh()
        return Reply(status="ok", detail="revoked; no later call can start", remit_id=command.target)


def _decide(state: ActionState, command: RevokeCommand, voter: Voter) -> Draft | Reply:
    return decide_revocation(state, by=voter.person.human, cause=command.reason, discriminator=voter.fingerprint)


def _unknown(command: RevokeCommand) -> Reply:
    return invalid("target", f"no {command.kind} {command.target} was ever registered, so nothing was stopped")


def _too_late(state: str, reason: str | None) -> Reply:
    """Return what an execution row that was there first says: a call, or a refusal without one."""
    if state == "refused":
        detail = f"it was refused before ({reason or 'no reason'}); nothing was called and nothing will be"
        return Reply(status="decided", decision="refused", detail=detail)
    return Reply(status="revoke_too_late", detail=f"the executor claimed it first; the call is {state}")

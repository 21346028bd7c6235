"""Granting a remit: rows first, then the event; repeating the command repeats the answer and nothing else.

A revocation may come between the two: then its event follows at once, or the relay appends it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from remit.commands import Reply
from remit.events import RemitGranted, RemitGrantedEvent
from remit.runtime.ledger import Draft, Ledger, SupersededRemit
from services.approval.answers import forbidden, invalid, stale
from services.approval.authority import ADMIN, DELEGATOR, human_target, needs
from services.approval.terms import check_terms, remit_digest, remit_document

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from remit.commands import GrantCommand
    from remit.fold import RemitState
    from remit.remits import RemitDocument
    from remit.runtime.bundles import BundleReader
    from services.approval.relay import Relay
    from services.approval.remit_store import RemitStore
    from services.approval.stop_store import StopStore
    from services.approval.voting import Voter

OTHER_TERMS = "this key was used for another remit; send a new idempotency key"


@dataclass(frozen=True, slots=True, kw_only=True)
class Grants:
    """The command by which a human delegates a task."""

    clock: Callable[[], datetime]
    ledger: Ledger
    remits: RemitStore
    switches: StopStore
    bundles: BundleReader
    relay: Relay

    async def grant(self, command: GrantCommand, voter: Voter) -> Reply:
        """Grant the terms to the agent for the person of the token, or show what would be granted."""
        refusal = needs(voter.person, DELEGATOR, ADMIN)
        if refusal is not None:
            return refusal
        document = remit_document(command.terms, voter.person.human, voter.idempotency_key)
        digest = remit_digest(document)
        if command.remit_digest not in {None, digest}:
            return stale("these are not the terms that were shown; preview them again")
        state = await self.ledger.read_remit(document.remit_id)
        if state.status != "none":
            return _repeated(state, digest)
        refusal = check_terms(command.terms, self.bundles.current(), self.clock()) or await self._stopped(document)
        if refusal is not None:
            return refusal
        if command.phase == "preview":
            return _granted(document, digest, "nothing was granted yet; this is what would be")
        return await self._commit(state, document, digest, voter.person.email)

    async def _stopped(self, document: RemitDocument) -> Reply | None:
        engaged = await self.switches.engaged()
        for kind, target in (("human", human_target(document.human)), ("agent", document.agent_id)):
            if (kind, target) in engaged:
                return forbidden(f"the {kind} switch is engaged for {target}; an operator must lift it first")
        return None

    async def _commit(self, state: RemitState, document: RemitDocument, digest: str, email: str | None) -> Reply:
        created = await self.remits.create(document, digest, email=email)
        if created.digest != digest:
            return invalid("idempotency_key", OTHER_TERMS)
        if created.is_stopped:
            return _revoked(document)
        data = RemitGranted(remit=document, remit_digest=digest, by=document.human)
        try:
            state = await self.ledger.append_remit(state, Draft(event=RemitGrantedEvent, data=data))
        except SupersededRemit as lost:
            if lost.state.status == "none" or lost.state.digest != digest:
                return invalid("idempotency_key", OTHER_TERMS)
            state = lost.state
        if await self.remits.note_granted(document.remit_id, state.seq):
            await self.relay.settle(document.remit_id)
            return _revoked(document)
        return _granted(document, digest, "granted")


def _revoked(document: RemitDocument) -> Reply:
    detail = "the remit was revoked while it was granted; nothing can start under it"
    return Reply(status="decided", decision="revoked", detail=detail, remit_id=document.remit_id)


def _repeated(state: RemitState, digest: str) -> Reply:
    if state.digest != digest or state.document is None:
        return invalid("idempotency_key", OTHER_TERMS)
    return _granted(state.document, digest, f"granted before; the remit is {state.status}")


def _granted(document: RemitDocument, digest: str, detail: str) -> Reply:
    return Reply(status="ok", detail=detail, remit=document, remit_id=document.remit_id, remit_digest=digest)

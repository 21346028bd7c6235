"""Append to and read from ACTIONS and REMITS: per-action compare-and-set, deterministic ids, verified folds.

Decisions are vetoed by a lost compare-and-set and decided again; facts are true whatever the race and are re-appended.
Source: design, bus section 6.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from remit.envelope import (
    CHAIN_HEADER,
    KID_HEADER,
    NOT_UNDERSTOOD,
    Recorded,
    Signed,
    Signer,
    TrustedKey,
    event_class,
    pack_chain,
    parse,
    signed_from,
    unpack_chain,
    verify,
)
from remit.errors import EnvelopeError, TransientError
from remit.fold import ActionState, RemitState, could_follow, junk, may_follow, step
from remit.runtime.bus import NOT_UNDERSTOOD_PAUSE_S, Bus, ConflictError, NotUnderstoodError, Stored
from remit.runtime.patience import Patience
from remit.runtime.remit_ledger import RemitLedger, pause
from remit.runtime.sealing import (
    CARRIES_CHAIN,
    FACTS,
    Draft,
    OversizeError,
    Place,
    Sealer,
    Superseded,
    SupersededRemit,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from remit.events import ActionEvent
    from remit.runtime.telemetry import Telemetry

__all__ = ["CARRIES_CHAIN", "FACTS", "Draft", "Ledger", "OversizeError", "Superseded", "SupersededRemit"]

MAX_CHAIN_HEADER = 49_152
"""Above this the predecessors stay out of the message and the consumer reads them: 64 KiB is the stream's limit."""


class Ledger:
    """One service's view of the truth: it reads everything and writes only the types its key may sign."""

    def __init__(
        self, *, bus: Bus, signer: Signer, trust: Mapping[str, TrustedKey], tenant: str, telemetry: Telemetry
    ) -> None:
        """Bind the connection to the service's own key and to the environment's key file."""
        self._bus, self._trust, self._telemetry = bus, trust, telemetry
        self._sealer = Sealer(signer=signer, tenant=tenant)
        self._patience = Patience()
        self._remits = RemitLedger(bus=bus, sealer=self._sealer, trust=trust, telemetry=telemetry)

    async def read(self, action_id: str) -> ActionState:
        """Fold every event of an action by leader reads; what cannot be believed is counted and passed over.

        Raises:
            NotUnderstoodError: an event that might follow is signed or spelled in a way this replica does not know yet.

        """
        state = ActionState(action_id=action_id)
        subject = f"action.{action_id}.>"
        while True:
            stored = await self._bus.leader_read("ACTIONS", {"seq": state.last_seq + 1, "next_by_subj": subject})
            if stored is None:
                return state
            state = self._fold(state, stored)

    def _fold(self, state: ActionState, stored: Stored) -> ActionState:
        try:
            signed = signed_from(stored.subject, stored.body, stored.headers)
            recorded = verify(signed, self._trust, seq=stored.seq, stored_at=stored.time)
        except EnvelopeError as error:
            self._telemetry.invalid_events.labels(code=error.code).inc()
            if error.code in NOT_UNDERSTOOD and self._holds_up(state, stored):
                raise NotUnderstoodError(str(error), retry_after_s=NOT_UNDERSTOOD_PAUSE_S) from None
            return junk(state, stored.seq)
        return step(state, recorded, stored.seq)[0]

    def _holds_up(self, state: ActionState, stored: Stored) -> bool:
        """Return whether an event that cannot be read yet may be what comes next.

        Where several services may write the type, one that was taken over could hold up the steps of the others, so an unknown
        kid is waited for a while only; any other type stands where nobody but its one writer could put it.
        """
        key, kind = self._trust.get(stored.headers.get(KID_HEADER, "")), event_class(stored.subject)
        if not could_follow(state.last, kind, key.service if key else None):
            return False
        return key is not None or len(kind.writers) == 1 or not self._patience.is_over(stored.seq)

    async def state_at(
        self,
        signed: Signed,
        *,
        seq: int,
        chain_header: str | None,
        verify_chain: bool,
        stored_at: datetime | None = None,
    ) -> ActionState | None:
        """Build the action's state from one message and the predecessors it carries.

        With `verify_chain` every predecessor's signature is checked (where authority is made); otherwise the signed
        `prev` digests bind them. The header itself is unsigned: where it does not fit, the leader is read instead.
        Returns None when the event is not part of the action's valid chain.

        Raises:
            EnvelopeError: the message itself may not be believed.
            NotUnderstoodError: as in `read`.

        """
        current = verify(signed, self._trust, seq=seq, stored_at=stored_at)
        before = self._carried(current, chain_header or "", verify_chain=verify_chain)
        if before is not None:
            state, finding = step(before, current, seq)
            if finding is None:
                return state
        return self._member(await self.read(current.event.subject), current)

    def _carried(self, current: Recorded, header: str, *, verify_chain: bool) -> ActionState | None:
        state = ActionState(action_id=current.event.subject)
        try:
            for raw in unpack_chain(header, root="action", subject_id=state.action_id):
                state, finding = step(state, self._predecessor(raw, verify_chain=verify_chain), 0)
                if finding is not None:
                    return None
        except EnvelopeError as error:
            self._telemetry.invalid_events.labels(code=error.code).inc()
            return None
        return state

    def _predecessor(self, raw: Signed, *, verify_chain: bool) -> Recorded:
        if verify_chain:
            return verify(raw, self._trust)
        return Recorded(event=parse(raw, event_class(raw.subject)), signed=raw)

    @staticmethod
    def _member(state: ActionState, current: Recorded) -> ActionState | None:
        return state if any(r.signed.body == current.signed.body for r in state.chain) else None

    async def append(self, state: ActionState, draft: Draft) -> ActionState:
        """Append one event of an action and return the state that contains it.

        The same event id already in the chain counts as ours: redelivery repeats ids, and the first stored wins.

        Raises:
            Superseded: a decision lost the race, or may not follow what is there.
            OversizeError: the event does not fit into the stream.
            NotUnderstoodError: as in `read`; the append may be stored, and repeating it is safe.
            ConfigurationError: this service may not write that type.

        """
        attempt = 0
        while True:
            recorded = self._seal(state, draft)
            if _holds(state, recorded):
                return state
            if not may_follow(state.last, cast("ActionEvent", recorded.event)):
                raise Superseded(state)
            try:
                return await self._commit(state, recorded, chain=state.chain)
            except Superseded as lost:
                if _holds(lost.state, recorded):
                    return lost.state
                if draft.event not in FACTS:
                    raise
                state, attempt = lost.state, attempt + 1
                await asyncio.sleep(pause(attempt))

    def _seal(self, state: ActionState, draft: Draft) -> Recorded:
        last, first = state.last, state.chain[0].event if state.chain else None
        cause = (state.chain[-1].seq if state.chain else None, last.id if last else None)
        trace = first.traceparent if first else draft.traceparent
        place = Place(
            subject_id=state.action_id, n=len(state.chain) + 1, prev=state.head, cause=cause, traceparent=trace
        )
        return self._sealer.seal(draft, place)

    async def _commit(self, state: ActionState, recorded: Recorded, *, chain: tuple[Recorded, ...]) -> ActionState:
        headers = self._sealer.headers(recorded, state.last_seq)
        if type(recorded.event) in CARRIES_CHAIN:
            packed = pack_chain(chain)
            if len(packed) + len(recorded.signed.body) <= MAX_CHAIN_HEADER:
                headers[CHAIN_HEADER] = packed
        attempt = 0
        while True:
            try:
                ack = await self._sealer.store(self._bus, recorded, headers)
            except ConflictError:
                return await self._settle(recorded)
            except TransientError:
                self._telemetry.append_retries.inc()
                attempt += 1
                await asyncio.sleep(pause(attempt))
                continue
            if ack.duplicate:
                return await self._settle_duplicate(recorded, headers)
            return replace(state, chain=(*chain, replace(recorded, seq=ack.seq)), last_seq=ack.seq)

    async def _settle(self, recorded: Recorded) -> ActionState:
        """Tell our own stored retry from a lost race by a leader read; one node and three answer a retry differently."""
        truth = await self._read_until(recorded.event.subject)
        if any(r.signed.body == recorded.signed.body for r in truth.chain):
            return truth
        raise Superseded(truth)

    async def _settle_duplicate(self, recorded: Recorded, headers: dict[str, str]) -> ActionState:
        truth = await self._read_until(recorded.event.subject)
        if any(r.event.id == recorded.event.id for r in truth.chain):
            return truth
        # Our message id was used for other bytes: poisoning. The compare-and-set protects us without it.
        self._telemetry.alarms.labels(kind="message_id_poisoned").inc()
        bare = {name: value for name, value in headers.items() if name != "Nats-Msg-Id"}
        try:
            await self._bus.append(recorded.signed.subject, recorded.signed.body, bare)
        except ConflictError:
            raise Superseded(await self._read_until(recorded.event.subject)) from None
        return await self._read_until(recorded.event.subject)

    async def _read_until(self, action_id: str) -> ActionState:
        attempt = 0
        while True:
            try:
                return await self.read(action_id)
            except NotUnderstoodError:
                raise
            except TransientError:
                attempt += 1
                await asyncio.sleep(pause(attempt))

    async def read_remit(self, remit_id: str, *, max_age_s: float = 0.0) -> RemitState:
        """Return a remit as its last event leaves it (`RemitLedger.read`)."""
        return await self._remits.read(remit_id, max_age_s=max_age_s)

    async def append_remit(self, state: RemitState, draft: Draft) -> RemitState:
        """Append one event of a remit (`RemitLedger.append`)."""
        return await self._remits.append(state, draft)


def _holds(state: ActionState, recorded: Recorded) -> bool:
    return any(r.event.id == recorded.event.id for r in state.chain)

"""Append to and read from ACTIONS and REMITS: per-action compare-and-set, deterministic ids, verified folds.

Decisions are vetoed by a lost compare-and-set and decided again; facts are true whatever the race and are re-appended.
Source: design, bus section 6.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from remit.clock import monotonic, now
from remit.envelope import (
    CHAIN_HEADER,
    Recorded,
    Signed,
    Signer,
    TrustedKey,
    event_class,
    pack_chain,
    parse,
    seal,
    signed_from,
    source_of,
    unpack_chain,
    verify,
)
from remit.errors import ConfigurationError, EnvelopeError, RemitError, TransientError
from remit.events import (
    ActionApproved,
    ActionAudited,
    ActionEvaluated,
    ActionEvent,
    ActionExecuted,
    ActionTokenized,
    Event,
    RemitExhaustedEvent,
    subject_of,
)
from remit.fold import ActionState, RemitState, fold_remit, junk, may_follow, step
from remit.ids import event_id
from remit.runtime.bus import Bus, ConflictError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from pydantic import BaseModel

    from remit.runtime.telemetry import Telemetry

FACTS: frozenset[type[Event]] = frozenset({ActionExecuted, ActionAudited, RemitExhaustedEvent})
"""True whatever the race; everything else is a decision."""
CARRIES_CHAIN: frozenset[type[Event]] = frozenset({ActionEvaluated, ActionApproved, ActionTokenized})
"""Events whose consumer needs the whole action; the others are read one by one or are terminal."""
SCHEMA_BASE = "https://remit.example/schemas"
BACKOFF_S = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0)
MAX_CHAIN_HEADER = 49_152
"""Above this the predecessors stay out of the message and the consumer reads them: 64 KiB is the stream's limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What a handler decides; the ledger adds position, predecessor, ids and signature.

    `discriminator` tells repetitions of a type apart: attempt, round, or a person's idempotency key (`ids.event_id`).
    """

    event: type[Event]
    data: BaseModel
    discriminator: str = "1"
    expirytime: datetime | None = None
    traceparent: str | None = None


class Superseded(RemitError):  # noqa: N818  (a signal in the design's words, not a failure)
    """A decision lost its compare-and-set; `state` is the truth to decide on again."""

    def __init__(self, state: ActionState) -> None:
        """Carry the refolded state."""
        super().__init__(f"action {state.action_id} moved on")
        self.state = state


class SupersededRemit(RemitError):  # noqa: N818  (a signal in the design's words, not a failure)
    """A remit decision lost its compare-and-set; `state` is the truth."""

    def __init__(self, state: RemitState) -> None:
        """Carry the refolded state."""
        super().__init__(f"remit {state.remit_id} moved on")
        self.state = state


def _pause(attempt: int) -> float:
    return BACKOFF_S[min(attempt, len(BACKOFF_S) - 1)]


class Ledger:
    """One service's view of the truth: it reads everything and writes only the types its key may sign."""

    def __init__(
        self, *, bus: Bus, signer: Signer, trust: Mapping[str, TrustedKey], tenant: str, telemetry: Telemetry
    ) -> None:
        """Bind the connection to the service's own key and to the environment's key file."""
        self._bus, self._signer, self._trust, self._tenant, self._telemetry = bus, signer, trust, tenant, telemetry
        self._remits: dict[str, tuple[float, RemitState]] = {}

    async def read(self, action_id: str) -> ActionState:
        """Fold every event of an action by leader reads; what cannot be believed is counted and passed over."""
        state = ActionState(action_id=action_id)
        subject = f"action.{action_id}.>"
        while True:
            stored = await self._bus.leader_read("ACTIONS", {"seq": state.last_seq + 1, "next_by_subj": subject})
            if stored is None:
                return state
            try:
                signed = signed_from(stored.subject, stored.body, stored.headers)
                state, _ = step(state, verify(signed, self._trust, seq=stored.seq), stored.seq)
            except EnvelopeError as error:
                self._telemetry.invalid_events.labels(code=error.code).inc()
                state = junk(state, stored.seq)

    async def state_at(
        self, signed: Signed, *, seq: int, chain_header: str | None, verify_chain: bool
    ) -> ActionState | None:
        """Build the action's state from one message and the predecessors it carries.

        With `verify_chain` every predecessor's signature is checked (where authority is made); otherwise the signed
        `prev` digests bind them. Returns None when the event is not part of the action's valid chain.

        Raises:
            EnvelopeError: the message itself may not be believed.

        """
        current = verify(signed, self._trust, seq=seq)
        action_id = current.event.subject
        carried = unpack_chain(chain_header, root="action", subject_id=action_id) if chain_header else ()
        if len(carried) != current.event.n - 1:
            return self._member(await self.read(action_id), current)
        state = ActionState(action_id=action_id)
        for raw in carried:
            state, finding = step(state, self._predecessor(raw, verify_chain=verify_chain), 0)
            if finding is not None:
                return self._member(await self.read(action_id), current)
        state, finding = step(state, current, seq)
        return state if finding is None else self._member(await self.read(action_id), current)

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
            ConfigurationError: this service may not write that type.

        """
        attempt = 0
        while True:
            recorded = self._seal(state, draft)
            if not may_follow(state.last, cast("ActionEvent", recorded.event)):
                raise Superseded(state)
            try:
                return await self._commit(state, recorded, chain=state.chain)
            except Superseded as lost:
                if any(r.event.id == recorded.event.id for r in lost.state.chain):
                    return lost.state
                if draft.event not in FACTS:
                    raise
                state, attempt = lost.state, attempt + 1
                await asyncio.sleep(_pause(attempt))

    def _seal(self, state: ActionState, draft: Draft) -> Recorded:
        last, first = state.last, state.chain[0].event if state.chain else None
        return self._build(
            draft, subject_id=state.action_id, n=len(state.chain) + 1, prev=state.head,
            cause=(state.chain[-1].seq if state.chain else None, last.id if last else None),
            traceparent=first.traceparent if first else draft.traceparent,
        )  # fmt: skip

    def _build(  # noqa: PLR0913  (one argument per chained attribute, called in two places)
        self,
        draft: Draft,
        *,
        subject_id: str,
        n: int,
        prev: str | None,
        cause: tuple[int | None, str | None],
        traceparent: str | None = None,
    ) -> Recorded:
        if self._signer.service not in draft.event.writers:
            raise ConfigurationError(f"{self._signer.service} may not write {draft.event.short}")
        root = "action" if draft.event.stream == "ACTIONS" else "remit"
        event = draft.event(
            id=event_id(subject_id, f"{root}.{draft.event.short}", draft.discriminator),
            source=source_of(self._signer.service),
            type=draft.event.model_fields["type"].default,
            subject=subject_id,
            time=now(),
            dataschema=f"{SCHEMA_BASE}/{root}.{draft.event.short}/1.0.0",
            n=n,
            prev=prev,
            causeseq=cause[0],
            causationid=cause[1],
            correlationid=subject_id,
            kid=self._signer.kid,
            traceparent=traceparent,
            partitionkey=self._tenant,
            expirytime=draft.expirytime,
            data=draft.data,  # type: ignore[call-arg]  # every concrete event class has `data`; the base leaves it open
        )
        return seal(event, subject=subject_of(draft.event, subject_id), signer=self._signer)

    async def _commit(self, state: ActionState, recorded: Recorded, *, chain: tuple[Recorded, ...]) -> ActionState:
        headers = self._headers(recorded, state.last_seq)
        if type(recorded.event) in CARRIES_CHAIN:
            packed = pack_chain(chain)
            if len(packed) + len(recorded.signed.body) <= MAX_CHAIN_HEADER:
                headers[CHAIN_HEADER] = packed
        attempt = 0
        while True:
            try:
                ack = await self._bus.append(recorded.signed.subject, recorded.signed.body, headers)
            except ConflictError:
                return await self._settle(recorded)
            except TransientError:
                self._telemetry.append_retries.inc()
                attempt += 1
                await asyncio.sleep(_pause(attempt))
                continue
            if ack.duplicate:
                return await self._settle_duplicate(recorded, headers)
            return replace(state, chain=(*chain, replace(recorded, seq=ack.seq)), last_seq=ack.seq)

    def _headers(self, recorded: Recorded, expected: int) -> dict[str, str]:
        root, subject_id, _ = recorded.signed.subject.split(".")
        headers = recorded.signed.headers()
        headers["Nats-Msg-Id"] = self._signer.message_id(recorded.event.id)
        headers["Nats-Expected-Last-Subject-Sequence"] = str(expected)
        headers["Nats-Expected-Last-Subject-Sequence-Subject"] = f"{root}.{subject_id}.>"
        if recorded.event.traceparent:
            headers["traceparent"] = recorded.event.traceparent
        return headers

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
            except TransientError:
                attempt += 1
                await asyncio.sleep(_pause(attempt))

    async def read_remit(self, remit_id: str, *, max_age_s: float = 0.0) -> RemitState:
        """Return a remit as its last event leaves it, by leader reads; `max_age_s` allows a recently read copy."""
        cached = self._remits.get(remit_id)
        if cached is not None and max_age_s > 0 and monotonic() - cached[0] <= max_age_s:
            return cached[1]
        subject = f"remit.{remit_id}.>"
        state = cached[1] if cached else RemitState(remit_id=remit_id)
        while True:
            stored = await self._bus.leader_read("REMITS", {"seq": state.last_seq + 1, "next_by_subj": subject})
            if stored is None:
                break
            try:
                signed = signed_from(stored.subject, stored.body, stored.headers)
                state = fold_remit(state, verify(signed, self._trust, seq=stored.seq), stored.seq)
            except EnvelopeError as error:
                self._telemetry.invalid_events.labels(code=error.code).inc()
                state = replace(state, last_seq=stored.seq)
        if state.status != "none":
            self._remember(state)
        return state

    def _remember(self, state: RemitState) -> None:
        while len(self._remits) >= 10_000:
            self._remits.pop(next(iter(self._remits)))
        self._remits[state.remit_id] = (monotonic(), state)

    async def append_remit(self, state: RemitState, draft: Draft) -> RemitState:
        """Append one event of a remit and return the state that contains it.

        Raises:
            SupersededRemit: somebody else wrote first; `state` is the truth. The same event id there counts as ours.

        """
        recorded = self._build(
            draft, subject_id=state.remit_id, n=state.n + 1, prev=state.head, cause=(state.seq or None, None)
        )
        headers, attempt = self._headers(recorded, state.last_seq), 0
        while True:
            try:
                ack = await self._bus.append(recorded.signed.subject, recorded.signed.body, headers)
            except TransientError:
                attempt += 1
                await asyncio.sleep(_pause(attempt))
                continue
            except ConflictError:
                ack = None
            if ack is not None and not ack.duplicate:
                grown = fold_remit(state, recorded, ack.seq)
                self._remember(grown)
                return grown
            truth = await self.read_remit(state.remit_id)
            if truth.head == recorded.signed.digest:
                return truth
            raise SupersededRemit(truth)

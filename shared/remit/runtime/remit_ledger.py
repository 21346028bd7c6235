"""Append to and read from REMITS: the same compare-and-set as for actions, folded to a status and a document.

Source: design, bus sections 5 and 6.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from remit.clock import monotonic
from remit.envelope import NOT_UNDERSTOOD, Recorded, TrustedKey, signed_from, verify
from remit.errors import EnvelopeError, TransientError
from remit.fold import RemitState, fold_remit
from remit.runtime.bus import NOT_UNDERSTOOD_PAUSE_S, Bus, ConflictError, NotUnderstoodError, Stored
from remit.runtime.sealing import FACTS, Draft, Place, Sealer, SupersededRemit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from remit.runtime.telemetry import Telemetry

BACKOFF_S = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0)
MAX_REMEMBERED = 10_000


def pause(attempt: int) -> float:
    """Return the seconds to wait before an append or read is repeated."""
    return BACKOFF_S[min(attempt, len(BACKOFF_S) - 1)]


@dataclass(frozen=True, slots=True)
class _Read:
    """A remit as it was read; `kids` signed what it rests on, so that it is forgotten when one is distrusted."""

    state: RemitState
    at: float = 0.0
    kids: frozenset[str] = frozenset()
    ids: frozenset[str] = frozenset()
    """Events folded by this read, beyond the state it began with."""


class RemitLedger:
    """Remits as their last valid events leave them; remembers what it read, so that a look costs one leader read."""

    def __init__(self, *, bus: Bus, sealer: Sealer, trust: Mapping[str, TrustedKey], telemetry: Telemetry) -> None:
        self._bus, self._sealer, self._trust, self._telemetry = bus, sealer, trust, telemetry
        self._known: dict[str, _Read] = {}

    async def read(self, remit_id: str, *, max_age_s: float = 0.0) -> RemitState:
        """Return a remit as its last event leaves it, by leader reads; `max_age_s` allows a recently read copy.

        Raises:
            NotUnderstoodError: an event is signed or spelled in a way this replica does not know yet; it may revoke.

        """
        known = self._known.get(remit_id)
        if known is None or not all(kid in self._trust for kid in known.kids):
            known = _Read(RemitState(remit_id=remit_id))
        elif max_age_s > 0 and monotonic() - known.at <= max_age_s:
            return known.state
        read = await self._read_on(known)
        if read.state.status != "none":
            self._remember(read)
        return read.state

    async def _read_on(self, read: _Read) -> _Read:
        started, ids = monotonic(), set[str]()
        state, kids = read.state, set(read.kids)
        subject = f"remit.{state.remit_id}.>"
        while True:
            stored = await self._bus.leader_read("REMITS", {"seq": state.last_seq + 1, "next_by_subj": subject})
            if stored is None:
                return _Read(state, started, frozenset(kids), frozenset(ids))
            recorded = self._believed(state, stored)
            if recorded is None:
                state = replace(state, last_seq=stored.seq)
                continue
            state = fold_remit(state, recorded, stored.seq)
            if state.seq == stored.seq:
                kids.add(recorded.signed.kid)
                ids.add(recorded.event.id)

    def _believed(self, state: RemitState, stored: Stored) -> Recorded | None:
        try:
            signed = signed_from(stored.subject, stored.body, stored.headers)
            return verify(signed, self._trust, seq=stored.seq, stored_at=stored.time)
        except EnvelopeError as error:
            self._telemetry.invalid_events.labels(code=error.code).inc()
            if error.code in NOT_UNDERSTOOD and state.status != "revoked":
                raise NotUnderstoodError(str(error), retry_after_s=NOT_UNDERSTOOD_PAUSE_S) from None
            return None

    def _remember(self, read: _Read) -> None:
        known = self._known.get(read.state.remit_id)
        # A slow read must not replace what a faster one has seen since.
        if known is not None and known.state.last_seq > read.state.last_seq:
            return
        while len(self._known) >= MAX_REMEMBERED:
            self._known.pop(next(iter(self._known)))
        self._known[read.state.remit_id] = read

    async def append(self, state: RemitState, draft: Draft) -> RemitState:
        """Append one event of a remit and return the state that contains it.

        The same event id stored since `state` counts as ours, whatever came after it. Facts are appended again until stored.

        Raises:
            SupersededRemit: somebody else wrote first, or the event may not follow; `state` is the truth.
            OversizeError: the event does not fit into the stream.
            NotUnderstoodError: as in `read`; the append may be stored, and repeating it is safe.

        """
        attempt = 0
        while True:
            place = Place(subject_id=state.remit_id, n=state.n + 1, prev=state.head, cause=(state.seq or None, None))
            recorded = self._sealer.seal(draft, place)
            if fold_remit(state, recorded, state.last_seq + 1).n == state.n:
                raise SupersededRemit(state)
            try:
                return await self._commit(state, recorded)
            except SupersededRemit as lost:
                if draft.event not in FACTS:
                    raise
                state, attempt = lost.state, attempt + 1
                await asyncio.sleep(pause(attempt))

    async def _commit(self, state: RemitState, recorded: Recorded) -> RemitState:
        headers, attempt = self._sealer.headers(recorded, state.last_seq), 0
        # Whatever comes of it, a remembered copy is out of date.
        self._known.pop(state.remit_id, None)
        while True:
            try:
                ack = await self._sealer.store(self._bus, recorded, headers)
            except ConflictError:
                ack = None
            except TransientError:
                self._telemetry.append_retries.inc()
                attempt += 1
                await asyncio.sleep(pause(attempt))
                continue
            if ack is not None and not ack.duplicate:
                return fold_remit(state, recorded, ack.seq)
            truth = await self._settle(state)
            if recorded.event.id in truth.ids:
                return truth.state
            if ack is None or "Nats-Msg-Id" not in headers:
                raise SupersededRemit(truth.state)
            # Our message id was used for other bytes: poisoning. The compare-and-set protects us without it.
            self._telemetry.alarms.labels(kind="message_id_poisoned").inc()
            del headers["Nats-Msg-Id"]

    async def _settle(self, state: RemitState) -> _Read:
        """Read what was stored since `state`; only no answer at all is asked for again."""
        attempt = 0
        while True:
            try:
                return await self._read_on(_Read(state))
            except NotUnderstoodError:
                raise
            except TransientError:
                attempt += 1
                await asyncio.sleep(pause(attempt))

"""Append to and read from REMITS: the same compare-and-set as for actions, folded to a status and a document.

Source: design, bus sections 5 and 6.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from remit.clock import monotonic
from remit.envelope import TrustedKey, signed_from, verify
from remit.errors import EnvelopeError, TransientError
from remit.fold import RemitState, fold_remit
from remit.runtime.bus import Bus, ConflictError
from remit.runtime.sealing import Draft, Place, Sealer, SupersededRemit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from remit.runtime.telemetry import Telemetry

BACKOFF_S = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0)


def pause(attempt: int) -> float:
    """Return the seconds to wait before an append or read is repeated."""
    return BACKOFF_S[min(attempt, len(BACKOFF_S) - 1)]


class RemitLedger:
    """Remits as their last valid events leave them; remembers what it read, so that a look costs one leader read."""

    def __init__(self, *, bus: Bus, sealer: Sealer, trust: Mapping[str, TrustedKey], telemetry: Telemetry) -> None:
        self._bus, self._sealer, self._trust, self._telemetry = bus, sealer, trust, telemetry
        self._known: dict[str, tuple[float, RemitState]] = {}

    async def read(self, remit_id: str, *, max_age_s: float = 0.0) -> RemitState:
        """Return a remit as its last event leaves it, by leader reads; `max_age_s` allows a recently read copy."""
        cached = self._known.get(remit_id)
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
        while len(self._known) >= 10_000:
            self._known.pop(next(iter(self._known)))
        self._known[state.remit_id] = (monotonic(), state)

    async def append(self, state: RemitState, draft: Draft) -> RemitState:
        """Append one event of a remit and return the state that contains it.

        Raises:
            SupersededRemit: somebody else wrote first; `state` is the truth. The same event id there counts as ours.

        """
        place = Place(subject_id=state.remit_id, n=state.n + 1, prev=state.head, cause=(state.seq or None, None))
        recorded = self._sealer.seal(draft, place)
        headers, attempt = self._sealer.headers(recorded, state.last_seq), 0
        while True:
            try:
                ack = await self._bus.append(recorded.signed.subject, recorded.signed.body, headers)
            except TransientError:
                attempt += 1
                await asyncio.sleep(pause(attempt))
                continue
            except ConflictError:
                ack = None
            if ack is not None and not ack.duplicate:
                grown = fold_remit(state, recorded, ack.seq)
                self._remember(grown)
                return grown
            truth = await self.read(state.remit_id)
            if truth.head == recorded.signed.digest:
                return truth
            raise SupersededRemit(truth)

"""From the outcome in Postgres to the event in the ledger: appended at once, and again by the relay until it is there.

At least once, with a deterministic event id and a compare-and-set: once. Source: design, bus section 8 (outbox).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog
from pydantic import ValidationError

from remit.errors import TransientError
from remit.events import ActionExecuted, Executed
from remit.runtime.crash import crash_point
from remit.runtime.ledger import Draft, Ledger, Superseded

if TYPE_CHECKING:
    from remit.fold import ActionState
    from remit.runtime.telemetry import Telemetry
    from services.executor.claims import ClaimStore, Queued

log = structlog.get_logger("remit.executor.outbox")

BATCH = 100
RECORD_PAUSES_S = (0.1, 0.5, 1.0, 2.0)


@dataclass(slots=True)
class Outbox:
    """Appends `executed` events and notes, in batches and without hurry, that they are in the ledger."""

    ledger: Ledger
    claims: ClaimStore
    telemetry: Telemetry
    pause_s: float
    after_s: float
    _done: list[int] = field(default_factory=list[int])

    async def record(self, state: ActionState, data: Executed) -> None:
        """Store an outcome, however long Postgres takes to answer, then append its event.

        Nothing else may be done with it: the effect has happened, or is in doubt. When the claim is no longer held, the
        one who concluded it has queued the event.
        """
        queued = await self._stored(state.action_id, data)
        crash_point("executor", "X6")
        if queued is None:
            return
        await self._append(state, queued, data)
        crash_point("executor", "X7")
        self._done.append(queued.id)

    async def _stored(self, action_id: str, data: Executed) -> Queued | None:
        attempt = 0
        while True:
            try:
                return await self.claims.conclude(action_id=action_id, claim_id=data.claim_id, data=data)
            except TransientError as error:
                log.warning("an outcome waits for Postgres", action_id=action_id, detail=str(error))
                await asyncio.sleep(RECORD_PAUSES_S[min(attempt, len(RECORD_PAUSES_S) - 1)])
                attempt += 1

    async def _append(self, state: ActionState, queued: Queued, data: Executed) -> None:
        try:
            draft = Draft(event=ActionExecuted, data=data, discriminator=queued.discriminator)
            await self.ledger.append(state, draft)
        except Superseded as lost:
            self._complain(lost.state)

    def _complain(self, state: ActionState) -> None:
        # The row in Postgres stays the truth about the effect; that the ledger cannot take it needs a person.
        self.telemetry.alarms.labels(kind="outcome_not_appendable").inc()
        last = state.last.type if state.last else "nothing"
        log.error(
            "the ledger cannot take an outcome", action_id=state.action_id, found=last, expected="started or unknown"
        )

    async def relay(self) -> None:
        """Repeat for ever: close what is known to be appended, append what may not be."""
        while True:
            await asyncio.sleep(self.pause_s)
            try:
                await self.flush()
                for queued in await self.claims.undone(older_than_s=self.after_s, limit=BATCH):
                    await self._repeat(queued)
                await self.flush()
            except TransientError as error:
                log.warning("outbox waits", detail=str(error))

    async def flush(self) -> None:
        """Mark the rows whose events are in the ledger."""
        ids, self._done = self._done, []
        if not ids:
            return
        try:
            await self.claims.mark_done(ids)
        except TransientError:
            self._done.extend(ids)
            raise

    async def _repeat(self, queued: Queued) -> None:
        if queued.id in self._done:
            return
        try:
            # Lax, because JSON from the database spells enums and times as strings; the types are checked all the same.
            data = Executed.model_validate(queued.draft["data"], strict=False)
        except (KeyError, ValidationError):
            self.telemetry.alarms.labels(kind="outbox_row_unreadable").inc()
            log.error("outbox row cannot be read", id=queued.id, action_id=queued.subject_id, event=queued.event_type)  # noqa: TRY400
            return
        await self._append(await self.ledger.read(queued.subject_id), queued, data)
        self._done.append(queued.id)

"""From the outcome in Postgres to the event in the ledger: appended at once, and again by the relay until it is there.

At least once, with a deterministic event id and a compare-and-set: once. Source: design, bus section 8 (outbox).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

import structlog
from pydantic import ValidationError

from remit.errors import TransientError
from remit.events import ActionExecuted, Executed
from remit.runtime.crash import crash_point
from remit.runtime.ledger import Draft, Ledger, OversizeError, Superseded
from services.executor import results

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from remit.fold import ActionState
    from remit.runtime.telemetry import Telemetry
    from services.executor.claims import ClaimStore
    from services.executor.rows import Queued

log = structlog.get_logger("remit.executor.outbox")

Found = TypeVar("Found")
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
        one who concluded it has queued the event; should they have said something else, this is kept as evidence.
        """
        queued = await self._answered(
            state.action_id, lambda: self.claims.conclude(action_id=state.action_id, claim_id=data.claim_id, data=data)
        )
        crash_point("executor", "X6")
        if queued is None:
            return await self._answered(state.action_id, lambda: self._too_late(data))
        if queued.is_stripped:
            self._alarm("outcome_stored_without_result", action_id=state.action_id)
            data = results.without_result(data)
        await self._append(state, queued, data)
        crash_point("executor", "X7")
        self._done.append(queued.id)
        return None

    async def _answered(self, action_id: str, ask: Callable[[], Awaitable[Found]]) -> Found:
        attempt = 0
        while True:
            try:
                return await ask()
            except TransientError as error:
                log.warning("an outcome waits for Postgres", action_id=action_id, detail=str(error))
                await asyncio.sleep(RECORD_PAUSES_S[min(attempt, len(RECORD_PAUSES_S) - 1)])
                attempt += 1

    async def _too_late(self, data: Executed) -> None:
        row = await self.claims.row(data.txn)
        if results.is_news(data, row):
            await self.claims.keep_late(data)
            self._alarm(
                "late_outcome_differs",
                action_id=data.txn, claim_id=data.claim_id, found=row.state if row else "no row", late=str(data.outcome),
            )  # fmt: skip

    async def _append(self, state: ActionState, queued: Queued, data: Executed) -> None:
        draft = Draft(event=ActionExecuted, data=data, discriminator=queued.discriminator)
        try:
            await self.ledger.append(state, draft)
        except OversizeError:
            # The outcome must stand in the ledger, whatever became of the result.
            self._alarm("outcome_appended_without_result", action_id=state.action_id)
            await self._append_small(state, replace(draft, data=results.without_result(data, "too_large")))
        except Superseded as lost:
            self._complain(lost.state)

    async def _append_small(self, state: ActionState, draft: Draft) -> None:
        try:
            await self.ledger.append(state, draft)
        except Superseded as lost:
            self._complain(lost.state)

    def _alarm(self, kind: str, **about: object) -> None:
        self.telemetry.alarms.labels(kind=kind).inc()
        log.error(kind.replace("_", " "), **about)

    def _complain(self, state: ActionState) -> None:
        # The row in Postgres stays the truth about the effect; that the ledger cannot take it needs a person.
        last = state.last.type if state.last else "nothing"
        self._alarm("outcome_not_appendable", action_id=state.action_id, found=last, expected="started or unknown")

    async def relay(self) -> None:
        """Repeat for ever: close what is known to be appended, append what may not be."""
        while True:
            await asyncio.sleep(self.pause_s)
            try:
                await self.flush()
                await self._pass()
                await self.flush()
            except TransientError as error:
                log.warning("outbox waits", detail=str(error))

    async def _pass(self) -> None:
        """Go through all rows once, in the order of their transactions; a row that cannot be served holds up no other."""
        last = 0
        while rows := await self.claims.undone(after_id=last, older_than_s=self.after_s, limit=BATCH):
            for queued in rows:
                [failure] = await asyncio.gather(self._repeat(queued), return_exceptions=True)
                if isinstance(failure, TransientError):
                    raise failure
                if failure is not None:
                    self._alarm(
                        "outbox_row_failed", id=queued.id, action_id=queued.subject_id, error=type(failure).__name__
                    )
            last = rows[-1].id

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
            self._alarm("outbox_row_unreadable", id=queued.id, action_id=queued.subject_id, event=queued.event_type)
            return
        state = await self.ledger.read(queued.subject_id)
        known = results.as_in_ledger(data, state)
        fault = "ledger" if known is None else results.contradiction(data, queued)
        if known is None or fault is not None:
            # The row stays where it is, and is complained about until a person has looked.
            self._alarm("outbox_row_contradicts", id=queued.id, action_id=queued.subject_id, fault=fault)
            return
        await self._append(state, queued, known)
        self._done.append(queued.id)

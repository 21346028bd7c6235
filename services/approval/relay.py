"""From the stop in Postgres to the event in the ledger: at once by the command, and by the relay until it is there.

Runs on every replica: at least once, a deterministic event id and a compare-and-set make it once.
Source: design, bus sections 7 (Revoke) and 8 (outbox).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import structlog
from pydantic import ValidationError

from remit.commands import Reply
from remit.errors import TransientError
from remit.events import RemitRevoked, RemitRevokedEvent, Revoked
from remit.runtime.ledger import Draft, Ledger, Superseded, SupersededRemit
from services.approval.decide import decide_revocation, decide_withdrawal
from services.approval.outbox_store import ACTION_REVOKED

if TYPE_CHECKING:
    from remit.runtime.telemetry import Telemetry
    from services.approval.outbox_store import OutboxStore, Queued
    from services.approval.remit_store import RemitStore
    from services.approval.store import ActionStore

log = structlog.get_logger("approval.relay")

BATCH = 100
MAX_REDECISIONS = 8
"""A revocation races with the whole pipeline, which has fewer steps than this."""

Delivered = Literal["recorded", "awaits_grant", "kept_moving"]
"""`awaits_grant`: the stop holds, but the remit it ends is not in the ledger; should its grant still come, this follows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Relay:
    """Appends what revocations left in the outbox."""

    ledger: Ledger
    outbox: OutboxStore
    store: ActionStore
    remits: RemitStore
    telemetry: Telemetry
    pause_s: float
    after_s: float

    async def run(self) -> None:
        """Relay for ever; while a dependency is away the next pass finds the same rows."""
        while True:
            await asyncio.sleep(self.pause_s)
            try:
                await self.sweep()
            except TransientError as error:
                log.warning("relay broken off", detail=str(error))

    async def sweep(self) -> None:
        """Deliver every row that its own command has had time to deliver; one that waits holds up no other."""
        last = 0
        while rows := await self.outbox.undone(after_id=last, older_than_s=self.after_s, limit=BATCH):
            for row in rows:
                await self.deliver(row)
            last = rows[-1].id

    async def settle(self, subject_id: str) -> None:
        """Deliver what is queued about one remit or action, now."""
        for row in await self.outbox.undone_for(subject_id):
            await self.deliver(row)

    async def deliver(self, row: Queued) -> Delivered:
        """Append the event of a row unless it is there, and delete the row once nothing is left to do.

        Raises:
            TransientError: Postgres or the broker is away; the row stays.

        """
        try:
            delivered = await (self._action(row) if row.event_type == ACTION_REVOKED else self._remit(row))
        except ValidationError:
            self.telemetry.alarms.labels(kind="outbox_row_unreadable").inc()
            log.error("outbox row cannot be read", id=row.id, subject=row.subject_id, event=row.event_type)  # noqa: TRY400  (the values stay out)
            return "kept_moving"
        if delivered == "recorded" or (delivered == "awaits_grant" and await self.remits.is_over(row.subject_id)):
            await self.outbox.done(row)
        return delivered

    async def _action(self, row: Queued) -> Delivered:
        # Lax, because JSON from the database spells enums and times as strings; the types are checked all the same.
        data = Revoked.model_validate(row.data, strict=False)
        state = await self.ledger.read(row.subject_id)
        for _ in range(MAX_REDECISIONS):
            decision = decide_revocation(state, by=data.by, cause=data.cause, discriminator=row.discriminator)
            if isinstance(decision, Reply):
                await self.store.close(row.subject_id)
                return "recorded"
            try:
                state = await self.ledger.append(state, decision)
            except Superseded as lost:
                state = lost.state
        return "kept_moving"

    async def _remit(self, row: Queued) -> Delivered:
        data = RemitRevoked.model_validate(row.data, strict=False)
        state = await self.ledger.read_remit(row.subject_id)
        for _ in range(MAX_REDECISIONS):
            if state.status in {"revoked", "none"}:
                break
            try:
                state = await self.ledger.append_remit(state, Draft(event=RemitRevokedEvent, data=data))
            except SupersededRemit as lost:
                state = lost.state
        if state.status == "none":
            return "awaits_grant"
        if state.status != "revoked":
            return "kept_moving"
        for action_id in await self.store.open_under(row.subject_id):
            await self._withdraw(action_id, data)
        return "recorded"

    async def _withdraw(self, action_id: str, data: RemitRevoked) -> None:
        state = await self.ledger.read(action_id)
        for _ in range(MAX_REDECISIONS):
            draft = decide_withdrawal(state, by=data.by, cause=data.cause)
            if draft is None:
                return
            try:
                state = await self.ledger.append(state, draft)
            except Superseded as lost:
                state = lost.state
                continue
            await self.store.close(action_id)
            return

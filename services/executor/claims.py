"""The last fence before an effect: claims, outcomes and the outbox in Postgres, each change one statement and one round trip.

A row leaves `in_flight` only through the claim id that holds it, so a caller that was overtaken changes nothing.
Source: design, bus section 7.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import asyncpg
import orjson

from remit.errors import TransientError
from remit.ids import fresh_key
from remit.runtime.crash import crash_point
from remit.runtime.postgres import UNWILLING
from services.executor import rows
from services.executor.results import without_result
from services.executor.rows import Queued, Refusal, Row, as_draft, queued_of, row_of, storable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from remit.events import Executed
    from services.executor.decide import Order

Found = TypeVar("Found")
CLAIMED, EXISTS, EVIDENCE_STALE, TAKEN = "claimed", "exists", "evidence_stale", "taken"
CLAIM_TRIES = 3
LEASE_S = 15.0
"""How long an interrupted claim belongs to the sweeper that found it."""


class ClaimStore:
    """Statements over `control`; every method raises TransientError while Postgres cannot answer."""

    def __init__(self, *, replica: str, evidence_max_age_s: float) -> None:
        self._replica, self._evidence_max_age_s = replica, evidence_max_age_s
        self._attached: asyncpg.Pool[asyncpg.Record] | None = None

    def attach(self, pool: asyncpg.Pool[asyncpg.Record]) -> None:
        """Use this pool from now on; it exists only after the service has started."""
        self._attached = pool

    async def close(self) -> None:
        """Close the pool if there is one."""
        if self._attached is not None:
            await self._attached.close()

    @property
    def _pool(self) -> asyncpg.Pool[asyncpg.Record]:
        if self._attached is None:
            raise TransientError("not connected to Postgres yet")
        return self._attached

    async def claim(self, order: Order, claim_id: str) -> str:
        """Ask for the right to call; return `claimed`, `exists`, `evidence_stale`, or the reason of a stored refusal.

        A lost answer leaves the commit in doubt, so the same claim is sent again. The claim id is that of the announcement
        and others may send it too: whoever is told `exists` and finds their own nonce in the row holds it.

        Raises:
            TransientError: Postgres did not answer; whether the row exists is settled at the next delivery.

        """
        nonce = fresh_key()
        arguments = (
            order.action_id, order.jti, order.remit_id, order.grant_no, order.attempt, order.args_digest, claim_id,
            self._replica, order.deadline_s, order.expires_at, order.human, order.agent, order.action.id,
            self._evidence_max_age_s, nonce, order.block_class,
        )  # fmt: skip
        for last in range(CLAIM_TRIES):
            try:
                answer = await self._ask(arguments)
            except UNWILLING as error:
                if last == CLAIM_TRIES - 1:
                    raise TransientError(f"claim of {order.action_id} got no answer: {type(error).__name__}") from None
                await asyncio.sleep(0.2 * (last + 1))
                continue
            is_ours = answer == EXISTS and last > 0 and await self._is_ours(order.action_id, nonce)
            return CLAIMED if is_ours else answer
        raise AssertionError

    async def _ask(self, arguments: tuple[Any, ...]) -> str:
        async with self._pool.acquire() as connection:
            asyncio.get_running_loop().call_soon(crash_point, "executor", "X2")
            return await connection.fetchval(rows.CLAIM, *arguments)

    async def _is_ours(self, action_id: str, nonce: str) -> bool:
        return bool(await _answered(self._pool.fetchval(rows.IS_OURS, action_id, nonce)))

    async def may_send(self, order: Order, claim_id: str) -> bool:
        """Ask the fence again before a call is repeated or sent late; moves the claim's deadline when it may."""
        return await _answered(
            self._pool.fetchval(
                rows.MAY_SEND, order.action_id, claim_id, order.expires_at, order.deadline_s, self._evidence_max_age_s
            )
        )

    async def queue_again(self, action_id: str, claim_id: str) -> None:
        """Queue the outcome of a concluded claim, unless it is queued: a ledger restored from a backup may have lost it."""
        await _answered(self._pool.execute(rows.QUEUE_AGAIN, action_id, claim_id))

    async def row(self, action_id: str) -> Row | None:
        """Return the action's row, or None."""
        found = await _answered(self._pool.fetchrow(rows.ROW, action_id))
        return None if found is None else row_of(found)

    async def refuse(self, claimed: Refusal) -> bool:
        """Occupy an announced action's row with a refusal, so that nobody can claim it any more; False when it has a row.

        Needed only after `started`: another replica may be about to claim what this one refuses.
        """
        arguments = (
            claimed.action_id,
            claimed.remit_id,
            claimed.attempt,
            claimed.claim_id,
            self._replica,
            claimed.reason,
        )
        return await _answered(self._pool.fetchval(rows.REFUSE, *arguments))

    async def conclude(self, *, action_id: str, claim_id: str, data: Executed) -> Queued | None:
        """Store an outcome and its event in one transaction; None when the claim is not held or already concluded.

        An `unknown` may be replaced once by what the same claim learns later; its event then has its own discriminator.
        What Postgres cannot store costs the result, never the outcome.
        """
        try:
            return await self._conclude(action_id, claim_id, data, as_draft(data))
        except asyncpg.DataError:
            draft = storable(as_draft(without_result(data)))
        found = await self._conclude(action_id, claim_id, data, draft)
        return None if found is None else replace(found, is_stripped=True)

    async def _conclude(self, action_id: str, claim_id: str, data: Executed, draft: bytes) -> Queued | None:
        arguments = (action_id, claim_id, str(data.outcome), draft.decode(), str(data.attempt))
        found = await _answered(self._pool.fetchrow(rows.CONCLUDE, *arguments))
        if found is None:
            return None
        return Queued(
            id=found["id"], subject_id=action_id, event_type="executed", discriminator=found["discriminator"],
            draft=orjson.loads(draft),
        )  # fmt: skip

    async def keep_late(self, data: Executed) -> None:
        """Keep an outcome that came after another one was concluded: evidence for people, never appended."""
        draft = storable(as_draft(data)).decode()
        await _answered(self._pool.execute(rows.KEEP_LATE, data.txn, data.claim_id, draft))

    async def take_over(self, row: Row, *, claim_id: str, deadline_s: float) -> bool:
        """Continue an interrupted claim under a new id: once, and only while nothing was stopped or ended since.

        Raises:
            TransientError: nobody writes the evidence at present, or Postgres does not answer; ask again later.

        """
        answer = await _answered(
            self._pool.fetchval(
                rows.TAKE_OVER,
                row.action_id,
                row.claim_id,
                claim_id,
                self._replica,
                deadline_s,
                self._evidence_max_age_s,
            )
        )
        if answer == EVIDENCE_STALE:
            raise TransientError(f"action {row.action_id} waits for the projector; evidence gates effect")
        return answer == TAKEN

    async def lease_interrupted(self, limit: int) -> list[Row]:
        """Return claims past their deadline; each is this replica's for `LEASE_S` seconds."""
        return [row_of(found) for found in await _answered(self._pool.fetch(rows.LEASE, LEASE_S, limit))]

    async def undone(self, *, after_id: int = 0, older_than_s: float, limit: int) -> list[Queued]:
        """Return outbox rows beyond an id whose event may not be in the ledger yet, oldest first."""
        found = await _answered(self._pool.fetch(rows.UNDONE, after_id, older_than_s, limit))
        return [queued_of(each) for each in found]

    async def mark_done(self, ids: Sequence[int]) -> None:
        """Delete rows whose events are in the ledger: what they said stands there and in `execution`."""
        await _answered(self._pool.execute(rows.DONE, list(ids)))

    async def evidence_age_s(self) -> float | None:
        """Return the age of the projector's heartbeat, or None when there never was one."""
        return await _answered(self._pool.fetchval(rows.EVIDENCE_AGE))


async def _answered(question: Awaitable[Found]) -> Found:
    try:
        return await question
    except UNWILLING as error:
        raise TransientError(f"Postgres does not answer: {type(error).__name__}") from None

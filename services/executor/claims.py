"""The last fence before an effect: claims, outcomes and the outbox in Postgres, each change one statement and one round trip.

A row leaves `in_flight` only through the claim id that holds it, so a caller that was overtaken changes nothing.
Source: design, bus section 7.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import asyncpg
import orjson

from remit.errors import TransientError
from remit.runtime.crash import crash_point

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from remit.events import Executed
    from services.executor.decide import Order

Found = TypeVar("Found")
CLAIMED, EXISTS, EVIDENCE_STALE = "claimed", "exists", "evidence_stale"
DOWN = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.TransactionRollbackError,
    asyncpg.InterfaceError,
)
"""What a server that stops, restarts, is full, read-only or unreachable makes asyncpg raise."""
CLAIM_TRIES = 3
LEASE_S = 15.0
"""How long an interrupted claim belongs to the sweeper that found it."""

_CLAIM = "SELECT control.claim($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)"
_ROW = (
    "SELECT action_id, claim_id, attempt, args_digest, state, reason, draft FROM control.execution WHERE action_id = $1"
)
_REFUSE = """
INSERT INTO control.execution (action_id, remit_id, attempt, claim_id, executor, state, reason, finished_at)
VALUES ($1, $2, $3, $4, $5, 'refused', $6, clock_timestamp())
ON CONFLICT (action_id) DO NOTHING
RETURNING action_id
"""
_CONCLUDE = """
WITH held AS (
    SELECT action_id, state FROM control.execution
    WHERE action_id = $1 AND claim_id = $2 AND (state = 'in_flight' OR (state = 'unknown' AND $3 <> 'unknown'))
    FOR UPDATE
), done AS (
    UPDATE control.execution AS e SET state = $3, finished_at = clock_timestamp(), draft = $4::jsonb
    FROM held WHERE e.action_id = held.action_id
)
INSERT INTO control.outbox (service, subject_id, event_type, discriminator, draft)
SELECT 'executor', action_id, 'executed', CASE state WHEN 'unknown' THEN $5 || ':resolved' ELSE $5 END, $4::jsonb FROM held
RETURNING id, discriminator
"""
_TAKE_OVER = "SELECT control.take_over($1, $2, $3, $4, $5)"
_LEASE = """
UPDATE control.execution AS e SET deadline = clock_timestamp() + make_interval(secs => $1)
WHERE e.action_id IN (
    SELECT action_id FROM control.execution WHERE state = 'in_flight' AND deadline < clock_timestamp()
    ORDER BY deadline LIMIT $2 FOR UPDATE SKIP LOCKED
)
RETURNING e.action_id, e.claim_id, e.attempt, e.args_digest, e.state, e.reason, e.draft
"""
_UNDONE = """
SELECT id, subject_id, event_type, discriminator, draft FROM control.outbox
WHERE service = 'executor' AND done_at IS NULL AND created_at < clock_timestamp() - make_interval(secs => $1)
ORDER BY created_at LIMIT $2
"""
_DONE = "DELETE FROM control.outbox WHERE id = ANY($1::bigint[])"
_EVIDENCE_AGE = (
    "SELECT extract(epoch FROM clock_timestamp() - at)::float8 FROM control.heartbeat WHERE service = 'audit'"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of `control.execution`; `claim_id` is None where approval refused the action in advance."""

    action_id: str
    claim_id: str | None
    attempt: int
    args_digest: str | None
    state: str
    reason: str | None
    draft: dict[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """What a refused row says."""

    action_id: str
    remit_id: str
    attempt: int
    claim_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Queued:
    """One outbox row: the event is true, and must be appended under this discriminator."""

    id: int
    subject_id: str
    event_type: str
    discriminator: str
    draft: dict[str, Any]


def as_draft(data: Executed) -> bytes:
    """Return what execution and outbox store of an event."""
    return orjson.dumps({"data": data.model_dump(mode="json", exclude_none=True)})


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

        A lost answer leaves the commit in doubt, so the same claim is sent again: whoever is told `exists` and finds
        their own claim id in the row holds it.

        Raises:
            TransientError: Postgres did not answer; whether the row exists is settled at the next delivery.

        """
        arguments = (
            order.action_id, order.jti, order.remit_id, order.grant_no, order.attempt, order.args_digest, claim_id,
            self._replica, order.deadline_s, order.expires_at, order.human, order.agent, order.action.id,
            self._evidence_max_age_s,
        )  # fmt: skip
        for last in range(CLAIM_TRIES):
            try:
                return await self._ask(arguments)
            except DOWN as error:
                if last == CLAIM_TRIES - 1:
                    raise TransientError(f"claim of {order.action_id} got no answer: {type(error).__name__}") from None
                await asyncio.sleep(0.2 * (last + 1))
        raise AssertionError

    async def _ask(self, arguments: tuple[Any, ...]) -> str:
        async with self._pool.acquire() as connection:
            asyncio.get_running_loop().call_soon(crash_point, "executor", "X2")
            return await connection.fetchval(_CLAIM, *arguments)

    async def row(self, action_id: str) -> Row | None:
        """Return the action's row, or None."""
        found = await _answered(self._pool.fetchrow(_ROW, action_id))
        return None if found is None else _row(found)

    async def refuse(self, claimed: Refusal) -> bool:
        """Occupy an announced action's row with a refusal, so that nobody can claim it any more; False when it has a row.

        Needed only after `started`: another replica may be about to claim what this one refuses.
        """
        return (
            await _answered(
                self._pool.fetchval(
                    _REFUSE,
                    claimed.action_id,
                    claimed.remit_id,
                    claimed.attempt,
                    claimed.claim_id,
                    self._replica,
                    claimed.reason,
                )
            )
            is not None
        )

    async def conclude(self, *, action_id: str, claim_id: str, data: Executed) -> Queued | None:
        """Store an outcome and its event in one transaction; None when the claim is not held or already concluded.

        An `unknown` may be replaced once by what the same claim learns later; its event then has its own discriminator.
        """
        draft = as_draft(data)
        found = await _answered(
            self._pool.fetchrow(_CONCLUDE, action_id, claim_id, str(data.outcome), draft.decode(), str(data.attempt))
        )
        if found is None:
            return None
        return Queued(
            id=found["id"], subject_id=action_id, event_type="executed", discriminator=found["discriminator"],
            draft=orjson.loads(draft),
        )  # fmt: skip

    async def take_over(self, row: Row, *, claim_id: str, deadline_s: float) -> bool:
        """Continue an interrupted claim under a new id: once, and only while nothing was stopped or ended since."""
        return await _answered(
            self._pool.fetchval(_TAKE_OVER, row.action_id, row.claim_id, claim_id, self._replica, deadline_s)
        )

    async def lease_interrupted(self, limit: int) -> list[Row]:
        """Return claims past their deadline; each is this replica's for `LEASE_S` seconds."""
        return [_row(found) for found in await _answered(self._pool.fetch(_LEASE, LEASE_S, limit))]

    async def undone(self, *, older_than_s: float, limit: int) -> list[Queued]:
        """Return outbox rows whose event may not be in the ledger yet, oldest first."""
        return [
            Queued(
                id=row["id"], subject_id=row["subject_id"], event_type=row["event_type"],
                discriminator=row["discriminator"], draft=orjson.loads(row["draft"]),
            )
            for row in await _answered(self._pool.fetch(_UNDONE, older_than_s, limit))
        ]  # fmt: skip

    async def mark_done(self, ids: Sequence[int]) -> None:
        """Delete rows whose events are in the ledger: what they said stands there and in `execution`."""
        await _answered(self._pool.execute(_DONE, list(ids)))

    async def evidence_age_s(self) -> float | None:
        """Return the age of the projector's heartbeat, or None when there never was one."""
        return await _answered(self._pool.fetchval(_EVIDENCE_AGE))


def _row(found: asyncpg.Record) -> Row:
    draft = found["draft"]
    return Row(
        action_id=found["action_id"], claim_id=found["claim_id"], attempt=found["attempt"],
        args_digest=found["args_digest"], state=found["state"], reason=found["reason"],
        draft=None if draft is None else orjson.loads(draft),
    )  # fmt: skip


async def _answered(question: Awaitable[Found]) -> Found:
    try:
        return await question
    except DOWN as error:
        raise TransientError(f"Postgres does not answer: {type(error).__name__}") from None

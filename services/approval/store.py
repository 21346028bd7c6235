"""SQL of open approvals, blocks and single actions in schema `control`.

Rows here are aids: the ledger holds the truth of an approval, the primary key of `execution` that of a claim.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from remit.remits import Human
from services.approval.outbox_store import ACTION_REVOKED, queue, undone_for

if TYPE_CHECKING:
    from datetime import datetime

    from remit.events import ActionApprovalRequested, ApprovalRequested, Executed, Revoked
    from services.approval.database import Database
    from services.approval.outbox_store import Queued

SWEEP_ROWS = 100
"""Rows taken by one sweep; the rest waits for the next, and other replicas take them meanwhile."""


@dataclass(frozen=True, slots=True)
class Overdue:
    """Open approvals whose deadline has passed, and the database's clock that says so."""

    action_ids: tuple[str, ...]
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """What a denial forbids: one kind of action under one remit, for some seconds; `session` is where it was denied."""

    remit_id: str
    session: str
    block_class: str
    reason: str
    by: Human
    seconds: float


@dataclass(frozen=True, slots=True)
class Denied:
    """Why, and by whom, a kind of action is blocked."""

    reason: str
    by: Human


@dataclass(frozen=True, slots=True)
class Forestalled:
    """Either the action's execution row is ours, and what is to be recorded; or an earlier row and its reason."""

    queued: list[Queued]
    earlier: tuple[str, str | None] | None = None


class ActionStore:
    """What approval keeps about single actions."""

    def __init__(self, database: Database) -> None:
        """Use a database that is attached later."""
        self._db = database

    async def is_exhausted(self, remit_id: str, grant_no: int | None) -> bool:
        """Return whether the remit or the grant has no calls left; advisory, the claim counts strictly."""
        rows = await self._db.fetch(
            "SELECT FROM control.budget WHERE remit_id = $1 AND grant_no IN (0, $2) AND used >= max_calls",
            remit_id,
            grant_no or 0,
        )
        return bool(rows)

    async def blocked(self, remit_id: str, block_class: str) -> Denied | None:
        """Return the newest denial that blocks this kind of action under the remit, or None.

        Whatever session it was denied in: agents name their sessions themselves, and a new name would lift the block.
        """
        rows = await self._db.fetch(
            "SELECT reason, by_iss, by_sub FROM control.block WHERE remit_id = $1 AND class = $2"
            " AND (expires_at IS NULL OR expires_at > clock_timestamp()) ORDER BY created_at DESC LIMIT 1",
            remit_id,
            block_class,
        )
        if not rows:
            return None
        return Denied(rows[0]["reason"], Human(iss=rows[0]["by_iss"], sub=rows[0]["by_sub"]))

    async def open(self, said: ApprovalRequested, expires_at: datetime, requested_seq: int) -> None:
        """Note an approval before it is asked for, so that the sweeper knows it whatever crashes next."""
        await self._db.execute(
            "INSERT INTO control.pending (action_id, remit_id, expires_at, approvers, quorum, round,"
            " requested_seq) VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (action_id) DO NOTHING",
            said.txn,
            said.remit_id,
            expires_at,
            said.approvers,
            said.quorum,
            said.round,
            requested_seq,
        )

    async def next_round(self, request: ActionApprovalRequested, seq: int) -> None:
        """Note that a vote was counted and more are needed."""
        await self._db.execute(
            "UPDATE control.pending SET round = $2, requested_seq = $3 WHERE action_id = $1 AND round < $2",
            request.subject,
            request.data.round,
            seq,
        )

    async def close(self, action_id: str) -> None:
        """Forget an approval that is no longer open."""
        await self._db.execute("DELETE FROM control.pending WHERE action_id = $1", action_id)

    async def overdue(self) -> Overdue:
        """Return open approvals past their deadline by the database's clock, oldest first."""
        rows = await self._db.fetch(
            "SELECT clock.now, p.action_id FROM (SELECT clock_timestamp() AS now) AS clock"
            " LEFT JOIN LATERAL (SELECT action_id FROM control.pending WHERE expires_at <= clock.now"
            " ORDER BY expires_at LIMIT $1) AS p ON true",
            SWEEP_ROWS,
        )
        return Overdue(tuple(row["action_id"] for row in rows if row["action_id"]), rows[0]["now"])

    async def open_under(self, remit_id: str) -> list[str]:
        """Return the actions under a remit that wait for people."""
        rows = await self._db.fetch("SELECT action_id FROM control.pending WHERE remit_id = $1", remit_id)
        return [row["action_id"] for row in rows]

    async def block(self, block: Block) -> None:
        """Block the like of a denied action for its remit; waits for claims in progress, and no later one passes."""
        await self._db.execute(
            "INSERT INTO control.block (remit_id, session, class, reason, by_iss, by_sub, expires_at)"
            " VALUES ($1, $2, $3, $4, $5, $6, clock_timestamp() + make_interval(secs => $7))"
            " ON CONFLICT (remit_id, session, class) DO UPDATE SET reason = excluded.reason,"
            " by_iss = excluded.by_iss, by_sub = excluded.by_sub, expires_at = excluded.expires_at",
            block.remit_id,
            block.session,
            block.block_class,
            block.reason,
            block.by.iss,
            block.by.sub,
            block.seconds,
        )

    async def forestall(self, revoked: Revoked, discriminator: str) -> Forestalled:
        """Take the action's one execution row so that no claim can, and queue the event in the same transaction.

        Waits for a claim in progress: the primary key decides who was first. The row says who revoked and why; the
        first revocation stands, and its event is queued again if it is not known to be in the ledger.
        """
        by = {"iss": revoked.by.iss, "sub": revoked.by.sub}
        async with self._db.transaction() as connection:
            inserted = await connection.fetchrow(
                "INSERT INTO control.execution (action_id, remit_id, state, reason, finished_at, request)"
                " VALUES ($1, $2, 'refused', 'revoked', clock_timestamp(), $3::jsonb)"
                " ON CONFLICT (action_id) DO NOTHING RETURNING action_id",
                revoked.txn,
                revoked.remit_id,
                json.dumps({"revoked_by": by, "cause": revoked.cause}),
            )
            if inserted is None:
                row = await connection.fetchrow(
                    "SELECT state, reason FROM control.execution WHERE action_id = $1", revoked.txn
                )
                if row is not None and (row["state"], row["reason"]) != ("refused", "revoked"):
                    return Forestalled([], (row["state"], row["reason"]))
            found = await undone_for(connection, revoked.txn)
            if not found:
                await queue(connection, revoked.txn, ACTION_REVOKED, revoked, discriminator)
                found = await undone_for(connection, revoked.txn)
        return Forestalled(found)

    async def resolve(self, action_id: str, executed: Executed, discriminator: str) -> bool:
        """Hand a person's finding to the executor, whose event it is; False when nothing is unknown any more.

        Outbox row and new state are one transaction, so the finding is neither lost nor entered twice.
        """
        draft = json.dumps({"data": executed.model_dump(mode="json", exclude_none=True), "expirytime": None})
        async with self._db.transaction() as connection:
            row = await connection.fetchrow(
                "UPDATE control.execution SET state = $2, draft = $3::jsonb, finished_at = clock_timestamp()"
                " WHERE action_id = $1 AND state = 'unknown' RETURNING action_id",
                action_id,
                executed.outcome.value,
                draft,
            )
            if row is None:
                return False
            await connection.execute(
                "INSERT INTO control.outbox (service, subject_id, event_type, discriminator, draft)"
                " VALUES ('executor', $1, 'executed', $2, $3::jsonb)",
                action_id,
                discriminator,
                draft,
            )
        return True

"""Rows of schema `control` as the executor sees them, and the statements that make, change and read them.

Claims themselves are functions of the database (`infra/postgres/migrations`); this role can change no more of a row than its
outcome and its deadline.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    import asyncpg

    from remit.events import Executed

LATE = "executed_late"
"""Event type of an outbox row that is evidence only: what a caller learned after its claim was concluded otherwise."""
UNSTORABLE, STANDS_FOR_IT = "\x00", "\ufffd"
"""Postgres stores U+0000 in no text; U+FFFD stands for what could not be represented (Unicode, chapter 23)."""

_COLUMNS = "{0}.action_id, {0}.claim_id, {0}.attempt, {0}.args_digest, {0}.state, {0}.reason, {0}.draft"
CLAIM = "SELECT control.claim($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)"
IS_OURS = "SELECT state = 'in_flight' AND request ->> 'nonce' = $2 FROM control.execution WHERE action_id = $1"
MAY_SEND = "SELECT control.may_send($1, $2, $3, $4, $5)"
TAKE_OVER = "SELECT control.take_over($1, $2, $3, $4, $5, $6)"
REFUSE = "SELECT control.refuse($1, $2, $3, $4, $5, $6)"
ROW = f"SELECT {_COLUMNS.format('e')} FROM control.execution AS e WHERE e.action_id = $1"
CONCLUDE = """
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
KEEP_LATE = f"""
INSERT INTO control.outbox (service, subject_id, event_type, discriminator, draft, done_at)
VALUES ('executor', $1, '{LATE}', $2, $3::jsonb, clock_timestamp())
"""
LEASE = f"""
UPDATE control.execution AS e SET deadline = clock_timestamp() + make_interval(secs => $1)
WHERE e.action_id IN (
    SELECT action_id FROM control.execution WHERE state = 'in_flight' AND deadline < clock_timestamp()
    ORDER BY deadline LIMIT $2 FOR UPDATE SKIP LOCKED
)
RETURNING {_COLUMNS.format("e")}
"""
UNDONE = f"""
SELECT o.id, o.subject_id, o.event_type, o.discriminator, o.draft AS queued, {_COLUMNS.format("e")}
FROM control.outbox AS o LEFT JOIN control.execution AS e ON e.action_id = o.subject_id
WHERE o.service = 'executor' AND o.done_at IS NULL AND o.id > $1
  AND o.created_at < clock_timestamp() - make_interval(secs => $2)
ORDER BY o.id LIMIT $3
"""
QUEUE_AGAIN = """
INSERT INTO control.outbox (service, subject_id, event_type, discriminator, draft)
SELECT 'executor', e.action_id, 'executed', e.attempt::text, e.draft FROM control.execution AS e
WHERE e.action_id = $1 AND e.claim_id = $2 AND e.state IN ('succeeded', 'failed', 'unknown') AND e.draft IS NOT NULL
  AND NOT e.draft -> 'data' ? 'finding'
  AND NOT EXISTS (SELECT FROM control.outbox AS o WHERE o.service = 'executor' AND o.subject_id = e.action_id)
"""
DONE = "DELETE FROM control.outbox WHERE id = ANY($1::bigint[])"
EVIDENCE_AGE = (
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
    """One outbox row: the event is true, and must be appended under this discriminator.

    `row` is the execution it speaks of, as read in the same statement. `is_stripped` says that the result had to stay out.
    """

    id: int
    subject_id: str
    event_type: str
    discriminator: str
    draft: dict[str, Any]
    row: Row | None = None
    is_stripped: bool = False


def as_draft(data: Executed) -> bytes:
    """Return what execution and outbox store of an event."""
    return orjson.dumps({"data": data.model_dump(mode="json", exclude_none=True)})


def storable(draft: bytes) -> bytes:
    """Return a draft that Postgres can store in any case."""
    return orjson.dumps(_printable(orjson.loads(draft)))


def row_of(found: asyncpg.Record) -> Row:
    """Return a row of `control.execution`."""
    draft = found["draft"]
    return Row(
        action_id=found["action_id"], claim_id=found["claim_id"], attempt=found["attempt"],
        args_digest=found["args_digest"], state=found["state"], reason=found["reason"],
        draft=None if draft is None else orjson.loads(draft),
    )  # fmt: skip


def queued_of(found: asyncpg.Record) -> Queued:
    """Return an outbox row beside its execution."""
    return Queued(
        id=found["id"], subject_id=found["subject_id"], event_type=found["event_type"],
        discriminator=found["discriminator"], draft=orjson.loads(found["queued"]),
        row=None if found["action_id"] is None else row_of(found),
    )  # fmt: skip


def _printable(value: Any) -> Any:  # noqa: ANN401  (any JSON value)
    if isinstance(value, str):
        return value.replace(UNSTORABLE, STANDS_FOR_IT)
    if isinstance(value, list):
        return [_printable(each) for each in value]
    if isinstance(value, dict):
        return {_printable(name): _printable(member) for name, member in value.items()}
    return value

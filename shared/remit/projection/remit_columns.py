"""What a remit's events add up to: one row of `audit.remits` and one of `audit.grants` for each grant. Pure.

Uses are counted elsewhere: a row made here starts from what the actions so far have used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from remit.events import RemitAmendedEvent, RemitExhaustedEvent, RemitGrantedEvent, RemitRevokedEvent
from remit.projection.display import redact_text
from remit.projection.fields import clean, clean_or_none, person, small, stamp
from remit.projection.shapes import grant_shape, task_shape

if TYPE_CHECKING:
    from datetime import datetime

    from remit.events import RemitEvent
    from remit.projection.tracking import Row
    from remit.remits import Grant, RemitDocument

MAX_TASK = 4_000


def remit_row(event: RemitEvent, seq: int) -> Row:
    """Return the columns this event fixes; columns that it leaves alone are absent."""
    row: Row = {"remit_id": event.subject, "version": event.n, "last_seq": seq}
    match event:
        case RemitGrantedEvent():
            return row | _terms(event.data.remit) | _granted(event, seq)
        case RemitAmendedEvent():
            return row | _terms(event.data.remit) | {"digest": event.data.remit_digest, "status": "active"}
        case RemitRevokedEvent():
            return row | _ended(event.time, "revoked", event.data.cause)
        case RemitExhaustedEvent():
            return row | _ended(event.time, "exhausted", "budget spent")


def _granted(event: RemitGrantedEvent, seq: int) -> Row:
    return {
        "digest": event.data.remit_digest,
        "status": "active",
        "granted_at": stamp(event.time),
        "granted_seq": seq,
        "granted_by": person(event.data.by),
    }


def _ended(at: datetime, status: str, reason: str) -> Row:
    return {"status": status, "ended_at": stamp(at), "ended_reason": clean(reason)}


def _terms(remit: RemitDocument) -> Row:
    return {
        "human": person(remit.human),
        "human_iss": clean(remit.human.iss),
        "human_sub": clean(remit.human.sub),
        "agent_id": clean(remit.agent_id),
        "agent_pin": remit.agent_pin.model_dump(mode="json", exclude_none=True) if remit.agent_pin else None,
        "task": clean_or_none(redact_text(remit.task), MAX_TASK),
        "task_shape": task_shape(remit.task),
        "environment": clean(remit.environment),
        "not_before": stamp(remit.not_before),
        "expires_at": stamp(remit.expires_at),
        "max_calls": small(remit.max_calls),
    }


def grant_rows(event: RemitEvent) -> list[Row]:
    """Return one row per grant when an event brings terms; grant numbers count from 1, as in the claim's budget."""
    if not isinstance(event, RemitGrantedEvent | RemitAmendedEvent):
        return []
    remit = event.data.remit
    return [_grant(remit, number, grant, event.time) for number, grant in enumerate(remit.grants, 1)]


def _grant(remit: RemitDocument, number: int, grant: Grant, at: datetime) -> dict[str, Any]:
    return {
        "remit_id": remit.remit_id,
        "grant_no": number,
        "agent_id": clean(remit.agent_id),
        "human": person(remit.human),
        "tool": clean(grant.tool),
        "action": clean(grant.action),
        "arguments": grant.arguments,
        "shape_digest": grant_shape(grant.tool, grant.action, grant.arguments),
        "max_calls": None if grant.max_calls is None else small(grant.max_calls),
        "granted_at": stamp(at),
        "expires_at": stamp(grant.expires_at or remit.expires_at),
    }

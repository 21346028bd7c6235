"""What is left behind by a run: the ledger's events, the claims in Postgres, the oracle's own log. Gathered, not judged."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from tests.faults.oracle import Effect
    from tests.faults.workload import Sent
    from tests.faults.world import World

EVENTS = """
    select action_id, n, type, stream_seq, recorded_at, body, verify_status from audit.audit_event
    where stream = 'ACTIONS' and action_id = any($1) order by stream_seq
"""
CLAIMS = """
    select action_id, jti, state, args_digest, claimed_at, deadline < clock_timestamp() as overdue
    from control.execution where action_id = any($1)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One stored event of an action, as the audit database holds it."""

    action_id: str
    n: int
    type: str
    seq: int
    stored_at: datetime
    status: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One row of `control.execution`."""

    action_id: str
    jti: str | None
    state: str
    args_digest: str | None
    claimed_at: datetime
    overdue: bool


@dataclass(slots=True, kw_only=True)
class Evidence:
    """Everything that the invariants are judged by."""

    sent: list[Sent]
    events: dict[str, list[Event]]
    claims: dict[str, Claim]
    effects: dict[str, list[Effect]] = field(default_factory=dict[str, Any])

    def valid(self, action_id: str) -> list[Event]:
        """Return the folded events of an action in order."""
        return [event for event in self.events.get(action_id, []) if event.status == "valid"]


def effects_of(effects: Iterable[Effect], wanted: set[str], known: set[str]) -> dict[str, list[Effect]]:
    """Return the effects of some actions by key, and those of keys that nobody proposed: they concern every run."""
    found: dict[str, list[Effect]] = {}
    for effect in effects:
        if effect.key in wanted or effect.key not in known:
            found.setdefault(effect.key, []).append(effect)
    return found


async def gather(world: World, sent: list[Sent]) -> Evidence:
    """Collect what there is about some proposals, and about whatever else had an effect without being one."""
    effects = effects_of(await world.effects(), {each.action_id for each in sent}, set(world.workload.sent))
    ids = [*{*effects, *(each.action_id for each in sent)}]
    events: dict[str, list[Event]] = {}
    for row in await world.admin.fetch(EVENTS, ids):
        events.setdefault(row["action_id"], []).append(_event(row))
    claims = {
        row["action_id"]: Claim(
            action_id=row["action_id"], jti=row["jti"], state=row["state"], args_digest=row["args_digest"],
            claimed_at=row["claimed_at"], overdue=bool(row["overdue"]),
        )
        for row in await world.admin.fetch(CLAIMS, ids)
    }  # fmt: skip
    return Evidence(sent=sent, events=events, claims=claims, effects=effects)


def _event(row: Any) -> Event:
    try:
        data = orjson.loads(row["body"]).get("data", {})
    except (orjson.JSONDecodeError, AttributeError):
        data = {}
    return Event(
        action_id=row["action_id"], n=row["n"] or 0, type=row["type"] or "", seq=row["stream_seq"],
        stored_at=row["recorded_at"], status=row["verify_status"], data=data if isinstance(data, dict) else {},
    )  # fmt: skip

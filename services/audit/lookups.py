"""Work lists of the projector's companions, read beside its own connection: overdue receipts, actions that stand still."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.audit.database import Pool, answering
from services.audit.project import restore
from services.audit.reconciler import Standing
from services.audit.store import ROWS_OF, kept

if TYPE_CHECKING:
    from remit.projection.tracking import Tracked
    from services.audit.project import KeptRow

MAX_OVERDUE = 1_000
"""Of one round; each is rebuilt from its rows, so the number bounds the memory."""
SETTLING_S = 5.0
"""A receipt offered with the batch is usually stored and projected by then."""

_OVERDUE = """
SELECT action_id FROM audit.actions_all
WHERE terminal IS NOT NULL AND receipt_seq IS NULL AND last_event_at < clock_timestamp() - make_interval(secs => $1)
  AND (outcome IS DISTINCT FROM 'unknown' OR last_event_at < clock_timestamp() - make_interval(secs => $2))
ORDER BY last_event_at LIMIT $3
"""
_STANDING = """
SELECT action_id, last_type, last_event_at, expires_at FROM audit.actions_all
WHERE terminal IS NULL AND last_event_at < clock_timestamp() - make_interval(secs => $1)
  AND (last_type <> 'approval_requested' OR expires_at < clock_timestamp() - make_interval(secs => $1))
ORDER BY last_event_at LIMIT $2
"""


class Lookups:
    """Reads through the pool."""

    def __init__(self, pool: Pool, *, resolution_window_s: float, sla_s: float) -> None:
        """Remember how long doubt may last and how long an action may stand still."""
        self._pool, self._window_s, self._sla_s = pool, resolution_window_s, sla_s

    async def overdue(self, limit: int) -> list[Tracked]:
        """Return finished actions without a receipt, rebuilt from their rows; those in doubt once the window has closed.

        Raises:
            TransientError: Postgres is down or unwilling.

        """
        if limit <= 0:
            return []
        with answering():
            found = await self._pool.fetch(_OVERDUE, SETTLING_S, self._window_s, min(limit, MAX_OVERDUE))
            rows = await self._pool.fetch(ROWS_OF["ACTIONS"], [row["action_id"] for row in found])
        by_action: dict[str, list[KeptRow]] = {}
        for row in rows:
            by_action.setdefault(row["id"], []).append(kept(row))
        return [restore(action_id, held, lambda _: ()) for action_id, held in by_action.items()]

    async def standing(self, limit: int) -> list[Standing]:
        """Return unfinished actions beyond their SLA, the oldest first.

        Raises:
            TransientError: Postgres is down or unwilling.

        """
        with answering():
            rows = await self._pool.fetch(_STANDING, self._sla_s, limit)
        return [Standing(**dict(row)) for row in rows]

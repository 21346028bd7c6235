"""How often and when the events say that grants were used and remits acted under; one part of what verification expects. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from remit.events import ActionEvaluated, ActionEvent, ActionExecuted, ActionProposed
from remit.projection.fields import clean, instant, small
from remit.projection.tracking import first_effect

if TYPE_CHECKING:
    from datetime import datetime

    from remit.envelope import Recorded
    from remit.projection.tracking import Tracked


@dataclass(slots=True)
class Use:
    """Uses of one grant: first outcomes, the newest of their times, and the times of outcomes that resolved a doubt."""

    count: int = 0
    last: datetime | None = None
    resolved: set[datetime] = field(default_factory=set["datetime"])

    def allows(self, last_used_at: datetime | None) -> bool:
        """Return whether a row may say this: a resolution counts there only when the row was made after it."""
        if last_used_at is None or last_used_at == self.last:
            return last_used_at == self.last
        return last_used_at in self.resolved and (self.last is None or last_used_at > self.last)


@dataclass(slots=True)
class Uses:
    """Uses by (remit id, grant number), and the newest proposal by (remit id, agent id)."""

    grants: dict[tuple[str, int], Use] = field(default_factory=dict[tuple[str, int], Use])
    proposed: dict[tuple[str, str], datetime] = field(default_factory=dict[tuple[str, str], "datetime"])

    def add(self, tracked: Tracked, recorded: Recorded) -> None:
        """Count a valid event that was just folded."""
        event = cast("ActionEvent", recorded.event)
        at = instant(event.time) or recorded.stored_at
        if at is None:
            return
        if isinstance(event, ActionProposed):
            key = (tracked.opening["remit_id"], tracked.opening["agent_id"])
            self.proposed[key] = max(self.proposed.get(key, at), at)
        elif isinstance(event, ActionExecuted):
            self._outcome(tracked, event, at)

    def _outcome(self, tracked: Tracked, event: ActionExecuted, at: datetime) -> None:
        evaluated = tracked.state.find(ActionEvaluated)
        if evaluated is None or evaluated.data.grant_no is None:
            return
        key = (clean(event.data.remit_id, 64), small(evaluated.data.grant_no))
        use = self.grants.setdefault(key, Use())
        if first_effect(tracked, event) is None:
            use.resolved.add(at)
            return
        use.count += 1
        use.last = at if use.last is None else max(use.last, at)

"""The reconciler: an action that stands still is driven again by the service whose turn it is.

A re-drive is a core message with the action id; the service refolds and handles again, so a needless or forged one is harmless.
Source: design, bus section 8 (reconciler).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from datetime import datetime

log = structlog.get_logger("audit.reconciler")

MAX_REDRIVES = 500
"""Of one round: a backlog is driven on step by step, never as a storm."""
TURN = {
    "proposed": "policy",
    "evaluated": "approval",
    "approval_requested": "approval",
    "approved": "tokens",
    "tokenized": "executor",
    "started": "executor",
}
"""Whose turn it is after an action's last event."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One unfinished action: its last event, and until when people may still decide."""

    action_id: str
    last_type: str
    last_event_at: datetime
    expires_at: datetime | None = None


def redrives(standing: Sequence[Standing], *, now: datetime, sla: timedelta) -> list[tuple[str, str]]:
    """Return (service, action id) of what is overdue; an open approval is overdue only once it should have expired."""
    found: list[tuple[str, str]] = []
    for action in standing:
        waiting = action.last_type == "approval_requested" and action.expires_at is not None
        due = action.expires_at if waiting and action.expires_at is not None else action.last_event_at
        if due + sla <= now and action.last_type in TURN:
            found.append((TURN[action.last_type], action.action_id))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciler:
    """Looks every minute."""

    standing: Callable[[int], Awaitable[list[Standing]]]
    redrive: Callable[[str, bytes], Awaitable[None]]
    alarm: Callable[[str], None]
    clock: Callable[[], datetime]
    sla_s: float
    every_s: float

    async def run(self) -> None:
        """Drive overdue actions on, for ever."""
        while True:
            await asyncio.sleep(self.every_s)
            found = await self.standing(MAX_REDRIVES)
            overdue = redrives(found, now=self.clock(), sla=timedelta(seconds=self.sla_s))
            for service, action_id in overdue:
                await self.redrive(f"redrive.{service}", action_id.encode())
                self.alarm("stuck_action")
            if overdue:
                log.warning(
                    "driving overdue actions on", actions=len(overdue), first=overdue[0][1], service=overdue[0][0]
                )

"""Whether the projector is alive, asked every few seconds, so that nothing is announced that the claim would hold up.

Only a courtesy: the claim reads the heartbeat again, in its own transaction.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from remit.clock import monotonic
from remit.errors import TransientError

if TYPE_CHECKING:
    from services.executor.claims import ClaimStore

log = structlog.get_logger("remit.executor.evidence")


@dataclass(slots=True)
class Evidence:
    """The newest known heartbeat."""

    claims: ClaimStore
    max_age_s: float
    pause_s: float
    _beat_at: float | None = None
    """Monotonic time of the heartbeat."""

    def require(self) -> None:
        """Let the caller go on only while the evidence is being written.

        Raises:
            TransientError: the projector is silent, or Postgres cannot say.

        """
        if self._beat_at is None or monotonic() - self._beat_at > self.max_age_s:
            raise TransientError(
                f"no projector heartbeat for {self.max_age_s:g} s; evidence gates effect, so nothing starts"
            )

    async def refresh(self) -> None:
        """Ask once."""
        age_s = await self.claims.evidence_age_s()
        self._beat_at = None if age_s is None else monotonic() - age_s

    async def watch(self) -> None:
        """Ask for ever; without an answer the last one ages."""
        while True:
            try:
                await self.refresh()
            except TransientError as error:
                log.warning("heartbeat not read", detail=str(error))
            await asyncio.sleep(self.pause_s)

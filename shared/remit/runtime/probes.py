"""Probes: do our consumers exist as provisioned, do messages wait while nothing moves, does Postgres answer.

A deleted or rewritten consumer makes a pull subscriber spin in silence, so the process ends instead (design, bus section 3).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

import structlog

from remit.clock import monotonic
from remit.errors import TransientError
from remit.runtime.streams import config_hash, consumer_spec
from remit.runtime.watchdog import Exit, Vitals, die

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from remit.pipeline import ServiceRow
    from remit.runtime.bus import Bus

log = structlog.get_logger("remit.probes")

PROBE_EVERY_S = 15.0
FRESH_S = 45.0


class Probed(Protocol):
    """What the probes need of a service."""

    row: ServiceRow
    bus: Bus
    vitals: Vitals


class Probes:
    """Periodic checks; readiness is their latest answer."""

    def __init__(self, *, service: Probed, workers: int) -> None:
        """Remember whom to watch."""
        self._service, self._workers = service, workers
        self._checked_at = 0.0
        self._postgres: Callable[[], Awaitable[bool]] | None = None
        self._postgres_ok_at = 0.0
        self.started = False

    def watch_postgres(self, answers: Callable[[], Awaitable[bool]]) -> None:
        """Let readiness depend on Postgres too; `answers` is asked every probe."""
        self._postgres, self._postgres_ok_at = answers, monotonic()

    def unready(self) -> list[str]:
        """Return what is missing for readiness, in words."""
        missing: list[str] = []
        if not self.started:
            missing.append("starting")
        if monotonic() - self._checked_at > FRESH_S:
            missing.append("consumers not confirmed")
        if self._postgres is not None and monotonic() - self._postgres_ok_at > FRESH_S:
            missing.append("postgres does not answer")
        return missing

    async def wait_for_consumers(self) -> None:
        """Block until every consumer of this service is provisioned as expected, saying what is missing."""
        said = False
        while True:
            problem = await self._first_problem()
            if problem is None:
                self._checked_at = monotonic()
                return
            if not said:
                log.warning("waiting for streams", detail=problem, remedy="run `python -m infra.provision`")
                said = True
            await asyncio.sleep(1.0)

    async def run(self) -> None:
        """Probe for ever; a missing or drifted consumer ends the process."""
        while True:
            await asyncio.sleep(PROBE_EVERY_S)
            try:
                problem = await self._first_problem()
            except TransientError as error:
                log.warning("probe without an answer", detail=str(error))
            else:
                if problem is not None:
                    die(Exit.CONSUMER_DRIFT, problem)
                self._checked_at = monotonic()
            await self._probe_postgres()

    async def _first_problem(self) -> str | None:
        starving = False
        for consumption in self._service.row.consumes:
            name = f"{consumption.durable} of {consumption.stream}"
            try:
                info = await self._service.bus.consumer_info(consumption.stream, consumption.durable)
            except TransientError as error:
                if not self.started:
                    return f"consumer {name}: {error}"
                raise
            if info is None:
                return f"consumer {name} does not exist"
            if config_hash(info["config"]) != consumer_spec(consumption.stream, consumption.durable).hash:
                return f"consumer {name} is not configured as provisioned"
            busy = info["num_ack_pending"] >= self._workers
            starving = starving or (info["num_pending"] > 0 and not info.get("paused") and not busy)
        self._service.vitals.starving = starving
        return None

    async def _probe_postgres(self) -> None:
        if self._postgres is not None and await self._postgres():
            self._postgres_ok_at = monotonic()

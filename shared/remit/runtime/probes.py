"""Probes: do streams and consumers exist as provisioned, do messages wait while nothing moves, does Postgres answer.

A deleted or rewritten consumer makes a pull subscriber spin in silence, and a rewritten stream may drop or accept what it must
not; so the process ends instead (design, bus section 3).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from remit.clock import monotonic
from remit.errors import TransientError
from remit.runtime.streams import STREAM_BY_NAME, config_hash, consumer_spec, stream_hash
from remit.runtime.watchdog import Exit, die

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from remit.pipeline import ServiceRow
    from remit.runtime.bus import Bus
    from remit.runtime.watchdog import Flow, Vitals

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
        self._streams: tuple[str, ...] = ()
        self._postgres: Callable[[], Awaitable[bool]] | None = None
        self._postgres_ok_at = 0.0
        self.started = False

    def watch_streams(self, *names: str) -> None:
        """Insist on the configuration of streams too; the service's login must be allowed to read it."""
        self._streams = names

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
        """Block until every consumer and watched stream is provisioned as expected, saying what is missing."""
        said: str | None = None
        while True:
            problem = await self._first_problem()
            if problem is None:
                self._checked_at = monotonic()
                return
            if problem != said:
                log.warning("waiting for streams", detail=problem, remedy="run `python -m infra.provision`")
                said = problem
            await asyncio.sleep(1.0)

    async def run(self) -> None:
        """Probe for ever; what is missing or drifted ends the process."""
        while True:
            await asyncio.sleep(PROBE_EVERY_S)
            await self.probe()

    async def probe(self) -> None:
        """Look once."""
        try:
            problem = await self._first_problem()
        except TransientError as error:
            log.warning("probe without an answer", detail=str(error))
            # What an older probe saw says nothing about now.
            for flow in self._service.vitals.flows.values():
                flow.starving_since = None
        else:
            if problem is not None:
                die(Exit.CONSUMER_DRIFT, problem)
            self._checked_at = monotonic()
        await self._probe_postgres()

    async def _first_problem(self) -> str | None:
        try:
            return await self._stream_problem() or await self._consumer_problem()
        except TransientError as error:
            if not self.started:
                return str(error)
            raise

    async def _stream_problem(self) -> str | None:
        for name in self._streams:
            info = await _answer(f"stream {name}", self._service.bus.stream_info(name))
            if info is None:
                return f"stream {name} does not exist"
            if stream_hash(info["config"]) != stream_hash(STREAM_BY_NAME[name].config()):
                return f"stream {name} is not configured as provisioned"
        return None

    async def _consumer_problem(self) -> str | None:
        for consumption in self._service.row.consumes:
            name = f"{consumption.durable} of {consumption.stream}"
            asked = self._service.bus.consumer_info(consumption.stream, consumption.durable)
            info = await _answer(f"consumer {name}", asked)
            if info is None:
                return f"consumer {name} does not exist"
            if config_hash(info["config"]) != consumer_spec(consumption.stream, consumption.durable).hash:
                return f"consumer {name} is not configured as provisioned"
            self._note(self._service.vitals.flow(consumption.name), info)
        return None

    def _note(self, flow: Flow, info: Mapping[str, Any]) -> None:
        if flow.in_flight >= self._workers or not waits_for_us(info, in_flight=flow.in_flight):
            flow.starving_since = None
        elif flow.starving_since is None:
            flow.starving_since = monotonic()

    async def _probe_postgres(self) -> None:
        if self._postgres is not None and await self._postgres():
            self._postgres_ok_at = monotonic()


async def _answer(about: str, asked: Awaitable[dict[str, Any] | None]) -> dict[str, Any] | None:
    try:
        return await asked
    except TransientError as error:
        raise TransientError(f"{about}: {error}") from None


def waits_for_us(info: Mapping[str, Any], *, in_flight: int) -> bool:
    """Return whether a `CONSUMER.INFO` answer shows messages that a process with free handlers should be getting. Pure.

    `in_flight` are its own. New messages wait unless the durable is paused or has as many unacknowledged ones as it may.
    Unacknowledged ones of nobody are due again, but they may as well be slow work of another replica: that tells only when no
    pull request waits, though this process should have one there.
    """
    if info.get("paused"):
        return False
    unacknowledged = info["num_ack_pending"]
    full = unacknowledged >= info["config"].get("max_ack_pending", float("inf"))
    nobody_asks = not info.get("num_waiting")
    return (info["num_pending"] > 0 and not full) or (unacknowledged > in_flight and nobody_asks)

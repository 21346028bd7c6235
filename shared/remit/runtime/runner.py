"""Starts a service in order, keeps its tasks alive, and stops it gracefully; the watchdog ends what cannot work.

Order: port, broker, consumers, bundle, own start hooks, subscriptions, answers, background tasks. Source: design, bus section 3.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import sys
from typing import TYPE_CHECKING

import nats.errors
import structlog

from remit.clock import monotonic
from remit.errors import ConfigurationError
from remit.runtime import http
from remit.runtime.requests import Responder
from remit.runtime.telemetry import configure_logs
from remit.runtime.watchdog import Exit, Watchdog, die

if TYPE_CHECKING:
    from remit.runtime.service import Factory, Service

log = structlog.get_logger("remit.runner")

EXIT_CONFIGURATION = 78
"""EX_CONFIG of sysexits.h: restarting does not help."""


class Runner:
    """One run of one service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._tasks: list[asyncio.Task[None]] = []

    def run(self) -> None:
        """Run until SIGTERM or SIGINT."""
        configure_logs(self._service.settings.log_level)
        try:
            import uvloop  # noqa: PLC0415  (not on Windows)

            uvloop.run(self._main())
        except ConfigurationError as error:
            log.error("cannot start", service=self._service.name, detail=str(error))  # noqa: TRY400  (no stack needed)
            sys.exit(EXIT_CONFIGURATION)

    async def _main(self) -> None:
        service = self._service
        structlog.contextvars.bind_contextvars(service=service.name, replica=service.replica)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, service.stopping.set)
        service.vitals.waiting_for_dependency = True
        Watchdog(service.vitals).start()
        listener = http.bind(service.settings.http_host, service.settings.http_port)
        app = http.build_app(
            registry=service.telemetry.registry, unready=service.probes.unready, routes=service.http_routes
        )
        web = http.server(app)
        serving = asyncio.create_task(web.serve(sockets=[listener]))
        starting = asyncio.create_task(self._start())
        stopped = asyncio.create_task(service.stopping.wait())
        await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
        try:
            if starting.done():
                starting.result()
                log.info("ready", http_port=listener.getsockname()[1])
                await stopped
        finally:
            await self._stop(starting)
            web.should_exit = True
            await serving
        service.vitals.ended = True

    async def _start(self) -> None:
        service = self._service
        self._spawn("beat", self._beat)
        log.info("connecting to NATS", url=service.settings.nats_url)
        service.attach(await service.broker.connect())
        await service.probes.wait_for_consumers()
        self._spawn("bundles", service.bundles.poll)
        for factory in service.start_hooks:
            await factory()
        await service.broker.start()
        for answer in service.answered:
            await Responder(service.client, answer, service.telemetry).listen(service.name)
        for name, factory in service.tasks:
            self._spawn(name, factory)
        # What lives now lives for ever: the collector need not look at it again (design, speed).
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 50, 50)
        service.vitals.waiting_for_dependency = False
        service.probes.started = True

    async def _stop(self, starting: asyncio.Task[None]) -> None:
        service = self._service
        service.stopping.set()
        log.info("stopping")
        service.vitals.stopping_since = monotonic()
        if starting.done():
            # Without a connection there is nothing to drain; what was in flight is delivered again.
            with contextlib.suppress(nats.errors.Error):
                await service.broker.stop()
        else:
            starting.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for factory in service.stop_hooks:
            await factory()
        log.info("stopped")

    def _spawn(self, name: str, factory: Factory) -> None:
        task = asyncio.create_task(factory(), name=name)
        task.add_done_callback(self._on_task_done)
        self._tasks.append(task)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        if self._service.stopping.is_set() or task.cancelled():
            return
        log.error("background task ended", task=task.get_name(), exc_info=task.exception())
        die(Exit.TASK_DIED, f"background task {task.get_name()} ended")

    async def _beat(self) -> None:
        vitals = self._service.vitals
        while True:
            vitals.loop_beat = monotonic()
            if self._service.is_connected:
                vitals.connected_at = vitals.loop_beat
            await asyncio.sleep(1.0)

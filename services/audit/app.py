"""Composition root of audit."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from remit.clock import monotonic, now
from remit.errors import StaleBundleError
from remit.events import ActionAudited
from remit.runtime.keys import load_checkpoint
from remit.runtime.service import Service
from remit.runtime.subscriptions import announce
from services.audit.checkpoints import Checkpointer
from services.audit.evidence import EvidenceStore
from services.audit.handlers import AuditHandlers
from services.audit.lookups import Lookups
from services.audit.projector import DURABLE, Projector, Tenure
from services.audit.receipts import Receipts
from services.audit.reconciler import Reconciler
from services.audit.registry import Registry
from services.audit.settings import AuditSettings
from services.audit.source import Source
from services.audit.store import Store

if TYPE_CHECKING:
    from nacl.signing import SigningKey

    from services.audit.database import Fence, Pool

REGISTRY_WAIT_S = 5.0
POOL_SIZE = 4
"""The fence, and short reads and writes of its companions."""


def build(settings: AuditSettings | None = None) -> Service:
    """Return the service, ready to run."""
    settings = settings or AuditSettings()  # pyright: ignore[reportCallIssue]  (keys_dir comes from the environment)
    service = Service("audit", settings)
    service.probes.watch_streams("ACTIONS", "REMITS")
    checkpoint_key = load_checkpoint(settings.keys_dir)
    announce(service.broker, (ActionAudited,))
    opened: list[Pool] = []

    async def open_pool() -> None:
        opened.append(await service.require_postgres(max_size=POOL_SIZE, keeps_state=True))

    async def project() -> None:
        await _registry_known(service)
        await _projector(service, settings, opened[0], checkpoint_key).run()

    async def close_pool() -> None:
        for pool in opened:
            await pool.close()

    service.on_start(open_pool)
    service.background("projector", project)
    service.on_stop(close_pool)
    return service


async def _registry_known(service: Service) -> None:
    """Wait a little for the first bundle: without it every argument would be hidden on display."""
    deadline = monotonic() + REGISTRY_WAIT_S
    while monotonic() < deadline:
        try:
            service.bundles.current()
        except StaleBundleError:
            await asyncio.sleep(0.1)
        else:
            return


def _projector(service: Service, settings: AuditSettings, pool: Pool, key: tuple[str, SigningKey]) -> Projector:
    def stamp() -> None:
        service.vitals.progress_at = monotonic()

    def begin(fence: Fence) -> Tenure:
        return _tenure(service, settings, pool, key, fence)

    def source(stream: str) -> Source:
        return Source(service.client, stream=stream, durable=DURABLE, limit=settings.projector_batch)

    return Projector(
        pool=pool,
        bus=service.bus,
        source=source,
        begin=begin,
        stamp=stamp,
        linger_s=settings.projector_linger_ms / 1000,
        heartbeat_s=settings.heartbeat_s,
    )


def _tenure(service: Service, settings: AuditSettings, pool: Pool, key: tuple[str, SigningKey], fence: Fence) -> Tenure:
    telemetry = service.telemetry

    def alarm(kind: str) -> None:
        telemetry.alarms.labels(kind=kind).inc()

    def count(status: str, number: int) -> None:
        telemetry.invalid_events.labels(code=status).inc(number)

    lookups = Lookups(pool, resolution_window_s=settings.resolution_window_s, sla_s=settings.action_sla_s)
    registry = Registry(pool, current=service.bundles.current, clock=now)
    receipts = Receipts(
        append=service.ledger.append,
        read=service.ledger.read,
        overdue=lookups.overdue,
        every_s=settings.reconcile_every_s,
    )
    reconciler = Reconciler(
        standing=lookups.standing,
        redrive=service.publish_core,
        alarm=alarm,
        clock=now,
        sla_s=settings.action_sla_s,
        every_s=settings.reconcile_every_s,
    )
    checkpointer = _checkpointer(service, settings, pool, key)
    store = Store(fence)
    handlers = AuditHandlers(
        trust=service.trust,
        store=store,
        evidence=EvidenceStore(fence, alarm=alarm),
        sensitive=registry.sensitive,
        count=count,
        alarm=alarm,
        memory_actions=settings.memory_actions,
    )
    tasks = (receipts.run, reconciler.run, checkpointer.run, registry.run)
    return Tenure(
        handlers=handlers,
        store=store,
        on_finished=receipts.offer,
        on_held=lambda: alarm("claims_held"),
        tasks=tasks,
    )


def _checkpointer(service: Service, settings: AuditSettings, pool: Pool, key: tuple[str, SigningKey]) -> Checkpointer:
    return Checkpointer(
        pool,
        directory=settings.checkpoint_dir,
        key=key,
        trusted=service.keys.environment.checkpoint_keys,
        clock=now,
        every_events=settings.checkpoint_every_events,
        every_s=settings.checkpoint_every_s,
    )

"""Composition root of intake."""

from __future__ import annotations

from remit.clock import monotonic
from remit.events import (
    ActionApprovalRequested,
    ActionEvaluated,
    ActionExecuted,
    ActionProposed,
    ActionRefused,
    ActionRevoked,
)
from remit.runtime.service import Service
from services.intake.catalogue import CatalogueReader
from services.intake.handlers import IntakeHandlers
from services.intake.settings import IntakeSettings

TOLD = (ActionEvaluated, ActionApprovalRequested, ActionRefused, ActionExecuted, ActionRevoked)
"""Events an agent hears about."""


def build(settings: IntakeSettings | None = None) -> Service:
    """Return the service, ready to run."""
    settings = settings or IntakeSettings()  # pyright: ignore[reportCallIssue]  (keys_dir comes from the environment)
    service = Service("intake", settings)
    handlers = IntakeHandlers(
        tenant=settings.tenant,
        catalogue=CatalogueReader(service.bundles.current),
        read=service.ledger.read,
        append=service.ledger.append,
        publish=service.publish_core,
        dead_letter=service.dead_letter,
        alarm=lambda kind: service.telemetry.alarms.labels(kind=kind).inc(),
        monotonic=monotonic,
    )
    service.on_raw(
        stream="INTAKE", handler=handlers.on_proposal, emits=(ActionProposed,), give_up=handlers.on_exhausted
    )
    service.on_events(TOLD, handlers.on_event, publishes=("results.*.*",))
    service.answer("status.*.*", handlers.on_status, admit=handlers.may_ask)
    return service

"""Composition root of policy."""

from __future__ import annotations

from functools import partial

from remit.clock import now
from remit.events import ActionEvaluated, ActionProposed
from remit.runtime.service import Service
from services.policy.bundle import BundleInForce
from services.policy.handlers import PolicyHandlers
from services.policy.settings import PolicySettings


def build(settings: PolicySettings | None = None) -> Service:
    """Return the service, ready to run."""
    settings = settings or PolicySettings()  # pyright: ignore[reportCallIssue]  (keys_dir comes from the environment)
    service = Service("policy", settings)
    handlers = PolicyHandlers(
        clock=now,
        tenant=settings.tenant,
        bundle=BundleInForce(service.bundles.current).read,
        read_remit=partial(service.ledger.read_remit, max_age_s=settings.remit_cache_s),
        ledger=service.ledger,
    )
    service.on_action(
        ActionProposed, handlers.on_action_proposed, emits=(ActionEvaluated,), unprocessable=handlers.unprocessable
    )
    service.answer("redrive.policy", handlers.on_redrive)
    return service

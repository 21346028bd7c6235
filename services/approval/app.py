"""Composition root of approval: what it needs from outside, and which subject leads to which method."""

from __future__ import annotations

import httpx

from remit.clock import now
from remit.errors import ConfigurationError
from remit.events import (
    ActionApprovalRequested,
    ActionApproved,
    ActionEvaluated,
    ActionRefused,
    ActionRevoked,
    RemitAmendedEvent,
    RemitExhaustedEvent,
    RemitGrantedEvent,
    RemitRevokedEvent,
)
from remit.identity import IdTokenVerifier
from remit.runtime.service import Service
from services.approval.database import Database
from services.approval.grants import Grants
from services.approval.handlers import ActionHandlers
from services.approval.human import HumanCommands
from services.approval.registry import Registry
from services.approval.remit_store import RemitStore
from services.approval.resolution import Resolutions
from services.approval.revocations import Revocations
from services.approval.settings import ApprovalSettings
from services.approval.stops import StopSnapshot
from services.approval.store import ActionStore
from services.approval.sweeper import Sweeper
from services.approval.votes import Votes

OIDC_TIMEOUT_S = 2.0
"""Shorter than the three seconds a client waits for its reply."""


NO_ISSUER = (
    "REMIT_OIDC_ISSUERS is empty, so nobody could ever approve anything; set it to a JSON list such as"
    ' [{"issuer": "https://idp.example", "client_ids": ["remit-dashboard", "remit-cli"]}]'
)
WRITES = (
    ActionApproved,
    ActionRefused,
    ActionApprovalRequested,
    ActionRevoked,
    RemitGrantedEvent,
    RemitAmendedEvent,
    RemitRevokedEvent,
    RemitExhaustedEvent,
)
"""Everything this service may sign, whether an evaluation, a person or the clock led to it."""


def build(settings: ApprovalSettings | None = None) -> Service:
    """Return the service, ready to run."""
    settings = settings or ApprovalSettings()  # pyright: ignore[reportCallIssue]  (fields come from the environment)
    service = Service("approval", settings)
    database = Database()
    store, remits = ActionStore(database), RemitStore(database)
    stops = StopSnapshot(remits, poll_s=settings.stop_poll_s)
    _bind_actions(service, settings, store, stops)
    _bind_people(service, settings, store, remits, stops)
    sweeper = Sweeper(ledger=service.ledger, store=store, remits=remits, pause_s=settings.sweep_s)
    service.background("sweeper", sweeper.run)
    service.background("stops", stops.poll)

    async def connect() -> None:
        if not settings.oidc_issuers:
            raise ConfigurationError(NO_ISSUER)
        database.attach(await service.require_postgres())
        await stops.refresh()

    service.on_start(connect)
    service.on_stop(database.close)
    return service


def _bind_actions(service: Service, settings: ApprovalSettings, store: ActionStore, stops: StopSnapshot) -> None:
    handlers = ActionHandlers(clock=now, ledger=service.ledger, store=store, stops=stops, limits=settings.limits())
    service.on_action(
        ActionEvaluated,
        handlers.on_action_evaluated,
        emits=WRITES,
    )
    service.answer("redrive.approval", handlers.on_redrive)


def _bind_people(
    service: Service,
    settings: ApprovalSettings,
    store: ActionStore,
    remits: RemitStore,
    stops: StopSnapshot,
) -> None:
    http = httpx.AsyncClient(timeout=OIDC_TIMEOUT_S)
    verifier = IdTokenVerifier(
        settings.oidc_issuers,
        http=http,
        key_ttl_s=settings.oidc_key_ttl_s,
        refetch_interval_s=settings.oidc_refetch_s,
    )
    ledger = service.ledger
    people = HumanCommands(
        clock=now,
        verifier=verifier,
        votes=Votes(
            clock=now,
            ledger=ledger,
            store=store,
            remits=remits,
            limits=settings.limits(),
            block_for_s=settings.block_for_s,
        ),
        grants=Grants(clock=now, ledger=ledger, remits=remits, bundles=service.bundles),
        revocations=Revocations(ledger=ledger, store=store, remits=remits, stops=stops),
        registry=Registry(
            clock=now,
            bucket=service,
            remits=remits,
            signer=service.signer,
            trust=service.trust,
            refresh=service.bundles.refresh,
        ),
        resolutions=Resolutions(ledger=ledger, store=store),
    )
    service.answer("human.*", people.answer)
    service.on_stop(http.aclose)

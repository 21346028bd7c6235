"""Composition root of approval: what it needs from outside, and which subject leads to which method."""

from __future__ import annotations

from dataclasses import dataclass

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
from services.approval.outbox_store import OutboxStore
from services.approval.registry import Registry
from services.approval.relay import Relay
from services.approval.remit_store import RemitStore
from services.approval.resolution import Resolutions
from services.approval.revocations import Revocations
from services.approval.settings import ApprovalSettings
from services.approval.stop_store import StopStore
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


@dataclass(frozen=True, slots=True)
class Stores:
    """Everything approval keeps in Postgres."""

    actions: ActionStore
    remits: RemitStore
    switches: StopStore
    stops: StopSnapshot


def build(settings: ApprovalSettings | None = None) -> Service:
    """Return the service, ready to run."""
    settings = settings or ApprovalSettings()  # pyright: ignore[reportCallIssue]  (fields come from the environment)
    service = Service("approval", settings)
    database = Database()
    switches = StopStore(database)
    stops = StopSnapshot(switches, poll_s=settings.stop_poll_s)
    stores = Stores(ActionStore(database), RemitStore(database), switches, stops)
    relay = _relay(service, settings, stores, OutboxStore(database))
    _bind_actions(service, settings, stores)
    _bind_people(service, settings, stores, relay)
    sweeper = Sweeper(ledger=service.ledger, store=stores.actions, remits=stores.remits, pause_s=settings.sweep_s)
    service.background("sweeper", sweeper.run)
    service.background("relay", relay.run)
    service.background("stops", stops.poll)

    async def connect() -> None:
        if not settings.oidc_issuers:
            raise ConfigurationError(NO_ISSUER)
        database.attach(await service.require_postgres())
        await stops.refresh()

    service.on_start(connect)
    service.on_stop(database.close)
    return service


def _relay(service: Service, settings: ApprovalSettings, stores: Stores, outbox: OutboxStore) -> Relay:
    return Relay(
        ledger=service.ledger,
        outbox=outbox,
        store=stores.actions,
        remits=stores.remits,
        telemetry=service.telemetry,
        pause_s=settings.outbox_s,
        after_s=settings.outbox_after_s,
    )


def _bind_actions(service: Service, settings: ApprovalSettings, stores: Stores) -> None:
    handlers = ActionHandlers(
        clock=now, ledger=service.ledger, store=stores.actions, stops=stores.stops, limits=settings.limits()
    )
    service.on_action(
        ActionEvaluated,
        handlers.on_action_evaluated,
        emits=WRITES,
    )
    service.answer("redrive.approval", handlers.on_redrive)


def _bind_people(service: Service, settings: ApprovalSettings, stores: Stores, relay: Relay) -> None:
    http = httpx.AsyncClient(timeout=OIDC_TIMEOUT_S)
    verifier = IdTokenVerifier(
        settings.oidc_issuers,
        http=http,
        key_ttl_s=settings.oidc_key_ttl_s,
        refetch_interval_s=settings.oidc_refetch_s,
    )
    people = HumanCommands(
        clock=now,
        verifier=verifier,
        switches=stores.switches,
        votes=_votes(service, settings, stores),
        grants=Grants(
            clock=now,
            ledger=service.ledger,
            remits=stores.remits,
            switches=stores.switches,
            bundles=service.bundles,
            relay=relay,
        ),
        revocations=Revocations(
            ledger=service.ledger,
            store=stores.actions,
            remits=stores.remits,
            switches=stores.switches,
            stops=stores.stops,
            relay=relay,
        ),
        registry=_registry(service, stores),
        resolutions=Resolutions(ledger=service.ledger, store=stores.actions),
    )
    service.answer("human.*", people.answer)
    service.on_stop(http.aclose)


def _votes(service: Service, settings: ApprovalSettings, stores: Stores) -> Votes:
    return Votes(
        clock=now,
        ledger=service.ledger,
        store=stores.actions,
        remits=stores.remits,
        bundles=service.bundles,
        limits=settings.limits(),
        block_for_s=settings.block_for_s,
    )


def _registry(service: Service, stores: Stores) -> Registry:
    return Registry(
        clock=now,
        bucket=service,
        switches=stores.switches,
        signer=service.signer,
        trust=service.trust,
        refresh=service.bundles.refresh,
    )

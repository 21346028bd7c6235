"""Composition root of the executor."""

from __future__ import annotations

import ssl

import httpx

from remit.clock import now
from remit.events import ActionExecuted, ActionRefused, ActionStarted, ActionTokenized
from remit.runtime.keys import load_executor
from remit.runtime.service import Service
from services.executor.calls import Caller
from services.executor.claims import ClaimStore
from services.executor.connectors.credentials import (
    CredentialProvider,
    EnvironmentCredentials,
    FileCredentials,
    FirstOf,
)
from services.executor.connectors.egress import Egress
from services.executor.connectors.http import HttpConnector
from services.executor.connectors.mcp import McpConnector
from services.executor.connectors.noop import NoopConnector
from services.executor.evidence import Evidence
from services.executor.handlers import ExecutorHandlers
from services.executor.outbox import Outbox
from services.executor.sealed import SealedTokens, published_keys
from services.executor.settings import ExecutorSettings, environment_credentials
from services.executor.sweeper import Sweeper

JWKS_TIMEOUT_S = 3.0


def build(settings: ExecutorSettings | None = None) -> Service:
    """Return the service, ready to run."""
    settings = settings or ExecutorSettings()  # pyright: ignore[reportCallIssue]  (fields come from the environment)
    service = Service("executor", settings)
    store = ClaimStore(replica=service.replica, evidence_max_age_s=settings.evidence_max_age_s)
    caller = Caller(connectors_of(settings), settings.tool_concurrency, store.may_send)
    outbox = Outbox(
        ledger=service.ledger,
        claims=store,
        telemetry=service.telemetry,
        pause_s=settings.sweep_s,
        after_s=settings.outbox_after_s,
    )
    evidence = Evidence(claims=store, max_age_s=settings.evidence_max_age_s, pause_s=settings.sweep_s)
    _bind(service, settings, caller, outbox, evidence)
    sweeper = Sweeper(
        clock=now,
        bundle=service.bundles.current,
        ledger=service.ledger,
        claims=store,
        caller=caller,
        outbox=outbox,
        pause_s=settings.sweep_s,
    )

    async def connect() -> None:
        store.attach(await service.require_postgres(max_size=settings.max_db_connections))
        await evidence.refresh()

    service.on_start(connect)
    service.background("evidence", evidence.watch)
    service.background("sweeper", sweeper.run)
    service.background("outbox", outbox.relay)
    service.on_stop(outbox.flush)
    service.on_stop(caller.close)
    service.on_stop(store.close)
    return service


def _bind(service: Service, settings: ExecutorSettings, caller: Caller, outbox: Outbox, evidence: Evidence) -> None:
    http = httpx.AsyncClient(timeout=JWKS_TIMEOUT_S, trust_env=False)
    published = published_keys(http, settings.jwks_url, refetch_s=settings.jwks_refetch_s)

    async def reissue(action_id: str) -> None:
        await service.publish_core("redrive.tokens", action_id.encode())

    handlers = ExecutorHandlers(
        clock=now,
        bundle=service.bundles.current,
        ledger=service.ledger,
        tokens=SealedTokens.of(load_executor(settings.keys_dir), issuer=settings.token_issuer, published=published),
        claims=outbox.claims,
        caller=caller,
        outbox=outbox,
        evidence=evidence,
        reissue=reissue,
        replica=service.replica,
    )
    service.on_action(
        ActionTokenized,
        handlers.on_action_tokenized,
        emits=(ActionStarted, ActionExecuted, ActionRefused),
        verify_chain=True,
    )
    service.answer("redrive.executor", handlers.on_redrive)
    service.on_stop(http.aclose)


def connectors_of(settings: ExecutorSettings) -> dict[str, HttpConnector | McpConnector | NoopConnector]:
    """Return one connector for each kind of tool; all share the egress rules, the credentials and the trusted CAs."""
    tls = ssl.create_default_context(cafile=settings.tool_ca_file)
    egress = Egress(tls, connect_timeout_s=settings.connect_timeout_s)
    providers: list[CredentialProvider] = [EnvironmentCredentials(environment_credentials())]
    if settings.credentials_dir is not None:
        providers.insert(0, FileCredentials(settings.credentials_dir))
    credentials = FirstOf(*providers)
    return {
        "http": HttpConnector(egress=egress, credentials=credentials, tls=tls),
        "mcp": McpConnector(egress, credentials, tls),
        "noop": NoopConnector(),
    }

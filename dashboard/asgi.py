"""The ASGI application: Streamlit behind security headers and gzip, beside `/livez`, `/healthz` and the live signal."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nats.errors
import structlog
from sqlalchemy import create_engine
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from streamlit.starlette import App

from dashboard import options, process
from dashboard.commands import BusSender
from dashboard.live import LiveSignal, LiveSocket
from dashboard.queries import Queries
from dashboard.security import OwnPageOnly, SecurityHeaders, content_policy, inline_script_hashes
from remit import ids

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.requests import Request

    from dashboard.settings import DashboardSettings

SCRIPT = Path(__file__).parent / "app.py"
STATEMENT_TIMEOUT_MS = 3_000

_log = structlog.get_logger("dashboard")


def build(settings: DashboardSettings) -> App:
    """Return the application; nothing is connected before its lifespan begins.

    Raises:
        ConfigurationError: an option would let someone act as somebody else.

    """
    options.apply(settings)
    options.check()
    engine = create_engine(
        settings.sqlalchemy_url,
        pool_size=4,
        max_overflow=4,
        pool_pre_ping=True,
        pool_timeout=STATEMENT_TIMEOUT_MS / 1000,
        connect_args={
            "options": f"-c statement_timeout={STATEMENT_TIMEOUT_MS} -c default_transaction_read_only=on",
            "connect_timeout": 3,
            "application_name": "remit-dashboard",
        },
    )
    queries, sender, live = Queries(engine), BusSender(settings), LiveSignal(settings.sqlalchemy_url)
    process.install(
        process.Backend(
            queries=queries,
            sender=sender,
            live_version=lambda: live.version,
            issuer=settings.oidc_issuer,
            roles_claim=settings.roles_claim,
            environment=settings.environment,
        )
    )
    return App(
        SCRIPT,
        secrets=options.sign_in_secrets(settings),
        lifespan=partial(_lifespan, sender=sender, live=live, queries=queries),
        routes=[
            Route("/livez", _livez),
            Route("/healthz", partial(_healthz, sender=sender, live=live)),
            WebSocketRoute("/api/ws", LiveSocket(live, settings.origin).serve),
        ],
        middleware=_middleware(settings.origin),
        on_script_error=_on_script_error,
    )


def _middleware(origin: str) -> list[Middleware]:
    policy = content_policy(inline_script_hashes())
    return [
        Middleware(SecurityHeaders, policy, https=origin.startswith("https://")),
        Middleware(OwnPageOnly, origin),
        # Streamlit's own gzip leaves its bundles out; 6.3 MB against 1.8 MB on the wire.
        Middleware(GZipMiddleware, minimum_size=1_000, compresslevel=6),
    ]


@contextlib.asynccontextmanager
async def _lifespan(
    _app: App, *, sender: BusSender, live: LiveSignal, queries: Queries
) -> AsyncGenerator[dict[str, Any]]:
    connecting = asyncio.create_task(_connect(sender))
    listening = asyncio.create_task(live.run())
    try:
        yield {}
    finally:
        for task in (connecting, listening):
            task.cancel()
        await asyncio.gather(connecting, listening, return_exceptions=True)
        await sender.stop()
        queries.close()


async def _connect(sender: BusSender) -> None:
    # Reads must work while the broker is away, so the server does not wait for it.
    while True:
        try:
            await sender.start()
        except (OSError, nats.errors.Error) as error:
            _log.warning("nats_unreachable", error=type(error).__name__)
            await asyncio.sleep(2)
        else:
            return


async def _livez(_request: Request) -> PlainTextResponse:
    # Broker and database may be away: a restart would not bring them back.
    return PlainTextResponse("ok\n")


async def _healthz(_request: Request, *, sender: BusSender, live: LiveSignal) -> JSONResponse:
    found = {"bus": sender.is_connected, "live": live.is_listening}
    return JSONResponse({"ok": all(found.values()), **found}, status_code=200 if all(found.values()) else 503)


def _on_script_error(error: Exception) -> bool:
    import streamlit as st  # noqa: PLC0415  (only script threads may touch it)

    incident = ids.fresh_key()[:8]
    # The class and place alone: messages may quote rows, and rows may hold arguments.
    _log.error("page_failed", incident=incident, error=type(error).__name__, where=_place(error))
    st.error(f"This page failed. Nothing was decided by that. Incident {incident}; reload, or tell the operator.")
    return True


def _place(error: Exception) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace is not None else "unknown"

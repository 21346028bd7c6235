"""Health, metrics and the service's own routes on one loopback port."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from remit.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from prometheus_client import CollectorRegistry
    from starlette.requests import Request


class _Server(uvicorn.Server):
    """Uvicorn inside our own loop: the service, not uvicorn, owns the signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


def build_app(
    *, registry: CollectorRegistry, unready: Callable[[], list[str]], routes: Sequence[BaseRoute] = ()
) -> Starlette:
    """Return the application; `unready` lists what is missing, empty when ready."""

    async def livez(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_: Request) -> Response:
        missing = unready()
        return JSONResponse({"ready": not missing, "missing": missing}, status_code=503 if missing else 200)

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    own = [Route("/livez", livez), Route("/readyz", readyz), Route("/metrics", metrics)]
    return Starlette(routes=[*own, *routes])


def bind(host: str, port: int) -> socket.socket:
    """Bind the listening socket before anything else starts.

    Raises:
        ConfigurationError: the port is in use or not ours to bind.

    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"cannot listen on {host}:{port} ({error.strerror}); set REMIT_HTTP_PORT to a free port or to 0"
        ) from None
    return listener


def server(app: Starlette) -> uvicorn.Server:
    """Return a quiet server for the application."""
    return _Server(
        uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=2)
    )

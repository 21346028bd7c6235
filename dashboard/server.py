"""Runs the application on a port of its own; a port that is taken is an error with a remedy."""

from __future__ import annotations

import errno
import logging
import signal
import socket
import sys
from typing import TYPE_CHECKING

import structlog
import uvicorn

from dashboard import settings as environment
from remit.errors import ConfigurationError

if TYPE_CHECKING:
    from dashboard.settings import DashboardSettings


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket, held from now on, so that the port cannot be lost before the server starts.

    Raises:
        ConfigurationError: the port is in use, or this process may not have it.

    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
        found.listen(128)
    except OSError as error:
        found.close()
        why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be had ({error.strerror})"
        raise ConfigurationError(
            f"port {port} on {host} {why}; stop what holds it, or set REMIT_DASHBOARD_PORT to another port"
        ) from None
    return found


def serve(settings: DashboardSettings) -> None:
    """Serve until a signal ends it."""
    _quiet_logs()
    bound = listen(settings.host, settings.port)
    chosen = settings.model_copy(update={"port": bound.getsockname()[1]})
    # Streamlit reads its options while it is imported, so the application is built only now.
    from dashboard.asgi import build  # noqa: PLC0415

    sys.stderr.write(f"dashboard: {chosen.origin}\n")
    config = uvicorn.Config(
        build(chosen), log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=3
    )
    uvicorn.Server(config).run(sockets=[bound])


def _quiet_logs() -> None:
    # Access lines of the sign-in callback carry the authorization code in the query.
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))


def main() -> None:
    """Start, or say in one line why not."""
    # Uvicorn raises the signal again after its graceful stop; without a handler of ours the exit code would be 143.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        serve(environment.load())
    except ConfigurationError as error:
        raise SystemExit(f"dashboard: {error}") from None

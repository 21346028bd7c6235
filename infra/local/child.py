"""What both embedded servers need: ports, patient waiting, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from typing import TYPE_CHECKING

from remit.clock import monotonic
from remit.errors import RemitError

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

LOOPBACK = "127.0.0.1"
POLL_S = 0.01
STOP_GRACE_S = 10.0


class ServerStartError(RemitError):
    """An embedded server did not become ready; the message ends with what its log said."""


class PortInUseError(ServerStartError):
    """The port is taken; the message names it and the remedy."""

    def __init__(self, what: str, port: int) -> None:
        """Name the server and the port."""
        super().__init__(
            f"{what} cannot listen on {LOOPBACK}:{port}: another process has that port. "
            "Stop that process (an earlier run?), or start with another port"
        )
        self.port = port


def free_port() -> int:
    """Return a port that was free a moment ago; whoever binds it must still expect to lose the race."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def port_taken(port: int) -> bool:
    """Return whether somebody listens on a port of the loopback interface."""
    with socket.socket() as probe:
        # Servers set it too: without it, connections in TIME_WAIT after a restart look like a foreign listener.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return True
    return False


async def exited(process: subprocess.Popen[bytes], within_s: float) -> bool:
    """Wait for a child to exit and reap it; return False when it still runs afterwards."""
    deadline = monotonic() + within_s
    while process.poll() is None:
        if monotonic() >= deadline:
            return False
        await asyncio.sleep(POLL_S)
    return True


async def end(process: subprocess.Popen[bytes], *, grace_s: float = STOP_GRACE_S) -> None:
    """Ask a server to stop with SIGINT, and insist with SIGKILL after the grace period."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
    if not await exited(process, grace_s):
        process.kill()
        await exited(process, grace_s)


def log_tail(path: Path, lines: int = 5) -> str:
    """Return the last lines of a log, for an error message."""
    if not path.exists():
        return "(no log)"
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

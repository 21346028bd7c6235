"""The one holder of what pages share in this process: Streamlit runs pages by path and can hand them nothing.

`dashboard.asgi` installs it before the first page runs; tests install their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from remit.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from dashboard.commands import Sender
    from dashboard.queries import Queries


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """Reads, commands and facts of this process."""

    queries: Queries
    sender: Sender
    live_version: Callable[[], str]
    issuer: str
    roles_claim: str
    environment: str


_installed: list[Backend] = []


def install(backend: Backend) -> None:
    """Make the backend what every page of this process sees."""
    _installed[:] = [backend]


def backend() -> Backend:
    """Return what was installed.

    Raises:
        ConfigurationError: a page ran outside the dashboard's own server.

    """
    if not _installed:
        raise ConfigurationError("no backend is installed; start the dashboard with `python -m dashboard`")
    return _installed[0]

"""Upstream credentials by name: fetched for one call, right before the claim, and never stored, logged or sent elsewhere."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_NAME = re.compile(r"^[a-z][a-z0-9_-]{0,62}$")
_USABLE = re.compile(r"^[\x21-\x7e]{1,4096}$")
"""What fits a header value without quoting: no spaces, no line breaks (RFC 9110 section 5.5)."""
ENVIRONMENT_PREFIX = "REMIT_CREDENTIAL_"


class CredentialProvider(Protocol):
    """Where secrets come from; a vault client is another implementation."""

    async def fetch(self, name: str) -> str | None:
        """Return the secret of that name, or None when there is none or it cannot be used."""
        ...


class FileCredentials:
    """One file per credential, read each time so that rotation needs no restart."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def fetch(self, name: str) -> str | None:
        """Return the content of `<directory>/<name>` without surrounding white space."""
        if not _NAME.match(name):
            return None
        try:
            text = await asyncio.to_thread((self._directory / name).read_text, "utf-8")
        except (OSError, UnicodeDecodeError):
            return None
        return usable(text)


class EnvironmentCredentials:
    """`REMIT_CREDENTIAL_<NAME>`, upper case, dashes as underscores."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    async def fetch(self, name: str) -> str | None:
        """Return the variable's value without surrounding white space."""
        return usable(self._environment.get(ENVIRONMENT_PREFIX + name.upper().replace("-", "_"), ""))


class FirstOf:
    """Asks several providers in order."""

    def __init__(self, *providers: CredentialProvider) -> None:
        self._providers = providers

    async def fetch(self, name: str) -> str | None:
        """Return the first secret found."""
        for provider in self._providers:
            found = await provider.fetch(name)
            if found is not None:
                return found
        return None


def usable(text: str) -> str | None:
    """Return the secret when it can stand in a header, else None."""
    stripped = text.strip()
    return stripped if _USABLE.match(stripped) else None

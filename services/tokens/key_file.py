"""The key file on disk: read again while running, and replaced whole when a key is rotated."""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any

import structlog

from remit.errors import ConfigurationError
from remit.runtime.keys import read_json
from services.tokens.signing import KeyRing

if TYPE_CHECKING:
    from pathlib import Path

log = structlog.get_logger("remit.tokens")

NAME = "tokens/token_keys.json"


class KeyFile:
    """Holds the last valid key ring; a broken file is reported and changes nothing."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / NAME
        self._ring = KeyRing.parse(read_json(self._path))

    def ring(self) -> KeyRing:
        """Return the keys as last read."""
        return self._ring

    async def watch(self, pause_s: float) -> None:
        """Read the file again for ever."""
        while True:
            await asyncio.sleep(pause_s)
            self.reload()

    def reload(self) -> None:
        """Read once; the file is small and local."""
        try:
            ring = KeyRing.parse(read_json(self._path))
        except ConfigurationError as error:
            log.error("key file refused, the old keys stay", detail=str(error))  # noqa: TRY400  (no stack needed)
            return
        if [key.kid for key in ring.keys] != [key.kid for key in self._ring.keys]:
            log.info("token keys changed", kids=[key.kid for key in ring.keys])
        self._ring = ring


def replace(directory: Path, document: dict[str, Any]) -> None:
    """Write the key file whole, readable by its owner only; a reader sees the old or the new one."""
    path = directory / NAME
    fresh = path.with_suffix(".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(document, file)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)

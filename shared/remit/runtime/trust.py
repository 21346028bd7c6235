"""Whom to believe, kept current: the event keys of the key file, read again when the file changes or a kid is unknown.

A rotated key is believed, and a distrusted one refused, by replicas that run on. A file whose signature does not fit changes
nothing: the keys that were verified last stay in force. Source: design, bus section 5.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from remit.clock import monotonic
from remit.envelope import TrustedKey
from remit.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

LOOK_EVERY_S = 10.0
UNKNOWN_PAUSE_S = 1.0
"""Least time between two looks that unknown kids cause; junk must not turn into file reads."""


class TrustRing(Mapping[str, TrustedKey]):
    """Event keys by kid; a look-up of an unknown kid looks at the files first.

    `load` verifies and returns them, or raises ConfigurationError; `files` are what it reads.
    """

    def __init__(self, files: tuple[Path, ...], load: Callable[[], Mapping[str, TrustedKey]]) -> None:
        """Load once.

        Raises:
            ConfigurationError: there is nothing to believe yet.

        """
        self._files, self._load = files, load
        self._stamp = self._file_stamp()
        self._keys = load()
        self._asked_at = float("-inf")
        self.on_refused: Callable[[str], None] = lambda _: None
        """Told why a changed file was not believed."""

    def __getitem__(self, kid: str) -> TrustedKey:
        found = self._keys.get(kid)
        if found is None and monotonic() - self._asked_at >= UNKNOWN_PAUSE_S:
            self.refresh()
            found = self._keys.get(kid)
        if found is None:
            raise KeyError(kid)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def refresh(self) -> None:
        """Read the key file again if it changed; a refused one is looked at again the next time."""
        self._asked_at = monotonic()
        stamp = self._file_stamp()
        if stamp == self._stamp:
            return
        try:
            keys = self._load()
        except ConfigurationError as error:
            self.on_refused(str(error))
            return
        self._keys, self._stamp = keys, stamp

    async def watch(self) -> None:
        """Look for ever, so that a distrusted kid is forgotten although nobody asks for an unknown one."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            self.refresh()

    def _file_stamp(self) -> tuple[tuple[int, int], ...] | None:
        try:
            found = [path.stat() for path in self._files]
        except OSError:
            return None
        return tuple((stat.st_mtime_ns, stat.st_ino) for stat in found)

"""The bundle in force as policy sees it: none yet means wait, too old means deny."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from remit.errors import StaleBundleError

if TYPE_CHECKING:
    from collections.abc import Callable

    from remit.evaluation import CompiledBundle


@dataclass(frozen=True, slots=True)
class Stale:
    """The last bundle that was in force, which may not permit anything any more."""

    digest: str
    version: int


class BundleInForce:
    """Remembers which bundle was last in force, so that a verdict on a stale one can still name it."""

    def __init__(self, current: Callable[[], CompiledBundle]) -> None:
        self._current = current
        self._last: Stale | None = None

    def read(self) -> CompiledBundle | Stale:
        """Return the bundle, or its name when it is stale.

        Raises:
            StaleBundleError: none was ever read: nothing can be said yet, so the action waits.

        """
        try:
            bundle = self._current()
        except StaleBundleError:
            if self._last is None:
                raise
            return self._last
        if self._last is None or self._last.version != bundle.version:
            self._last = Stale(bundle.digest, bundle.version)
        return bundle

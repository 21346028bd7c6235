"""The tool that does nothing: dry runs and benchmarks go the whole way and touch nobody."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remit.reasons import Outcome
from services.executor.connectors.protocol import Ready
from services.executor.results import Answer

if TYPE_CHECKING:
    from services.executor.decide import Order


class NoopConnector:
    """Succeeds with `{"ok": true}`."""

    async def prepare(self, order: Order) -> Ready:  # noqa: ARG002  (the protocol's argument)
        """There is nothing to prepare."""
        return Ready()

    async def call(self, order: Order, ready: Ready) -> Answer:  # noqa: ARG002  (the protocol's arguments)
        """Perform nothing."""
        return Answer(outcome=Outcome.SUCCEEDED, value={"ok": True})

    async def close(self) -> None:
        """There is nothing to close."""

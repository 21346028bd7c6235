"""Time compressed for fault runs: redelivery and interrupted claims take seconds, so that a run costs seconds too.

The order of the limits is kept: heartbeats well below the broker's ack_wait, a claim's deadline above the tool's time limit, a
lease above one sweep. Rows that need the real times ask for `natural_time`.
"""

from __future__ import annotations

import importlib
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ACK_WAIT_S = 2.0
FASTER: dict[str, dict[str, Any]] = {
    "remit.runtime.streams": {"ACK_WAIT": timedelta(seconds=ACK_WAIT_S)},
    "remit.runtime.delivery": {
        "HEARTBEAT_S": ACK_WAIT_S / 3,
        "MAX_DELAY_S": 4.0,
        "UNKNOWN_KID_DELAY_S": 0.5,
        "NEWER_VERSION_DELAY_S": 2.0,
    },
    "remit.runtime.probes": {"PROBE_EVERY_S": 2.0},
    "services.executor.decide": {"CLAIM_MARGIN_S": 1.0},
    "services.executor.claims": {"LEASE_S": 3.0},
    "services.executor.calls": {"PAUSES_S": (0.05, 0.2)},
}
"""Module, constant, value in a fault run; each module says what its own value is for."""


def compress() -> Callable[[], None]:
    """Replace the constants in this process, wherever they were imported by name; return what puts them back."""
    replaced: list[tuple[object, str, Any]] = []
    for home, values in FASTER.items():
        for name, value in values.items():
            natural = getattr(importlib.import_module(home), name)
            for module in list(_holders(name, natural)):
                replaced.append((module, name, natural))
                setattr(module, name, value)

    def restore() -> None:
        for module, name, natural in replaced:
            setattr(module, name, natural)

    return restore


def _holders(name: str, natural: object) -> Iterator[object]:
    for found, module in list(sys.modules.items()):
        ours = found.startswith(("remit.", "services.", "infra.", "tests."))
        if ours and found != __name__ and getattr(module, name, None) is natural:
            yield module

"""Crash points for fault tests: `REMIT_CRASH=<service>:<point>` makes the process die hard there, as kill -9 would."""

from __future__ import annotations

import os

_ARMED = os.environ.get("REMIT_CRASH", "")  # noqa: TID251  (a test hook outside the settings, read once at import)
EXIT_CODE = 9


def crash_point(service: str, point: str) -> None:
    """Exit without any clean-up when this very point is armed (design, bus section 7)."""
    if _ARMED and f"{service}:{point}" == _ARMED:
        os._exit(EXIT_CODE)

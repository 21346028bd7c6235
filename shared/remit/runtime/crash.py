"""Crash points for fault tests: at a named point the process dies hard, as kill -9 would.

`REMIT_CRASH=<service>:<point>` or `<service>:<point>:<n>` arms one point: the process exits at its n-th pass. A fault test that
runs services in processes of its own may install a plan instead. Source: design, bus section 7.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Protocol, Self

from remit.errors import ConfigurationError

EXIT_CODE = 9


class CrashPlan(Protocol):
    """Decides at each pass of a point whether this is where the process dies."""

    def strikes(self, service: str, point: str) -> bool:
        """Return whether to die here and now."""
        ...


@dataclass(slots=True)
class OneCrash:
    """Strikes once: at the n-th pass of one point, `passes` being those still to come."""

    service: str
    point: str
    passes: int = 1

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `<service>:<point>[:<n>]`.

        Raises:
            ConfigurationError: it has another form.

        """
        service, _, rest = text.partition(":")
        point, _, passes = rest.partition(":")
        if not service or not point or not (passes or "1").isdecimal():
            raise ConfigurationError(f"REMIT_CRASH is {text!r}; expected <service>:<point> or <service>:<point>:<n>")
        return cls(service, point, int(passes or "1"))

    def strikes(self, service: str, point: str) -> bool:
        """Count the pass; True at the last one."""
        if (service, point) != (self.service, self.point):
            return False
        self.passes -= 1
        return self.passes == 0


_TEXT = os.environ.get("REMIT_CRASH", "")  # noqa: TID251  (a test hook outside the settings, read once at import)
_plan: CrashPlan | None = OneCrash.parse(_TEXT) if _TEXT else None


def install(plan: CrashPlan) -> None:
    """Let a plan decide from now on."""
    global _plan  # noqa: PLW0603  (one process, one plan)
    _plan = plan


def crash_point(service: str, point: str) -> None:
    """Exit without any clean-up when the plan says so."""
    if _plan is not None and _plan.strikes(service, point):
        os._exit(EXIT_CODE)

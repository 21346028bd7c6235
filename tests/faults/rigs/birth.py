"""Commands a zygote runs under, for faults that differ by service: what a fork does first, before it is built.

So one zygote serves every service, where a command prefix for each would need one zygote each.
"""

from __future__ import annotations

import os
import runpy
import sys
from typing import TYPE_CHECKING

from remit.runtime import crash

if TYPE_CHECKING:
    from collections.abc import Callable

    from remit.runtime.crash import CrashPlan


def at_birth(act: Callable[[str], None]) -> None:
    """Let every fork call `act` with the name of its service, in its own environment; the crash plan is installed then."""
    install = crash.install

    def born(plan: CrashPlan) -> None:
        act(os.environ["REMIT_REPLICA"].rstrip("0123456789").rstrip("-"))
        install(plan)

    crash.install = born


def become(command: list[str]) -> None:
    """Run `python -m MODULE ...` in this process."""
    _python, _flag, module, *rest = command
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)

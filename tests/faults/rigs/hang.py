"""A service that can be made to hang: `python -m tests.faults.rigs.hang python -m MODULE ...` runs MODULE with two traps set.

SIGUSR1 keeps the main thread, and with it the event loop, busy for ever; SIGUSR2 lets it wait for ever for a lock that nobody
releases. Other threads run on in both cases.
"""

from __future__ import annotations

import signal
import sys
import threading
from typing import TYPE_CHECKING

from tests.faults.rigs.birth import become

if TYPE_CHECKING:
    from types import FrameType

SPIN, DEADLOCK = signal.SIGUSR1, signal.SIGUSR2
PREFIX = (sys.executable, "-m", "tests.faults.rigs.hang")


def _spin(_number: int, _frame: FrameType | None) -> None:
    while True:
        pass


def _deadlock(_number: int, _frame: FrameType | None) -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def main() -> None:
    """Set the traps, then become the module."""
    signal.signal(SPIN, _spin)
    signal.signal(DEADLOCK, _deadlock)
    become(sys.argv[1:])


if __name__ == "__main__":
    main()

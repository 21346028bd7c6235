"""A wall clock of one's own for a service's processes: wrong by minutes, and set forwards or back while they run.

Only the wall clock is moved; time-outs and watchdogs go by the monotonic clock, which never steps. It has no effect on
nats-server, a static binary, and Postgres is left alone: the server's and the database's time are the judges.

`python -m tests.faults.rigs.clock python -m MODULE ...` runs MODULE with another `time.sleep`: libfaketime 0.9.10 makes
clock_nanosleep(2) fail with EINVAL once the monotonic clock is left alone, and hangs semaphores when it is not.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from remit.errors import ConfigurationError
from tests.faults.rigs.birth import become

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = "faketime"


def missing() -> str | None:
    """Return what this machine lacks, with the remedy; None when everything is there."""
    return None if shutil.which(PROGRAM) else "install faketime: apt-get install faketime"


def library() -> str:
    """Return the preloaded library that faketime itself would use.

    Raises:
        ConfigurationError: faketime is not installed.

    """
    lack = missing()
    if lack is not None:
        raise ConfigurationError(lack)
    command = [PROGRAM, "-f", "+0s", "env"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = next(line for line in said.splitlines() if line.startswith("LD_PRELOAD="))
    return found.removeprefix("LD_PRELOAD=")


@dataclass(frozen=True, slots=True)
class Clock:
    """One clock; `path` is the file its processes read the offset from at every look."""

    path: Path

    def set(self, offset_s: float) -> None:
        """Be so many seconds ahead of the true time, or behind it; running processes see it at once."""
        fresh = self.path.with_suffix(".new")
        fresh.write_text(f"{offset_s:+.0f}\n", encoding="ascii")
        fresh.replace(self.path)

    def prefix(self) -> tuple[str, ...]:
        """Return the command prefix for processes that go by this clock."""
        if not self.path.exists():
            self.set(0)
        return (
            "env",
            f"LD_PRELOAD={library()}",
            f"FAKETIME_TIMESTAMP_FILE={self.path}",
            "FAKETIME_NO_CACHE=1",
            "FAKETIME_DONT_FAKE_MONOTONIC=1",
            sys.executable,
            "-m",
            "tests.faults.rigs.clock",
        )


def _sleep(seconds: float) -> None:
    threading.Event().wait(seconds)


def main() -> None:
    """Replace the sleep, then become the module."""
    time.sleep = _sleep
    become(sys.argv[1:])


if __name__ == "__main__":
    main()

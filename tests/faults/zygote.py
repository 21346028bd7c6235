"""A process that has every service imported and forks one whenever it is asked: a real process for a few milliseconds.

It reads requests from standard input and writes answers to standard output, one JSON document a line:
`{"id", "service", "env", "log", "crash"}` is answered by `{"id", "pid"}`, and each end of a child by `{"exited", "code"}`.
It ends, and its children with it, when its standard input closes.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import mmap
import os
import random
import select
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remit.pipeline import PIPELINE
from remit.runtime import crash
from tests.faults.compressed import compress

PLAN_BYTES = 64
"""Size of a crash file: `<point>:<passes>` in ASCII, padded with zero bytes; all zero when nothing is armed."""


@dataclass(slots=True)
class FilePlan:
    """A crash plan that another process writes while this one runs; it disarms itself before it strikes."""

    shared: mmap.mmap

    @classmethod
    def at(cls, path: Path) -> FilePlan:
        """Map a crash file, shared."""
        with path.open("r+b") as file:
            return cls(mmap.mmap(file.fileno(), PLAN_BYTES))

    def strikes(self, service: str, point: str) -> bool:  # noqa: ARG002  (the file belongs to one instance of one service)
        """Count the pass of an armed point; True at the last one."""
        armed = self.shared[:PLAN_BYTES].rstrip(b"\0")
        if not armed:
            return False
        wanted, _, passes = armed.decode().partition(":")
        if wanted != point:
            return False
        left = int(passes) - 1
        text = b"" if left <= 0 else f"{wanted}:{left}".encode()
        self.shared[:PLAN_BYTES] = text.ljust(PLAN_BYTES, b"\0")
        return left <= 0


@dataclass(slots=True)
class Zygote:
    """Forks services and reports their ends."""

    apps: dict[str, Any]
    """Composition root by service name."""
    children: set[int]
    wake: int
    """Readable end of the pipe that a signal writes to."""
    pending: bytes = b""

    def serve(self) -> None:
        """Answer requests until standard input closes, then end every child."""
        _say({"ready": os.getpid()})
        while True:
            readable, _, _ = select.select([0, self.wake], [], [])
            if self.wake in readable:
                os.read(self.wake, 512)
                self._reap()
            if 0 in readable and not self._read():
                break
        for pid in self.children:
            os.kill(pid, signal.SIGKILL)

    def _read(self) -> bool:
        chunk = os.read(0, 65_536)
        *lines, self.pending = (self.pending + chunk).split(b"\n")
        for line in lines:
            request: dict[str, Any] = json.loads(line)
            pid = os.fork()
            if pid == 0:
                _become(request, self.apps[request["service"]])
            self.children.add(pid)
            _say({"id": request["id"], "pid": pid})
        return bool(chunk)

    def _reap(self) -> None:
        for pid in list(self.children):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                self.children.discard(pid)
                _say({"exited": pid, "code": os.waitstatus_to_exitcode(status)})


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Import everything once, then fork on request."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--natural-time", action="store_true", help="keep every time constant as it is")
    options = parser.parse_args()
    apps = {row.name: importlib.import_module(f"services.{row.name}.app") for row in PIPELINE}
    if not options.natural_time:
        compress()
    gc.collect()
    gc.freeze()
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Zygote(apps, set(), wake).serve()


def _become(request: dict[str, Any], app: Any) -> None:
    """Turn the fork into the service; never returns."""
    code = 1
    try:
        _detach(request["log"])
        os.environ.update(request["env"])
        random.seed()
        crash.install(FilePlan.at(Path(request["crash"])))
        app.build().run()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001  (the end of a process: whatever it is goes to its log)
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]  # there is an exception here
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _detach(path: str) -> None:
    """Give the fork its own session, signals and log, and nothing of the zygote's."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setsid()
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.closerange(3, 256)


if __name__ == "__main__":
    main()

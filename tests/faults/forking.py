"""The harness's side of the zygote: start a service as a fork, see it end, arm its crash points."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from tests.faults.zygote import PLAN_BYTES

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from infra.local.process import ProcessSpec

START_TIMEOUT_S = 60.0


@dataclass(slots=True)
class Forked:
    """A running service; its exit is reported by the zygote."""

    pid: int
    returncode: int | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait(self) -> int:
        """Wait for the end and return the exit code."""
        await self.ended.wait()
        return self.returncode if self.returncode is not None else -signal.SIGKILL

    def terminate(self) -> None:
        """Send SIGTERM."""
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)


class ForkServer:
    """One zygote; `prefix` is a command it runs under (`faketime -f +10m`, `ip netns exec NAME`)."""

    def __init__(self, directory: Path, *, prefix: tuple[str, ...] = (), natural_time: bool = False) -> None:
        """Remember how to start it; crash files and its log lie in `directory`."""
        self._directory, self._prefix, self._natural = directory, prefix, natural_time
        self._ids = itertools.count(1)
        self._starting: dict[int, asyncio.Future[Forked]] = {}
        self._running: dict[int, Forked] = {}
        self._process: asyncio.subprocess.Process
        self._reader: asyncio.Task[None]

    async def __aenter__(self) -> Self:
        """Start the zygote and wait until everything is imported."""
        self._directory.mkdir(parents=True, exist_ok=True)
        argv = (*self._prefix, sys.executable, "-m", "tests.faults.zygote")
        with (self._directory / "zygote.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *argv,
                *(("--natural-time",) if self._natural else ()),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        assert self._process.stdout is not None
        async with asyncio.timeout(START_TIMEOUT_S):
            ready = await self._process.stdout.readline()
        if not ready:
            raise RuntimeError(f"the zygote did not start; see {self._directory / 'zygote.log'}")
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close its standard input, which ends it and what it started."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), 5)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        self._reader.cancel()
        for forked in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                forked.kill()

    def crash_file(self, instance: str) -> Path:
        """Return the crash file of one instance, made when it is new."""
        path = self._directory / f"{instance}.crash"
        if not path.exists():
            path.write_bytes(b"\0" * PLAN_BYTES)
        return path

    def arm(self, instance: str, point: str, nth: int = 1) -> None:
        """Let a running or future process of this instance die at the n-th pass of a point from now."""
        with self.crash_file(instance).open("r+b") as file:
            file.write(f"{point}:{nth}".encode().ljust(PLAN_BYTES, b"\0"))

    def is_armed(self, instance: str) -> bool:
        """Return whether something is armed that has not struck."""
        return any(self.crash_file(instance).read_bytes())

    def disarm(self, instance: str) -> bool:
        """Take back what is armed; return whether anything was."""
        path = self.crash_file(instance)
        was_armed = self.is_armed(instance)
        with path.open("r+b") as file:
            file.write(b"\0" * PLAN_BYTES)
        return was_armed

    async def launch(self, spec: ProcessSpec) -> Forked:
        """Start one service; what `Supervisor` asks for."""
        number = next(self._ids)
        service = spec.argv[-1].removeprefix("services.")
        request: dict[str, Any] = {
            "id": number,
            "service": service,
            "env": dict(spec.env),
            "log": str(spec.log_path),
            "crash": str(self.crash_file(spec.name)),
        }
        started = self._starting[number] = asyncio.get_running_loop().create_future()
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        await self._process.stdin.drain()
        return await started

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            answer = json.loads(line)
            if "pid" in answer:
                forked = Forked(answer["pid"])
                self._running[forked.pid] = forked
                self._starting.pop(answer["id"]).set_result(forked)
            else:
                ended = self._running.pop(answer["exited"])
                ended.returncode = answer["code"]
                ended.ended.set()
        for forked in self._running.values():
            forked.ended.set()

"""One program to keep alive: how it is started, and what a started process must be able to do."""

from __future__ import annotations

import asyncio
import os
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

OTHER_PORT = re.compile(r"\{port:([a-z0-9-]+)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """One program to keep alive.

    `{port}` and `{name}` in `argv`, in values of `env` and in `ready_url` become the instance's own free port and its name;
    `{port:other}` becomes the port of the first instance of another spec.
    The child gets the supervisor's environment, then `env`, and `REMIT_REPLICA` unless `env` names it.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    cwd: Path | None = None
    log_path: Path
    ready_url: str | None = None

    def instance(self, name: str, port: int, port_of: Callable[[str], int]) -> ProcessSpec:
        """Return the spec of one replica; its log lies beside the original's, under its own name."""

        def fill(text: str) -> str:
            own = text.replace("{port}", str(port)).replace("{name}", name)
            return OTHER_PORT.sub(lambda found: str(port_of(found[1])), own)

        env = {"REMIT_REPLICA": name, **{key: fill(value) for key, value in self.env.items()}}
        return replace(
            self,
            name=name,
            argv=tuple(fill(part) for part in self.argv),
            env=env,
            log_path=self.log_path if name == self.name else self.log_path.with_name(f"{name}.log"),
            ready_url=fill(self.ready_url) if self.ready_url else None,
        )


class Running(Protocol):
    """A started process; `asyncio.subprocess.Process` is one."""

    pid: int

    @property
    def returncode(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        ...

    async def wait(self) -> int:
        """Wait for the end and return the exit code."""
        ...

    def terminate(self) -> None:
        """Send SIGTERM; raises ProcessLookupError when it is gone."""
        ...

    def kill(self) -> None:
        """Send SIGKILL; raises ProcessLookupError when it is gone."""
        ...


async def spawn(spec: ProcessSpec) -> Running:
    """Start a program of its own, detached from our terminal, its output appended to its log."""
    with spec.log_path.open("ab") as log:
        return await asyncio.create_subprocess_exec(
            *spec.argv,
            cwd=spec.cwd,
            env={**os.environ, **spec.env},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches the supervisor alone, which stops them in good order
        )

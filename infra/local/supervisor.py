"""Keeps processes alive: whatever exits is started again, alone, after a pause that grows while it keeps failing.

Services die on purpose when they cannot work (design, bus section 1 rule 5): the others go on, and nobody gives up.
"""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import httpx

from infra.local.child import LOOPBACK, ServerStartError, free_port, log_tail
from infra.local.process import ProcessSpec, Running, spawn
from infra.local.secret_files import make_private
from remit.clock import monotonic
from remit.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping
    from types import TracebackType

BACKOFF_MIN_S = 0.2
BACKOFF_MAX_S = 5.0
HEALTHY_AFTER_S = 10.0
"""A process that lived so long failed for a new reason: the pause starts small again."""
GRACE_S = 10.0
READY_POLL_S = 0.1
NOT_STARTED = 127
"""Exit code shells report for a command that could not be executed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What became of one instance so far; `pid` is None while it waits to be started again."""

    name: str
    pid: int | None
    port: int
    restarts: int
    last_exit: int | None


@dataclass(slots=True, kw_only=True)
class _Instance:
    spec: ProcessSpec
    port: int
    process: Running | None = None
    restarts: int = 0
    last_exit: int | None = None
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class Supervisor:
    """Runs specs, in as many replicas as `scale` says; a scaled spec's instances are `<name>-1`, `<name>-2`, ..."""

    def __init__(
        self,
        specs: Iterable[ProcessSpec],
        *,
        scale: Mapping[str, int] | None = None,
        say: Callable[[str], object] | None = None,
        launch: Callable[[ProcessSpec], Awaitable[Running]] = spawn,
        backoff_s: tuple[float, float] = (BACKOFF_MIN_S, BACKOFF_MAX_S),
    ) -> None:
        """Take the specs; `say` gets one line for each exit, `launch` starts one process, `backoff_s` is first and longest pause.

        Raises:
            ConfigurationError: two specs share a name, or `scale` names none of them.

        """
        listed = list(specs)
        self._specs, self._scale, self._say = {spec.name: spec for spec in listed}, dict(scale or {}), say
        self._launch_process, self._backoff_s = launch, backoff_s
        self._instances: dict[str, _Instance] = {}
        self._ports: dict[str, int] = {}
        if len(self._specs) != len(listed):
            raise ConfigurationError("two processes share a name; names must differ")
        unknown = sorted(set(self._scale) - set(self._specs))
        if unknown:
            raise ConfigurationError(f"SCALE names {', '.join(unknown)}; known: {', '.join(self._specs)}")

    async def start(self) -> Self:
        """Start every instance; readiness is `ready`'s question.

        Raises:
            ConfigurationError: a program does not exist.

        """
        for spec in self._specs.values():
            if shutil.which(spec.argv[0]) is None:
                raise ConfigurationError(f"{spec.name}: there is no program {spec.argv[0]}")
        for name in self._specs:
            if name in self._scale:
                await self.scale(name, self._scale[name])
            else:
                self._launch(name, name)
        return self

    async def scale(self, name: str, replicas: int) -> None:
        """Grow or shrink one spec to so many replicas; surplus ones are stopped in good order, highest number first."""
        self._scale[name] = replicas
        for number in range(1, replicas + 1):
            if f"{name}-{number}" not in self._instances:
                self._launch(name, f"{name}-{number}")
        surplus = [i for i in self._of(name) if int(i.spec.name.rsplit("-", 1)[1]) > replicas]
        await self._stop(surplus, GRACE_S)

    async def ready(self, timeout_s: float = 60.0) -> None:
        """Wait until every `ready_url` answers 200.

        Raises:
            ServerStartError: one did not in time; names it and quotes the end of its log.

        """
        deadline = monotonic() + timeout_s
        waiting = [i.spec for i in self._instances.values() if i.spec.ready_url]
        async with httpx.AsyncClient(timeout=2.0, trust_env=False) as client:
            while waiting:
                answers = await asyncio.gather(*(_is_ready(client, spec.ready_url or "") for spec in waiting))
                waiting = [spec for spec, ready in zip(waiting, answers, strict=True) if not ready]
                if waiting and monotonic() >= deadline:
                    late = waiting[0]
                    raise ServerStartError(
                        f"{', '.join(s.name for s in waiting)} not ready after {timeout_s:g} s; "
                        f"{late.log_path} ends with:\n{log_tail(late.log_path)}"
                    )
                await asyncio.sleep(READY_POLL_S if waiting else 0)

    async def stop(self, grace_s: float = GRACE_S) -> None:
        """Stop everything: SIGTERM to all at once, SIGKILL to whoever still runs after the grace period."""
        await self._stop(list(self._instances.values()), grace_s)

    def pids(self, name: str) -> list[int]:
        """Return the live process ids of a spec's instances, or of one instance."""
        found = [i.process for i in self._of(name) if i.process is not None]
        return [process.pid for process in found if process.returncode is None]

    def port(self, name: str) -> int:
        """Return the port that `{port}` stands for in one instance; it stays the same over restarts."""
        return self._instances[name].port

    def restarts(self, name: str) -> int:
        """Return how often a spec's instances were started again."""
        return sum(i.restarts for i in self._of(name))

    def status(self) -> list[Status]:
        """Return the state of every instance, in start order."""
        return [
            Status(
                name=i.spec.name,
                pid=i.process.pid if i.process and i.process.returncode is None else None,
                port=i.port,
                restarts=i.restarts,
                last_exit=i.last_exit,
            )
            for i in self._instances.values()
        ]

    async def __aenter__(self) -> Self:
        """Start."""
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        await self.stop()

    def _of(self, name: str) -> list[_Instance]:
        if name in self._instances:
            return [self._instances[name]]
        numbered = [f"{name}-{n}" for n in range(1, len(self._instances) + 1)]
        return [self._instances[n] for n in numbered if n in self._instances]

    def _launch(self, spec_name: str, name: str) -> None:
        port = self._port(name)
        instance = _Instance(spec=self._specs[spec_name].instance(name, port, self._first_port), port=port)
        make_private(instance.spec.log_path.parent)
        self._instances[name] = instance
        instance.task = asyncio.create_task(self._keep_alive(instance), name=f"supervise {name}")

    def _port(self, name: str) -> int:
        return self._ports.setdefault(name, free_port())

    def _first_port(self, spec_name: str) -> int:
        if spec_name not in self._specs:
            raise ConfigurationError(f"a process wants the port of {spec_name}, which is not one of the programs")
        return self._port(f"{spec_name}-1" if spec_name in self._scale else spec_name)

    async def _keep_alive(self, instance: _Instance) -> None:
        pause, longest = self._backoff_s
        while not instance.stopping.is_set():
            began = monotonic()
            instance.last_exit = await self._run_once(instance)
            if instance.stopping.is_set():
                return
            if monotonic() - began >= HEALTHY_AFTER_S:
                pause = self._backoff_s[0]
            if self._say:
                self._say(f"{instance.spec.name} exited with {instance.last_exit}; again in {pause:g} s")
            try:
                await asyncio.wait_for(instance.stopping.wait(), pause)
            except TimeoutError:
                instance.restarts += 1
                pause = min(pause * 2, longest)

    async def _run_once(self, instance: _Instance) -> int:
        try:
            instance.process = await self._launch_process(instance.spec)
        except OSError:
            return NOT_STARTED
        if instance.stopping.is_set():
            instance.process.terminate()
        return await instance.process.wait()

    async def _stop(self, instances: list[_Instance], grace_s: float) -> None:
        for instance in instances:
            instance.stopping.set()
            _send(instance, "terminate")
        tasks = [i.task for i in instances if i.task is not None]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=grace_s)
            if late:
                for instance in instances:
                    _send(instance, "kill")
                await asyncio.wait(late)
        for instance in instances:
            self._instances.pop(instance.spec.name, None)


def _send(instance: _Instance, what: str) -> None:
    process = instance.process
    if process is not None and process.returncode is None:
        try:
            process.terminate() if what == "terminate" else process.kill()
        except ProcessLookupError:
            return  # it exited by itself, and its task is about to notice


async def _is_ready(client: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await client.get(url)).is_success
    except httpx.HTTPError:
        return False


def loopback_url(path: str) -> str:
    """Return a `ready_url` on the instance's own port."""
    return f"http://{LOOPBACK}:{{port}}{path}"

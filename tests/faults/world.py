"""A whole installation that may be broken: real servers, six services as forked processes, the oracle, one agent, its people."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, Self

import orjson

from infra.demo.stage import AGENT, REGISTRY, Stage
from infra.demo.tasks import AGENT_ID
from infra.local import key_ring
from infra.local.environment import Environment
from infra.local.process import ProcessSpec, Running, spawn
from infra.local.supervisor import Supervisor
from remit.clock import now
from remit.commands import ApplyCommand
from remit.pipeline import PIPELINE
from remit.registry_files import load_registry
from remit.runtime.streams import CONSUMERS
from tests.faults.compressed import compress
from tests.faults.forking import ForkServer
from tests.faults.oracle import ENVIRONMENT, IDEMPOTENCY, POLICIES, TOOL, Effect, entry, read_effects
from tests.faults.workload import Workload
from tests.support.servers import connected
from tests.support.waiting import eventually

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Generator, Mapping
    from pathlib import Path
    from types import TracebackType

    import asyncpg

    from infra.demo.people import People
    from remit import Agent
    from remit.bundle import BundleContent

Settings = dict[str, dict[str, str]]
SERVICES = tuple(row.name for row in PIPELINE)
PROPOSALS_PER_MINUTE = 1_000_000
MAX_CALLS = 1_000_000
LIFE = timedelta(hours=12)
RESTART_S = (0.05, 0.5)
"""A service that was killed comes back at once: what is on trial is what it finds."""
QUICK: Settings = {
    "executor": {"REMIT_SWEEP_S": "0.3", "REMIT_OUTBOX_AFTER_S": "0.5"},
    "approval": {"REMIT_SWEEP_S": "0.3"},
    "audit": {"REMIT_HEARTBEAT_S": "1", "REMIT_CHECKPOINT_EVERY_S": "2", "REMIT_RECONCILE_EVERY_S": "3"},
}
"""What services do by the clock comes soon."""


async def _nothing(_: World) -> Mapping[str, Mapping[str, str]]:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a world differs from the usual one.

    `settings` are further variables by service; `prepare` runs when the servers stand and no service does, and returns more of
    them; `prefix` is the command a service's processes run under.
    """

    replicas: Mapping[str, int] = field(default_factory=dict[str, int])
    settings: Mapping[str, Mapping[str, str]] = field(default_factory=dict[str, dict[str, str]])
    nodes: Literal[1, 3] = 1
    prefix: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    prepare: Callable[[World], Awaitable[Mapping[str, Mapping[str, str]]]] = _nothing
    natural_time: bool = False


class FaultStage(Stage):
    """The demonstration's stage with forked services and the oracle in place of the bank."""

    def __init__(self, directory: Path, options: Options) -> None:
        """Remember what to start."""
        super().__init__(directory, scale=options.replicas, dashboard=False, say=lambda _: None)
        self.options = options
        self.environment = Environment(directory, agents=(AGENT,), nodes=options.nodes)
        self.oracle_log = directory / "oracle.jsonl"
        self.prepare: Callable[[], Awaitable[Mapping[str, Mapping[str, str]]]]
        self.forks: dict[tuple[str, ...], ForkServer] = {}
        self.instances: dict[str, ForkServer] = {}
        self._routed: Mapping[str, Mapping[str, str]] = {}

    async def _start_programs(self) -> None:
        for prefix in {self.options.prefix.get(name, ()) for name in SERVICES}:
            directory = self.directory / f"forks-{len(self.forks)}"
            server = ForkServer(directory, prefix=prefix, natural_time=self.options.natural_time)
            self.forks[prefix] = await self._stack.enter_async_context(server)
        self._routed = await self.prepare()
        await super()._start_programs()

    def _service_settings(self, credentials: Path) -> Settings:
        sources = (super()._service_settings(credentials), QUICK, self.options.settings, self._routed)
        return {name: {k: v for source in sources for k, v in source.get(name, {}).items()} for name in SERVICES}

    def _bank(self) -> ProcessSpec:
        port = str(self.ports["bank"])
        return ProcessSpec(
            name=TOOL,
            argv=(sys.executable, "-m", "tests.faults.oracle", "--port", port, "--log", str(self.oracle_log)),
            log_path=self.directory / "logs" / "oracle.log",
            ready_url=f"{self.bank_url}/healthz",
        )

    def _supervise(self, specs: list[ProcessSpec]) -> Supervisor:
        return Supervisor(specs, scale=self._scale, say=self._say, launch=self._launch, backoff_s=RESTART_S)

    async def _launch(self, spec: ProcessSpec) -> Running:
        service = spec.argv[-1].removeprefix("services.")
        if service not in SERVICES:
            return await spawn(spec)
        forks = self.forks[self.options.prefix.get(service, ())]
        self.instances[spec.name] = forks
        return await forks.launch(spec)

    def registry(self) -> BundleContent:
        """Return the demonstration's registry with the oracle in place of the bank."""
        variables = {
            "BANK_URL": self.bank_url,
            "BANK_HOST": self.bank_url.removeprefix("http://"),
            "BOOKKEEPER_PUBLIC_KEY": key_ring.load_agent_public_key(self.environment.keys_dir, AGENT),
        }
        demo = load_registry(REGISTRY, variables)
        mine = demo.agents[AGENT].model_copy(update={"proposals_per_minute": PROPOSALS_PER_MINUTE})
        content = {
            "tools": {TOOL: entry(self.bank_url)},
            "agents": {AGENT: mine},
            "policies": {"oracle.cedar": POLICIES},
        }
        return demo.model_copy(update=content)


class World:
    """`async with World(directory, chance)` starts everything; `settle` waits until all of it is concluded."""

    def __init__(self, directory: Path, chance: random.Random, options: Options = Options()) -> None:
        """Remember what to start; `chance` decides everything that is random."""
        self.directory, self.chance, self.options = directory, chance, options
        self.stage = FaultStage(directory, options)
        self.stage.prepare = lambda: options.prepare(self)
        self.remit_id = ""
        self.people: People
        self.agent: Agent
        self.admin: asyncpg.Pool[asyncpg.Record]
        self.workload: Workload
        self._effects: list[Effect] = []
        self._read_to = 0
        self._stack = contextlib.AsyncExitStack()

    @property
    def environment(self) -> Environment:
        """Servers, keys and URLs."""
        return self.stage.environment

    @property
    def services(self) -> Supervisor:
        """The six services, the oracle and the identity provider."""
        return self.stage.supervisor

    async def __aenter__(self) -> Self:
        """Start everything, publish the registry, grant one remit."""
        async with contextlib.AsyncExitStack() as stack:
            if not self.options.natural_time:
                stack.callback(compress())
            await stack.enter_async_context(self.stage)
            self.admin = await self.stage.database(self.environment.admin_url)
            self.people, self.agent = await self.stage.people(), await self.stage.agent()
            reply = await self.people.command("otto", ApplyCommand, content=self.stage.registry(), base_version=0)
            assert reply.status == "ok", reply
            self.remit_id = await self.grant()
            self.workload = await stack.enter_async_context(Workload(self))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop everything."""
        await self._stack.aclose()

    async def grant(self, **terms: Any) -> str:
        """Let Emma delegate every action of the oracle, for longer than any run lasts."""
        begin = now()
        grants = [{"type": "tool_call", "tool": TOOL, "action": name} for name in IDEMPOTENCY]
        usual: dict[str, Any] = {
            "agent_id": AGENT_ID,
            "task": "Find out what survives",
            "grants": grants,
            "environment": ENVIRONMENT,
            "not_before": (begin - timedelta(hours=1)).isoformat(),
            "expires_at": (begin + LIFE).isoformat(),
            "max_calls": MAX_CALLS,
        }
        return await self.people.grant({**usual, **terms})

    # What faults are made of

    def arm(self, instance: str, point: str, nth: int = 1) -> None:
        """Let a process of an instance die hard at the n-th pass of a crash point from now; it disarms itself."""
        self.stage.instances[instance].arm(instance, point, nth)

    def disarm(self, instance: str) -> bool:
        """Take back what is armed; False when it has struck, or nothing was."""
        return self.stage.instances[instance].disarm(instance)

    def is_armed(self, instance: str) -> bool:
        """Return whether a crash point of an instance is armed and has not struck yet."""
        return self.stage.instances[instance].is_armed(instance)

    async def kill(self, service: str) -> None:
        """Kill every process of a service, and return when each was started again."""
        before, pids = self.services.restarts(service), self.services.pids(service)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await eventually(lambda: self.services.restarts(service) >= before + len(pids), within_s=30)

    @contextlib.contextmanager
    def paused(self, service: str) -> Generator[None]:
        """Stop the processes of a service in their tracks for as long as the block lasts."""
        held = self.services.pids(service)
        for pid in held:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in held:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    # What became of it

    async def effects(self) -> list[Effect]:
        """Return what the oracle did, from its own log."""
        if self.stage.oracle_log.exists():
            with self.stage.oracle_log.open("rb") as log:
                log.seek(self._read_to)
                text = log.read()
            whole = text.rfind(b"\n") + 1
            self._read_to += whole
            self._effects.extend(read_effects(text[:whole]))
        return self._effects

    async def consumers(self) -> dict[str, tuple[int, int]]:
        """Return (undelivered, unacknowledged) by durable, as its leader counts them; what does not answer counts as -1."""
        found: dict[str, tuple[int, int]] = {}
        async with connected(self.environment.nats_url, self.environment.keys_dir, "provisioner") as client:
            for spec in CONSUMERS:
                subject = f"$JS.API.CONSUMER.INFO.{spec.stream}.{spec.durable}"
                answer = orjson.loads((await client.request(subject, b"", timeout=5)).data)
                counts = answer.get("num_pending", -1), answer.get("num_ack_pending", -1)
                found[f"{spec.stream}/{spec.durable}"] = counts
        return found

    def describe(self) -> str:
        """Return what every process does now, for the message of a failure."""
        return json.dumps([[s.name, s.pid, s.restarts, s.last_exit] for s in self.services.status()])

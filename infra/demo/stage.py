"""The demonstration's stage: the environment, the six services, the bank, the identity provider and the dashboard, all running.

Every part is a process of its own under one supervisor; nothing is imported from one into another.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shlex
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self

import asyncpg
import httpx
import nats

from infra.demo.people import CLIENT_ID, CommandRefusedError, People
from infra.demo.tasks import IDENTITY
from infra.local import key_ring, secret_files
from infra.local.child import free_port
from infra.local.environment import Environment, Given
from infra.local.process import ProcessSpec
from infra.local.supervisor import Supervisor
from remit import Agent, Identity
from remit.commands import ApplyCommand
from remit.registry_files import load_registry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

REGISTRY = Path(__file__).parent / "registry"
AGENT = "bookkeeper"
DASHBOARD_CLIENT = "remit-dashboard"


class Stage:
    """`async with Stage(directory, ...)` starts everything and stops it again."""

    def __init__(
        self,
        directory: Path,
        *,
        scale: Mapping[str, int],
        dashboard: bool,
        say: Callable[[str], object],
    ) -> None:
        """Remember what to start; `say` gets one line a step."""
        self.directory, self._scale, self._dashboard, self._say = directory, dict(scale), dashboard, say
        self.environment = Environment(directory, agents=(AGENT,), given=Given.from_environment(), say=say)
        self.ports = {name: free_port() for name in ("identity", "bank", "dashboard")}
        self.secrets = {name: secrets.token_urlsafe(24) for name in ("bank", "control", "client")}
        self.supervisor: Supervisor
        self._stack = AsyncExitStack()

    @property
    def issuer(self) -> str:
        """The local OpenID provider."""
        return f"http://localhost:{self.ports['identity']}"

    @property
    def bank_url(self) -> str:
        """The tool server."""
        return f"http://127.0.0.1:{self.ports['bank']}"

    @property
    def dashboard_url(self) -> str:
        """Where people look."""
        return f"http://localhost:{self.ports['dashboard']}"

    async def __aenter__(self) -> Self:
        """Start everything, in the order of dependence."""
        async with AsyncExitStack() as stack:  # whatever stops the start also stops what was started
            self._stack = stack
            await self._start()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop everything, in reverse order."""
        await self._stack.aclose()

    async def _start(self) -> None:
        await self._stack.enter_async_context(self.environment)
        await self._start_programs()

    async def _start_programs(self) -> None:
        credentials = secret_files.make_private(self.directory / "credentials")
        secret_files.write(credentials / "bank-token", self.secrets["bank"])
        extra = self._service_settings(credentials)
        specs = [self._identity(), self._bank(), *self.environment.services(extra)]
        if self._dashboard:
            specs.append(self._dashboard_process())
        self._say(f"starting {len(specs)} programs: {', '.join(spec.name for spec in specs)}")
        self.supervisor = await self._stack.enter_async_context(self._supervise(specs))
        await self.supervisor.ready(120)

    def _supervise(self, specs: list[ProcessSpec]) -> Supervisor:
        return Supervisor(specs, scale=self._scale, say=self._say)

    def _service_settings(self, credentials: Path) -> dict[str, dict[str, str]]:
        issuers = [{"issuer": self.issuer, "client_ids": [CLIENT_ID, DASHBOARD_CLIENT]}]
        quick = {"REMIT_BUNDLE_POLL_S": "2"}
        settings = {name: dict(quick) for name in ("intake", "policy", "approval", "tokens", "executor", "audit")}
        settings["approval"] |= {"REMIT_OIDC_ISSUERS": json.dumps(issuers), "REMIT_SWEEP_S": "1"}
        settings["executor"] |= {
            "REMIT_JWKS_URL": "http://127.0.0.1:{port:tokens}/.well-known/jwks.json",
            "REMIT_CREDENTIALS_DIR": str(credentials),
        }
        settings["audit"] |= {
            "REMIT_CHECKPOINT_DIR": str(self.directory / "checkpoints"),
            "REMIT_CHECKPOINT_EVERY_S": "2",
        }
        return settings

    def _identity(self) -> ProcessSpec:
        return ProcessSpec(
            name="identity",
            argv=(sys.executable, "-m", "infra.demo.identity", "--port", str(self.ports["identity"])),
            log_path=self.directory / "logs" / "identity.log",
            ready_url=f"{self.issuer}/.well-known/openid-configuration",
        )

    def _bank(self) -> ProcessSpec:
        return ProcessSpec(
            name="bank",
            argv=(sys.executable, "-m", "infra.demo.bank", "--port", str(self.ports["bank"])),
            env={
                "BANK_TOKEN": self.secrets["bank"],
                "BANK_CONTROL_TOKEN": self.secrets["control"],
                "BANK_EFFECTS": str(self.directory / "bank-effects.jsonl"),
            },
            log_path=self.directory / "logs" / "bank.log",
            ready_url=f"{self.bank_url}/healthz",
        )

    def _dashboard_process(self) -> ProcessSpec:
        return ProcessSpec(
            name="dashboard",
            argv=(sys.executable, "-m", "dashboard"),
            env={
                **self.environment.variables("dashboard"),
                "REMIT_DASHBOARD_PORT": str(self.ports["dashboard"]),
                "REMIT_DASHBOARD_NKEY_SEED_FILE": str(self.environment.keys_dir / "dashboard" / "nats.nk"),
                "REMIT_DASHBOARD_OIDC_ISSUER": self.issuer,
                "REMIT_DASHBOARD_OIDC_CLIENT_ID": DASHBOARD_CLIENT,
                "REMIT_DASHBOARD_OIDC_CLIENT_SECRET": self.secrets["client"],
                "REMIT_DASHBOARD_COOKIE_SECRET_FILE": str(self.environment.keys_dir / "dashboard" / "cookie.secret"),
            },
            log_path=self.directory / "logs" / "dashboard.log",
            ready_url=f"http://127.0.0.1:{self.ports['dashboard']}/healthz",
        )

    async def people(self) -> People:
        """Connect the command line and log the people in."""
        seed = key_ring.load_nats_seed(self.environment.keys_dir, "cli")
        client = await nats.connect(self.environment.nats_servers, nkeys_seed_str=seed, inbox_prefix=b"_IBX.cli")
        self._stack.push_async_callback(client.close)
        return People(client, self.issuer)

    async def apply_registry(self, people: People) -> int:
        """Let Otto publish the registry and the policies; return the bundle version in force.

        Raises:
            CommandRefusedError: the bundle was refused; the message says what is wrong with it.

        """
        variables = {
            **os.environ,
            "BANK_URL": self.bank_url,
            "BANK_HOST": self.bank_url.removeprefix("http://"),
            "BOOKKEEPER_PUBLIC_KEY": key_ring.load_agent_public_key(self.environment.keys_dir, AGENT),
        }
        reply = await people.command("otto", ApplyCommand, content=load_registry(REGISTRY, variables), base_version=0)
        if reply.status != "ok" or reply.bundle_version is None:
            raise CommandRefusedError(f"the registry was not applied: {reply.status}: {reply.detail}")
        return reply.bundle_version

    async def verify_audit(self) -> bool:
        """Let `remit audit verify` recompute the ledger from rows, stream and checkpoints; True when nothing is wrong."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *(
                "-m",
                "remit.cli",
                "audit",
                "verify",
                "--json",
                "--nats",
                "--checkpoints",
                str(self.directory / "checkpoints"),
            ),
            env={**os.environ, **self.environment.variables("auditor")},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        (self.directory / "logs" / "audit-verify.log").write_bytes(output)
        return process.returncode == 0

    def write_variables(self, remit_id: str) -> Path:
        """Write what the command line and an agent need to join in, for the shell's `source`; only its owner can read it."""
        keys = self.environment.keys_dir
        found = {
            **self.environment.variables("cli"),
            "REMIT_CLI_SEED_FILE": str(keys / "cli" / "nats.nk"),
            "REMIT_OIDC_ISSUER": self.issuer,
            "REMIT_OIDC_CLIENT_ID": CLIENT_ID,
            "REMIT_AGENT": AGENT,
            "REMIT_AGENT_SEED_FILE": str(keys / "agents" / AGENT / "nats.nk"),
            "REMIT_ID": remit_id,
            **{f"REMIT_AGENT_{name.upper()}": value for name, value in IDENTITY.items()},
        }
        path = self.directory / "demo.env"
        secret_files.write(path, "".join(f"export {name}={shlex.quote(value)}\n" for name, value in found.items()))
        return path

    async def agent(self) -> Agent:
        """Connect the agent with its own key; it may propose and hear its own results, nothing else."""
        agent = Agent(
            name=AGENT,
            nkey_seed=key_ring.load_agent_seed(self.environment.keys_dir, AGENT),
            servers=self.environment.nats_servers,
            identity=Identity(**IDENTITY, session="demo"),
        )
        return await self._stack.enter_async_context(agent)

    async def database(self, url: str) -> asyncpg.Pool[asyncpg.Record]:
        """Open a small pool."""
        return await self._stack.enter_async_context(asyncpg.create_pool(url, min_size=1, max_size=4))

    async def bank_control(self) -> httpx.AsyncClient:
        """Open the bank's control door."""
        headers = {"Authorization": f"Bearer {self.secrets['control']}"}
        http = httpx.AsyncClient(base_url=self.bank_url, headers=headers, trust_env=False, timeout=10)
        return await self._stack.enter_async_context(http)

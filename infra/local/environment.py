"""One whole local installation: keys, servers, schema, roles, streams. What the demo and the tests stand on.

`NATS_URL` and `DATABASE_URL` switch to given servers: the broker must then know the keys in `REMIT_KEYS_DIR`, and the database
URL must belong to a role that may create roles and schemas.
"""

from __future__ import annotations

import os
import secrets
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import nats

from infra.local import key_ring, keys, secret_files
from infra.local.nats_cluster import NatsCluster
from infra.local.nats_server import NatsServer, server_config
from infra.local.postgres_server import PostgresServer
from infra.local.process import ProcessSpec
from infra.postgres.migrate import migrate
from infra.postgres.roles import ROLES, apply_roles, role_url
from infra.provision import provision_within
from remit.pipeline import PIPELINE
from remit.runtime.keys import read
from remit.runtime.streams import Sizing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

PROVISION_WAIT_S = 60.0
DATABASE_OF: dict[str, str] = {
    "approval": "remit_approval",
    "executor": "remit_executor",
    "audit": "remit_audit",
    "auditor": "remit_auditor",
    "dashboard": "remit_dashboard",
    "cli": "remit_dashboard",
}
"""Which role each program logs in as; the others own no database."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """Servers named by the caller instead of embedded ones."""

    nats_url: str | None = None
    database_url: str | None = None
    keys_dir: Path | None = None

    @classmethod
    def from_environment(cls) -> Given:
        """Read NATS_URL, DATABASE_URL and REMIT_KEYS_DIR."""
        keys_dir = os.environ.get("REMIT_KEYS_DIR")
        return cls(
            nats_url=os.environ.get("NATS_URL") or None,
            database_url=os.environ.get("DATABASE_URL") or None,
            keys_dir=Path(keys_dir) if keys_dir else None,
        )


class Environment:
    """Everything below the services, in one directory. `async with Environment(directory)` starts and stops it."""

    def __init__(
        self,
        directory: Path,
        *,
        agents: tuple[str, ...] = ("bookkeeper",),
        nodes: Literal[1, 3] = 1,
        given: Given | None = None,
        say: Callable[[str], object] = lambda _: None,
    ) -> None:
        """Remember where; nothing is started. `nodes` nats-servers hold every stream; `say` gets one line a step."""
        self.directory, self.agents, self._say = directory, agents, say
        self.nodes: Literal[1, 3] = nodes
        self.given = given or Given()
        self.keys_dir = self.given.keys_dir or directory / "keys"
        self.nats: NatsServer | None = None
        self.cluster: NatsCluster | None = None
        self.postgres: PostgresServer | None = None
        self._nats_url = self.given.nats_url or ""
        self._admin_url = self.given.database_url or ""
        self._passwords: dict[str, str] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Start the servers and prepare what lies in them."""
        async with AsyncExitStack() as stack:  # whatever stops the start also stops what was started
            self._stack = stack
            await self._start()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop what was started, in reverse order."""
        await self._stack.aclose()

    async def _start(self) -> None:
        secret_files.make_private(self.directory)
        keys.generate(self.keys_dir, "local", self.agents)
        if not self._nats_url:
            self._nats_url = await self._start_nats(self.directory / "nats")
        if not self._admin_url:
            self._say("starting Postgres")
            self.postgres = await self._stack.enter_async_context(PostgresServer(self.directory / "postgres"))
            self._admin_url = await self.postgres.create_database("remit")
        self._say("preparing streams and schema")
        await self.provision()
        await migrate(self._admin_url)
        self._passwords = {role: self._password(role) for role in ROLES}
        await apply_roles(self._admin_url, self._passwords)

    async def _start_nats(self, folder: Path) -> str:
        self._say(f"starting NATS with JetStream{' on three nodes' if self.nodes > 1 else ''}")
        if self.nodes > 1:
            self.cluster = await self._stack.enter_async_context(NatsCluster(self.keys_dir, folder))
            return self.cluster.url
        self.nats = await self._stack.enter_async_context(NatsServer(server_config(self.keys_dir, folder), folder))
        return self.nats.url

    async def provision(self) -> None:
        """Make streams and consumers what the table says; also what puts them right after somebody changed them.

        Raises:
            ProvisionError: what is there cannot be brought in line.

        """
        seed = key_ring.load_nats_seed(self.keys_dir, "provisioner")
        client = await nats.connect(self.nats_servers, nkeys_seed_str=seed, inbox_prefix=b"_IBX.provisioner")
        try:
            await provision_within(client, Sizing(replicas=self.nodes), wait_s=PROVISION_WAIT_S)
        finally:
            await client.close()

    def _password(self, role: str) -> str:
        path = self.keys_dir / "postgres" / f"{role}.password"
        if not path.exists():
            secret_files.write(path, secrets.token_urlsafe(24))
        return read(path)

    @property
    def nats_url(self) -> str:
        """Where clients connect, comma separated."""
        return self._nats_url

    @property
    def brokers(self) -> list[NatsServer]:
        """The nats-servers that this environment started."""
        if self.cluster is not None:
            return list(self.cluster.nodes.values())
        return [self.nats] if self.nats is not None else []

    @property
    def nats_servers(self) -> list[str]:
        """The same as a list, for nats-py."""
        return self._nats_url.split(",")

    @property
    def admin_url(self) -> str:
        """The database URL of the owner; migrations and tests only."""
        return self._admin_url

    def database_url(self, program: str) -> str:
        """Return the database URL of a program's own role.

        Raises:
            KeyError: the program owns no database.

        """
        role = DATABASE_OF[program]
        return role_url(self._admin_url, role, self._passwords[role])

    def variables(self, program: str) -> dict[str, str]:
        """Return the environment variables every program of ours needs."""
        found = {"NATS_URL": self._nats_url, "REMIT_KEYS_DIR": str(self.keys_dir), "DATABASE_URL": ""}
        if program in DATABASE_OF:
            found["DATABASE_URL"] = self.database_url(program)
        return found

    def service(self, name: str, extra: Mapping[str, str] | None = None) -> ProcessSpec:
        """Return how the supervisor runs one service: its own process, port, log and database role."""
        return ProcessSpec(
            name=name,
            argv=(sys.executable, "-m", f"services.{name}"),
            env={**self.variables(name), "REMIT_HTTP_PORT": "{port}", **(extra or {})},
            log_path=self.directory / "logs" / f"{name}.log",
            ready_url="http://127.0.0.1:{port}/readyz",
        )

    def services(self, extra: Mapping[str, Mapping[str, str]]) -> list[ProcessSpec]:
        """Return the six services in pipeline order; `extra` holds further variables by service."""
        return [self.service(row.name, extra.get(row.name)) for row in PIPELINE]

"""An embedded Postgres from the wheel's programs alone: SCRAM only, data checksums, loopback TCP, fsync on.

The wheel's own `get_server()` is never called: it trusts every local user and kills foreign processes.
Source: design, parts section 3.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Self

import asyncpg

from infra.local import child, postgres_identity, secret_files
from infra.local.postgres_identity import NOGROUP, REMEDY, Identity, bin_dir
from remit.clock import monotonic
from remit.errors import ConfigurationError
from remit.runtime.keys import read

if TYPE_CHECKING:
    from types import TracebackType

START_TIMEOUT_S = 20.0
RETRY_S = 0.2
CONNECT_TIMEOUT_S = 2.0
MAX_SOCKET_DIR_BYTES = 90
"""A socket's path must stay below 107 bytes, its file name included."""
MAX_CONNECTIONS = 200
"""Six services, some of them in several replicas, each with its pool."""
SUPERUSER = "postgres"
DATABASE_NAME = re.compile(r"^[a-z][a-z0-9_]{0,62}$")
INITDB = "-A scram-sha-256 -E UTF8 --locale-provider=builtin --locale=C.UTF-8 --data-checksums --no-instructions"


class PostgresServer:
    """One cluster in one directory; it survives restarts there and keeps its port. Not bound to an event loop.

    `async with PostgresServer(directory) as server` makes it when needed, starts and stops it.
    """

    def __init__(self, directory: Path, *, port: int | None = None, identity: Identity | None = None) -> None:
        """Remember where; without a port the first start picks one and later starts take it again."""
        self.directory = directory.absolute()
        self.port = port
        self._identity = identity
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log_path(self) -> Path:
        """Where the server's output is appended, across restarts."""
        return self.directory / "postgres.log"

    @property
    def pid(self) -> int:
        """Process id of the postmaster, for signals in fault tests.

        Raises:
            RuntimeError: the server is not running.

        """
        return self._running().pid

    @property
    def running(self) -> bool:
        """Whether the postmaster lives."""
        return self._process is not None and self._process.poll() is None

    def url(self, database: str = "postgres") -> str:
        """Return the superuser's URL of a database; it holds the password, so it is never logged."""
        password = read(self._password_file)
        return f"postgresql://{SUPERUSER}:{password}@{child.LOOPBACK}:{self.port}/{database}"

    async def start(self) -> Self:
        """Make the cluster if there is none, start it and wait until it answers.

        Raises:
            PortInUseError: the fixed port belongs to somebody else.
            ConfigurationError: there is no Postgres, or nobody it agrees to run as.
            ServerStartError: it exited or was not ready in time.

        """
        if self._identity is None:
            self._identity = postgres_identity.choose()
        secret_files.make_private(self.directory)
        self._identity.own(self.directory)
        if not (self._data / "PG_VERSION").exists():
            await asyncio.to_thread(self._initialise, self._identity)
        deadline = monotonic() + START_TIMEOUT_S
        fixed = self.port is not None
        while True:
            port = self.port if self.port is not None else child.free_port()
            if fixed and child.port_taken(port):
                raise child.PortInUseError("Postgres", port)
            if await self._attempt(self._identity, port, deadline):
                self.port = port
                return self
            # Right after a crash the old backends still hold the shared memory, and a free port can be lost: again.
            if monotonic() >= deadline:
                raise child.ServerStartError(
                    f"Postgres did not start; its log {self.log_path} ends with:\n{child.log_tail(self.log_path)}"
                )
            await asyncio.sleep(RETRY_S)

    async def stop(self) -> None:
        """Stop in good order (SIGINT: fast shutdown); does nothing when it does not run."""
        if self.running:
            await child.end(self._running())
        self._process = None

    async def kill(self) -> None:
        """Kill the postmaster without warning, as a crash would; its backends notice and leave."""
        process = self._running()
        process.kill()
        await child.exited(process, child.STOP_GRACE_S)
        self._process = None

    async def restart(self) -> None:
        """Stop if it runs, and start on the same port and the same data."""
        await self.stop()
        await self.start()

    async def create_database(self, name: str) -> str:
        """Make a database unless it exists and return its URL; roles are the migrations' business.

        Raises:
            ConfigurationError: the name is not a plain lower-case identifier.

        """
        if not DATABASE_NAME.fullmatch(name):
            raise ConfigurationError(f"database name {name!r} does not match {DATABASE_NAME.pattern}")
        connection = await asyncpg.connect(self.url(), timeout=CONNECT_TIMEOUT_S)
        try:
            if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", name):
                await connection.execute(f'CREATE DATABASE "{name}"')
        finally:
            await connection.close()
        return self.url(name)

    async def __aenter__(self) -> Self:
        """Start."""
        return await self.start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop."""
        await self.stop()

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    @property
    def _password_file(self) -> Path:
        return self.directory / "superuser.pw"

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError("Postgres is not running; call start() first")
        return self._process

    def _spawn(self, identity: Identity, *command: str) -> subprocess.Popen[bytes]:
        with self.log_path.open("ab") as log:
            return subprocess.Popen(
                [*identity.prefix, str(bin_dir() / command[0]), *command[1:]],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd="/",
                env={"PATH": os.defpath, "LC_ALL": "C.UTF-8", "TZ": "UTC"},
                start_new_session=True,
                user=identity.user,
                group=NOGROUP if identity.user else None,
                extra_groups=[] if identity.user else None,
            )

    def _initialise(self, identity: Identity) -> None:
        secret_files.write(self._password_file, secrets.token_urlsafe(24))
        identity.own(self._password_file)
        process = self._spawn(
            identity,
            "initdb",
            f"--pgdata={self._data}",
            f"--username={SUPERUSER}",
            f"--pwfile={self._password_file}",
            *INITDB.split(),
        )
        if process.wait(timeout=60) != 0:
            tail = child.log_tail(self.log_path)
            raise child.ServerStartError(f"initdb failed in {self.directory} ({REMEDY}):\n{tail}")

    def _socket_dir(self, identity: Identity) -> Path:
        inside = self.directory / "socket"
        if len(os.fsencode(inside)) <= MAX_SOCKET_DIR_BYTES:
            secret_files.make_private(inside)
        else:
            inside = Path(tempfile.mkdtemp(prefix="remit-pg-"))
        identity.own(inside)
        return inside

    async def _attempt(self, identity: Identity, port: int, deadline: float) -> bool:
        settings = {"max_connections": str(MAX_CONNECTIONS), "listen_addresses": child.LOOPBACK}
        self._process = self._spawn(
            identity,
            "postgres",
            f"-D{self._data}",
            f"-k{self._socket_dir(identity)}",
            f"-p{port}",
            *(f"-c{name}={value}" for name, value in settings.items()),
        )
        while self._process.poll() is None and monotonic() < deadline:
            if await self._answers(port):
                return True
            await asyncio.sleep(child.POLL_S)
        await child.end(self._process)
        self._process = None
        return False

    async def _answers(self, port: int) -> bool:
        password = read(self._password_file)
        try:
            connection = await asyncpg.connect(
                host=child.LOOPBACK,
                port=port,
                user=SUPERUSER,
                password=password,
                database=SUPERUSER,
                timeout=CONNECT_TIMEOUT_S,
                ssl=False,
            )
        except (OSError, asyncpg.CannotConnectNowError, asyncpg.PostgresConnectionError):
            return False
        await connection.close()
        return True

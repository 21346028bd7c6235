"""What the services do when their surroundings are not there yet, or not free: they wait and say so, or they say why not."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sys
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import orjson
import pytest

from infra.demo.stage import AGENT
from infra.local.environment import Environment
from infra.local.supervisor import Supervisor
from infra.provision import provision
from remit.pipeline import PIPELINE
from tests.support import servers
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Mapping
    from pathlib import Path

    from infra.local.nats_server import NatsServer
    from infra.local.postgres_server import PostgresServer

pytestmark = pytest.mark.timeout(90)

SERVICES = [row.name for row in PIPELINE]
OWN_DATABASE = ["approval", "executor", "audit"]
SETTINGS = {
    "approval": {"REMIT_OIDC_ISSUERS": '[{"issuer": "https://idp.example", "client_ids": ["remit-cli"]}]'},
    "executor": {"REMIT_JWKS_URL": "http://127.0.0.1:{port:tokens}/.well-known/jwks.json"},
}
EXIT_CONFIGURATION = 78


@asynccontextmanager
async def prepared(directory: Path) -> AsyncGenerator[tuple[Environment, NatsServer, PostgresServer]]:
    """Yield an environment with keys, roles and schema whose servers are both down and whose streams are gone."""
    async with Environment(directory, agents=(AGENT,)) as environment:
        broker, database = environment.nats, environment.postgres
        assert broker is not None
        assert database is not None
        await broker.stop()
        await database.stop()
        shutil.rmtree(directory / "nats" / "jetstream")
        yield environment, broker, database


def warnings(environment: Environment, service: str) -> list[str]:
    """Return the warnings in a service's log so far."""
    log = environment.directory / "logs" / f"{service}.log"
    lines = [orjson.loads(line) for line in log.read_bytes().splitlines()] if log.exists() else []
    return [" ".join(map(str, line.values())) for line in lines if line.get("level") == "warning"]


def missing(environment: Environment, services: list[str], *words: str) -> list[str]:
    """Return the services without a warning that holds all the words."""
    return [
        name
        for name in services
        if not any(all(word in line for word in words) for line in warnings(environment, name))
    ]


async def test_services_started_first_wait_for_broker_streams_and_database_and_say_so(tmp_path: Path) -> None:
    async with prepared(tmp_path) as (environment, broker, database):
        specs = environment.services({**SETTINGS, "audit": {"REMIT_CHECKPOINT_DIR": str(tmp_path / "checkpoints")}})
        async with Supervisor(specs) as supervisor:
            await eventually(lambda: missing(environment, SERVICES, "NATS"), [])
            await broker.start()
            await eventually(lambda: missing(environment, SERVICES, "waiting for streams", "infra.provision"), [])
            async with servers.connected(broker.url, environment.keys_dir, "provisioner") as client:
                await provision(client)
            await eventually(lambda: missing(environment, OWN_DATABASE, "waiting for Postgres"), [])
            await database.start()
            await supervisor.ready(30)
            assert {name: supervisor.restarts(name) for name in SERVICES} == dict.fromkeys(SERVICES, 0)


@contextmanager
def taken_port() -> Generator[int]:
    """Listen on a port, so that nobody else can."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


async def run(*arguments: str, env: Mapping[str, str] | None = None) -> tuple[int | None, str]:
    """Run a module of ours to its end and return exit code and everything it said."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", *arguments),
        env={**os.environ, **(env or {})},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(process.communicate(), 30)
    return process.returncode, said.decode()


@pytest.mark.parametrize("service", SERVICES)
async def test_taken_http_port_is_named_with_the_remedy(keys: Path, tmp_path: Path, service: str) -> None:
    settings = SETTINGS.get(service, {})
    with taken_port() as port:
        code, said = await run(
            f"services.{service}",
            env={
                "REMIT_KEYS_DIR": str(keys),
                "REMIT_HTTP_PORT": str(port),
                "REMIT_CHECKPOINT_DIR": str(tmp_path),
                **settings,
            },
        )
    assert code == EXIT_CONFIGURATION
    assert f"cannot listen on 127.0.0.1:{port} (Address already in use); set REMIT_HTTP_PORT to a free port" in said
    assert "Traceback" not in said


async def test_taken_port_of_the_dashboard_is_named_with_the_remedy(keys: Path) -> None:
    with taken_port() as port:
        code, said = await run(
            "dashboard",
            env={
                "DATABASE_URL": "postgresql://nobody@127.0.0.1:9/remit",
                "REMIT_DASHBOARD_PORT": str(port),
                "REMIT_DASHBOARD_NKEY_SEED_FILE": str(keys / "dashboard" / "nats.nk"),
                "REMIT_DASHBOARD_OIDC_ISSUER": "https://idp.example",
                "REMIT_DASHBOARD_OIDC_CLIENT_SECRET": "secret",
                "REMIT_DASHBOARD_COOKIE_SECRET": "c" * 32,
            },
        )
    assert code == 1
    assert f"port {port} on 127.0.0.1 is in use; stop what holds it, or set REMIT_DASHBOARD_PORT" in said
    assert "Traceback" not in said


async def test_nonsense_scale_says_what_is_expected() -> None:
    nonsense = ["nonsense", "policy=many", "policy=0", "policy=-1", "policy=99"]
    answers = await asyncio.gather(*(run("infra.demo", "--once", "--no-dashboard", f"--scale={s}") for s in nonsense))
    expected = 'expected service=replicas with 1 to 16, such as "policy=3 executor=2"'
    assert [(code, said.strip()) for code, said in answers] == [(1, f'SCALE has "{s}"; {expected}') for s in nonsense]


async def test_scale_of_an_unknown_service_names_the_known_ones() -> None:
    code, said = await run("infra.demo", "--once", "--no-dashboard", "--scale=polcy=2")
    assert code == 1
    assert "SCALE names polcy; known: " in said
    assert [name for name in SERVICES if name not in said] == []
    assert "Traceback" not in said

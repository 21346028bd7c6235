"""The dashboard's own process on real servers: seeded Postgres, NATS with its permissions, the local OpenID provider.

Only approval and the projector are played: a responder with approval's own key answers `human.*`, compares as approval does,
and writes what the projector would, notification included.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import asyncpg
import httpx

from infra.local.child import free_port
from infra.local.postgres_server import PostgresServer
from infra.postgres.migrate import migrate
from infra.postgres.roles import ROLES, apply_roles, role_url
from remit.clock import monotonic, now
from remit.commands import ApproveCommand, DenyCommand, Reply, parse_command
from remit.identity import IdTokenVerifier
from remit.identity_claims import TrustedIssuer
from tests.support.servers import connected, make_keys, provisioned_nats

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable
    from pathlib import Path

    from nats.aio.msg import Msg

    from remit.commands import Command
    from remit.identity_claims import Person

PASSWORD = "password of the tests"
CLIENT = "remit-dashboard"
COOKIE_SECRET = "a cookie secret of the tests, forty characters"
JSON_COLUMNS = {"args", "votes", "latency_ms", "arguments", "detail"}


@dataclass(kw_only=True)
class Approval:
    """Approval and projector in one: verifies the person, counts each decision once, writes the new status."""

    database: asyncpg.Pool[asyncpg.Record]
    verifier: IdTokenVerifier
    commands: list[tuple[Command, Person]] = field(default_factory=list[tuple["Command", "Person"]])
    decided: Counter[str] = field(default_factory=Counter[str])
    records: bool = True

    async def answer(self, message: Msg) -> None:
        command = parse_command(message.subject.removeprefix("human."), message.data)
        person = await self.verifier.verify(command.id_token.get_secret_value(), now=now())
        self.commands.append((command, person))
        await message.respond((await self._decide(command, person)).to_wire())

    async def _decide(self, command: Command, person: Person) -> Reply:
        if not isinstance(command, ApproveCommand | DenyCommand):
            return Reply(status="ok")
        status = "approved" if isinstance(command, ApproveCommand) else "denied"
        by = f"{person.human.iss}|{person.human.sub}"
        async with self.database.acquire() as connection, connection.transaction():
            changed = await connection.fetchval(
                """update audit.actions_all set approval_status = $2, approver = $3, decided_at = now(),
                   terminal = case when $2 = 'denied' then 'refused' end
                   where action_id = $1 and approval_status = 'requested' and ($4::text is null or args_digest = $4)
                   returning 1""",
                command.action_id,
                status,
                by,
                getattr(command, "args_digest", None),
            )
            if changed:
                self.decided[command.action_id] += 1
                await bump(connection)
        return Reply(status="ok") if changed else Reply(status="decided", decision="approved")


async def bump(connection: Any) -> None:
    """Do what the projector does in the transaction that changes an approval."""
    await connection.execute("update audit.progress set approvals_seq = approvals_seq + 1, touched_at = now()")
    await connection.execute("select pg_notify('remit_approvals', '')")


@dataclass(kw_only=True)
class Stage:
    """Everything a test of the running dashboard needs."""

    url: str
    issuer: str
    database: asyncpg.Pool[asyncpg.Record]
    approval: Approval
    log_path: Path

    async def insert(self, table: str, rows: Iterable[dict[str, Any]], *, announce: bool = True) -> None:
        """Put rows into the read model, as the projector would."""
        async with self.database.acquire() as connection, connection.transaction():
            for row in rows:
                await insert(connection, table, row)
            if announce:
                await bump(connection)

    async def expire(self, number: int) -> None:
        """Take one seeded action out of the queue."""
        await self.database.execute(
            "update audit.actions_all set approval_status = 'expired' where action_id = $1", f"{number:032x}"
        )


async def insert(connection: Any, table: str, row: dict[str, Any]) -> None:
    """Insert one row given as column to value; JSON columns take Python values."""
    values = [json.dumps(value) if name in JSON_COLUMNS else value for name, value in row.items()]
    places = ", ".join(f"${number}" for number in range(1, len(row) + 1))
    await connection.execute(f"insert into audit.{table} ({', '.join(row)}) values ({places})", *values)


async def beat(database: asyncpg.Pool[asyncpg.Record]) -> None:
    """Touch the cursor, as an idle projector does."""
    while True:
        await database.execute("update audit.progress set touched_at = now()")
        await asyncio.sleep(2)


@asynccontextmanager
async def stage(directory: Path) -> AsyncGenerator[Stage]:
    """Start everything; yield when the dashboard is healthy."""
    keys = make_keys(directory / "keys")
    async with (
        PostgresServer(directory / "postgres") as postgres,
        provisioned_nats(directory / "nats", keys) as nats_url,
    ):
        admin_url = await postgres.create_database("remit")
        await migrate(admin_url)
        await apply_roles(admin_url, dict.fromkeys(ROLES, PASSWORD))
        async with (
            asyncpg.create_pool(admin_url, min_size=1, max_size=4) as database,
            connected(nats_url, keys, "approval") as client,
            httpx.AsyncClient(trust_env=False) as http,
        ):
            with _program(["infra.demo.identity", "--port", "0"], {}, directory / "identity.log") as identity:
                issuer = await _first_line(identity)
                trusted = TrustedIssuer(issuer=issuer, client_ids=[CLIENT])
                approval = Approval(database=database, verifier=IdTokenVerifier([trusted], http=http))
                await client.subscribe("human.*", cb=approval.answer)
                port = free_port()
                variables = {
                    "DATABASE_URL": role_url(admin_url, "remit_dashboard", PASSWORD),
                    "NATS_URL": nats_url,
                    "REMIT_DASHBOARD_PORT": str(port),
                    "REMIT_DASHBOARD_NKEY_SEED_FILE": str(keys / "dashboard" / "nats.nk"),
                    "REMIT_DASHBOARD_OIDC_ISSUER": issuer,
                    "REMIT_DASHBOARD_OIDC_CLIENT_SECRET": "local",
                    "REMIT_DASHBOARD_COOKIE_SECRET": COOKIE_SECRET,
                }
                log_path = directory / "dashboard.log"
                beating = asyncio.create_task(beat(database))
                with _program(["dashboard"], variables, log_path) as process:
                    url = f"http://localhost:{port}"
                    await _healthy(http, f"http://127.0.0.1:{port}/healthz", process, log_path)
                    yield Stage(url=url, issuer=issuer, database=database, approval=approval, log_path=log_path)
                beating.cancel()


class _program:  # noqa: N801  (a context manager, used like a function)
    """One of our programs as a child process, ended by its own id."""

    def __init__(self, module: list[str], variables: dict[str, str], log_path: Path) -> None:
        self._argv = [sys.executable, "-m", *module]
        self._variables, self._log_path = variables, log_path

    def __enter__(self) -> subprocess.Popen[str]:
        with self._log_path.open("a") as log:
            self._process = subprocess.Popen(
                self._argv, env={**os.environ, **self._variables}, stdout=subprocess.PIPE, stderr=log, text=True
            )
        return self._process

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


async def _first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return (await asyncio.to_thread(process.stdout.readline)).strip()


async def _healthy(http: httpx.AsyncClient, url: str, process: subprocess.Popen[str], log_path: Path) -> None:
    deadline = monotonic() + 60
    while monotonic() < deadline and process.poll() is None:
        try:
            if (await http.get(url)).is_success:
                return
        except httpx.TransportError:
            pass
        await asyncio.sleep(0.1)
    raise RuntimeError(f"the dashboard did not become healthy; its log ends with\n{log_path.read_text()[-3000:]}")

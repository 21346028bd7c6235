"""TK-21, MCP01: after a full run no key, password, token or planted canary stands in anything that is stored or printed.

Arguments stay whole in the signed events, which only audit and auditors may read; nowhere else.
Source: design, standards sections 2.6 and 7.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from nacl.public import SealedBox
from pydantic import SecretStr

from remit.canonical import b64url_decode, strict_loads
from remit.commands import GrantCommand
from remit.remits import RemitTerms
from remit.runtime.keys import load_executor
from tests.support.live_stage import Live, concluded, live_stage, waiting
from tests.support.secret_scan import Scanner, private_keys, spellings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

pytestmark = pytest.mark.timeout(180)

SERVICES = ("intake", "policy", "approval", "tokens", "executor", "audit")
SEALED = "SELECT body FROM audit.audit_event WHERE type = 'tokenized'"
SIGNED_BYTES = ("table audit.audit_event.body", "stream ", "table control.")
"""Where arguments stand whole: signed events, the streams that carry them, and claims of the executor."""


@dataclass
class Run:
    """A stage after everything happened, the scanner that knows what to look for, and what programs printed."""

    live: Live
    scanner: Scanner
    canaries: dict[str, str]
    printed: dict[str, bytes]

    @property
    def files(self) -> Path:
        return self.live.stage.directory


async def output_of(variables: Mapping[str, str], *arguments: str) -> bytes:
    """Run a program of ours and return all that it printed; one that would go on is stopped after a silence."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *arguments, env={**os.environ, "PYTHONUNBUFFERED": "1", **variables},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout is not None
    printed = b""
    with contextlib.suppress(TimeoutError):
        while chunk := await asyncio.wait_for(process.stdout.read(65_536), 3 if printed else 60):
            printed += chunk
    if process.returncode is None:
        process.terminate()
    return printed + (await process.communicate())[0]


async def everything_happens(live: Live, canaries: dict[str, str]) -> None:
    """Call tools, be refused, be asked, fail: with a secret in every argument and answer."""
    remit = await live.grant("lab.ok", "lab.failing", "gone.ok", "bank.get_balance", "bank.update_password")
    said = canaries["argument by name"]
    live.lab.says = (
        f"the password is {canaries['result in prose']}\napi_key: {canaries['result by name']}\n"
        f"-----BEGIN PRIVATE KEY-----\n{canaries['result by shape']}\n-----END PRIVATE KEY-----"
    )
    shown = concluded(await live.agent.propose("lab.ok", {"text": f"token={said}"}, remit=remit))
    assert "[redacted]" in str(shown.value)
    for call in ("lab.failing", "gone.ok"):
        await live.agent.propose(call, {"text": f"password: {said}"}, remit=remit)
    await live.receipt((await live.agent.propose("bank.get_balance", {}, remit=remit)).action_id)
    answer = await live.agent.propose(
        "bank.update_password", {"password": canaries["argument by registry"]}, remit=remit, wait=2
    )
    await live.asked(waiting(answer).action_id)
    await live.agent.propose("lab.joint", {"text": f"secret: {said}"}, remit="rem_" + "0" * 32)


async def everything_fails(live: Live, canaries: dict[str, str]) -> dict[str, bytes]:
    """Give wrong credentials to everybody, and return what programs printed about it."""
    environment = live.stage.environment
    (live.stage.directory / "credentials" / "bank-token").write_text(canaries["wrong credential"])
    remit = await live.grant("bank.get_balance")
    await live.receipt((await live.agent.propose("bank.get_balance", {}, remit=remit)).action_id)
    token = await live.people.token("emma")
    terms = RemitTerms.model_validate_json(json.dumps(live.terms("lab.ok")))
    forged = GrantCommand(
        id_token=SecretStr(token[:-12] + "A" * 12), idempotency_key=secrets.token_hex(16), terms=terms
    )
    await live.people.client.request(GrantCommand.subject(), forged.to_wire(), timeout=10)
    wrong = environment.database_url("auditor").rpartition("@")[2]
    wrong = f"postgresql://remit_auditor:{canaries['wrong password']}@{wrong}"
    keys = {"REMIT_KEYS_DIR": str(environment.keys_dir), "NATS_URL": environment.nats_url, "REMIT_HTTP_PORT": "0"}
    checkpoints = str(live.stage.directory / "checkpoints")
    auditor = environment.variables("auditor")
    action: str = await live.admin.fetchval(
        "SELECT action_id FROM audit.actions_all WHERE outcome = 'succeeded' LIMIT 1"
    )
    unreachable = {**keys, "DATABASE_URL": wrong, "REMIT_CHECKPOINT_DIR": checkpoints}
    unreadable = {**unreachable, "DATABASE_URL": f"postgresql:/{canaries['wrong password']}"}
    printed = await asyncio.gather(
        output_of(unreachable, "remit.cli", "audit", "head"),
        output_of(unreachable, "services.audit"),
        output_of(unreadable, "services.audit"),
        output_of(auditor, "remit.cli", "audit", "verify", "--nats", "--checkpoints", checkpoints),
        output_of(auditor, "remit.cli", "audit", "show", action),
        output_of(auditor, "remit.cli", "audit", "show", action, "--json"),
        output_of(auditor, "remit.cli", "audit", "head", "--json"),
    )
    return {f"program {number}": text for number, text in enumerate(printed)}


async def known_secrets(live: Live, canaries: dict[str, str]) -> Scanner:
    """Return a scanner that knows every secret of the environment, every token that was minted, and the canaries."""
    scanner, stage = Scanner(), live.stage
    for name, forms in private_keys(stage.environment.keys_dir).items():
        for form in forms:
            scanner.know(f"key {name}", form)
    for name, secret in stage.secrets.items():
        scanner.know(f"credential {name}", secret)
    for person in ("emma", "dana", "otto"):
        token = await live.people.token(person)
        scanner.know(f"ID token of {person}", token)
        scanner.know(f"ID token of {person}, signature", token.rpartition(".")[2])
    for number, token in enumerate(await minted_tokens(live)):
        scanner.know(f"action token {number}", token)
        scanner.know(f"action token {number}, signature", token.rpartition(".")[2])
        scanner.know(f"action token {number}, claims", token.split(".")[1])
    for label, secret in canaries.items():
        scanner.know(label, secret)
    return scanner


async def minted_tokens(live: Live) -> list[str]:
    """Open the sealed boxes as only the executor can."""
    box = SealedBox(load_executor(live.stage.environment.keys_dir).x25519)
    bodies = [strict_loads(row["body"]) for row in await live.admin.fetch(SEALED)]
    return [box.decrypt(b64url_decode(body["data"]["sealed_token"])).decode() for body in bodies]


@pytest.fixture(scope="module")
async def run(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Run]:
    names = (
        "argument by name", "argument by registry", "result in prose", "result by name", "result by shape",
        "wrong credential", "wrong password",
    )  # fmt: skip
    canaries = {name: f"Canary7{secrets.token_hex(10)}" for name in names}
    async with live_stage(tmp_path_factory.mktemp("secrets")) as live:
        await everything_happens(live, canaries)
        printed = await everything_fails(live, canaries)
        yield Run(live, await known_secrets(live, canaries), canaries, printed)


async def test_nothing_that_is_stored_or_printed_holds_a_secret(run: Run) -> None:
    scanner, stage = run.scanner, run.live.stage
    async with run.live.admin.acquire() as connection:
        await scanner.look_at_database(connection)  # type: ignore[arg-type]  # a connection of the pool
    scanner.look_at_files("stream", [path for path in (run.files / "nats").rglob("*") if path.is_file()])
    scanner.look_at_files("log", (run.files / "logs").iterdir())
    scanner.look_at_files("server log", [*(run.files / "postgres").glob("*.log"), *(run.files / "nats").glob("*.log")])
    scanner.look_at_files("checkpoint", (run.files / "checkpoints").iterdir())
    async with httpx.AsyncClient(trust_env=False) as http:
        for name in SERVICES:
            for path in ("metrics", "readyz"):
                answer = await http.get(f"http://127.0.0.1:{stage.supervisor.port(name)}/{path}")
                scanner.look("http", f"{name}/{path}", answer.content)
    for name, text in run.printed.items():
        scanner.look("printed", name, text)
    assert set(scanner.places) == {"table", "stream", "log", "checkpoint", "http", "printed", "server log"}
    assert all(scanner.places.values()), scanner.places
    allowed = {name: SIGNED_BYTES for name in run.canaries if name.startswith("argument")}
    assert scanner.unexpected(allowed) == set()


async def test_the_programs_said_what_was_wrong(run: Run) -> None:
    unreachable, refused, unreadable, whole, *_ = run.printed.values()
    assert b"does not answer" in unreachable
    assert refused
    assert unreadable
    assert b"whole" in whole, whole
    assert b"BROKEN" not in whole, whole


async def test_arguments_stand_whole_in_signed_bytes_only(run: Run) -> None:
    probe = Scanner()
    probe.know("argument", run.canaries["argument by registry"])
    async with run.live.admin.acquire() as connection:
        await probe.look_at_database(connection)  # type: ignore[arg-type]  # a connection of the pool
    probe.look_at_files("stream", [path for path in (run.files / "nats").rglob("*") if path.is_file()])
    assert {where.split(".")[-1] if "table" in where else "stream" for where, _, _ in probe.hits} == {"body", "stream"}


@pytest.mark.parametrize("form", spellings(b"secret-secret"))
async def test_the_scanner_finds_what_is_planted(run: Run, form: str, tmp_path: Path) -> None:
    secret = secrets.token_bytes(24)
    scanner = Scanner()
    scanner.know("planted", secret)
    planted = spellings(secret)[form]
    async with run.live.admin.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        statement = "INSERT INTO audit.rejected (seq, at, service, code, letter) VALUES (-1, now(), 'x', 'x', $1)"
        await connection.execute(statement, b"before " + planted + b" after")
        await scanner.look_at_database(connection)  # type: ignore[arg-type]  # a connection of the pool
        await transaction.rollback()
    (tmp_path / "some.log").write_bytes(b"x" * (1 << 20) + planted)
    scanner.look_at_files("log", tmp_path.iterdir())
    assert {where for where, _, _ in scanner.hits} == {"table audit.rejected.letter", "log some.log"}


async def test_the_streams_are_read_as_they_are_stored(run: Run) -> None:
    scanner = Scanner()
    value: Any = await run.live.admin.fetchval("SELECT remit_id FROM audit.remits LIMIT 1")
    scanner.know("remit", value)
    scanner.look_at_files("stream", [path for path in (run.files / "nats").rglob("*") if path.is_file()])
    assert scanner.hits

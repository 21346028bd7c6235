"""`remit audit` as a person runs it, over the finished run of a real audit service, or over a spoilt copy of its database."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg

from tests.support import factories as f
from tests.support.audit_stage import AuditStage, audit_stage
from tests.support.postgres import fresh_database, postgres
from tests.support.servers import provisioned_nats
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

BECOME_ALMIGHTY = "SET session_replication_role = replica"
"""A superuser who switches the triggers off."""
LAST_SEQ = 19
"""Rows of ACTIONS in the finished run; a checkpoint stands there."""
CLAIM = """
INSERT INTO control.execution
    (action_id, jti, remit_id, grant_no, attempt, args_digest, claim_id, executor, state, finished_at)
SELECT action_id, jti, remit_id, grant_no, attempt, args_digest, claim_id, executor, outcome, executed_at
FROM audit.actions_all WHERE action_id = $1
"""
"""What the executor leaves behind for an action that it called."""
Spoilt = tuple[str, "asyncpg.Connection[asyncpg.Record]"]


@asynccontextmanager
async def finished_run(directory: Path, keys: Path) -> AsyncGenerator[AuditStage]:
    """Yield a finished run: one remit, two executed actions, one open, some junk, signed checkpoints."""
    async with (
        postgres(directory / "pg") as server,
        fresh_database(server) as url,
        provisioned_nats(directory / "nats", keys) as nats_url,
        audit_stage(nats_url, url, keys, directory) as stage,
    ):
        async with stage.running():
            await stage.grant()
            for key in ("one", "two"):
                state = await stage.action(key, *f.EXECUTED_PATH)
                await eventually(
                    lambda a=state.action_id: stage.value(
                        "SELECT receipt_seq IS NOT NULL FROM audit.actions_all WHERE action_id = $1", a
                    )
                )
                await stage.database.execute(CLAIM, state.action_id)
            await stage.action("open", "proposed", "evaluated")
            await stage.clients["intake"].request(f"action.{state.action_id}.proposed", b"junk", timeout=5)
            await eventually(lambda: stage.value("SELECT verified_seq FROM audit.cursor"), LAST_SEQ, within_s=20)
            of_remits = "SELECT verified_seq FROM audit.progress WHERE stream = 'REMITS'"
            await eventually(lambda: stage.value(of_remits), 1, within_s=20)
        yield stage


async def remit(stage: AuditStage, *arguments: str, url: str | None = None) -> tuple[int, Any]:
    """Run `remit audit ...` and return exit code and output, JSON decoded."""
    environment = {
        **os.environ, "DATABASE_URL": url or stage.audit_url, "NATS_URL": stage.nats_url, "REMIT_KEYS_DIR": str(stage.keys),
    }  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "remit.cli", "audit", *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=environment,
    )  # fmt: skip
    out, err = await process.communicate()
    text = out.decode() or err.decode()
    return process.returncode or 0, json.loads(text) if text.startswith("{") else text


async def first_finding(
    stage: AuditStage, *how: str, url: str | None = None, stream: str = "ACTIONS"
) -> tuple[int, tuple[int, str, str] | None]:
    """Return exit code and the first finding of a stream as (sequence, code, detail); without `how`, against the files."""
    code, found = await remit(stage, "verify", "--json", *(how or against_files(stage)), url=url)
    assert isinstance(found, dict), found
    [first] = [each["first"] for each in found["streams"] if each["stream"] == stream]
    return code, (first["seq"], first["code"], first["detail"]) if first else None


def against_files(stage: AuditStage) -> tuple[str, str]:
    """Return the options that name the checkpoints outside the database."""
    return "--checkpoints", str(stage.checkpoints)


@asynccontextmanager
async def spoilt_copy(stage: AuditStage) -> AsyncGenerator[Spoilt]:
    """Yield a copy of the ledger's database that may be spoilt, with a connection that obeys no trigger."""
    name = "copy_of_ledger"
    base, _, original = stage.database_url.rpartition("/")
    maintenance = await asyncpg.connect(f"{base}/postgres")
    await stage.database.execute("SELECT 1")
    await maintenance.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1 AND pid <> $2",
        original, stage.database.get_server_pid(),
    )  # fmt: skip
    await stage.database.close()
    await maintenance.execute(f'CREATE DATABASE "{name}" TEMPLATE "{original}"')
    stage.database = await asyncpg.connect(stage.database_url)
    connection = await asyncpg.connect(f"{base}/{name}")
    await connection.execute(BECOME_ALMIGHTY)
    yield f"{base}/{name}", connection
    await connection.close()
    await maintenance.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    await maintenance.close()

"""The audit database built again from the streams, beside a projector at work: identical, swapped, refused, repeated."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
import sys
from typing import TYPE_CHECKING

import asyncpg
import pytest

from infra.postgres.roles import role_url
from infra.provision import provision
from remit.errors import ConfigurationError
from remit.runtime.settings import ServiceSettings
from services.audit import rebuild as program
from tests.support import factories as f
from tests.support.audit_cli import BECOME_ALMIGHTY, remit
from tests.support.audit_stage import PASSWORDS, AuditStage, audit_stage
from tests.support.postgres import fresh_database, postgres
from tests.support.servers import connected, provisioned_nats
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(90)

OLD = "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'audit_until_%'"
TWIN = "SELECT to_regnamespace('audit_rebuild') IS NOT NULL"
SHAPES = {
    "columns": """
        SELECT table_name, column_name, ordinal_position, column_default, is_nullable, data_type, udt_name, generation_expression
        FROM information_schema.columns WHERE table_schema = '{0}' ORDER BY 1, 3
    """,
    "indices": "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = '{0}' ORDER BY 1, 2",
    "constraints": """
        SELECT conrelid::regclass::text, conname, contype, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = '{0}'::regnamespace ORDER BY 1, 2
    """,
    "triggers": """
        SELECT tgname, pg_get_triggerdef(t.oid) FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid
        WHERE relnamespace = '{0}'::regnamespace ORDER BY 2
    """,
    "views": "SELECT viewname, definition FROM pg_views WHERE schemaname = '{0}' ORDER BY 1",
    "options": "SELECT relname, reloptions FROM pg_class WHERE relnamespace = '{0}'::regnamespace AND relkind = 'r' ORDER BY 1",
    "privileges": """
        SELECT c.relname, a.attname, x.privilege_type, pg_get_userbyid(x.grantee) FROM pg_class AS c
        LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attacl IS NOT NULL,
        aclexplode(coalesce(a.attacl, c.relacl)) AS x
        WHERE c.relnamespace = '{0}'::regnamespace AND c.relkind IN ('r', 'v') ORDER BY 1, 2, 3, 4
    """,
}


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    async with postgres(tmp_path_factory.mktemp("pg")) as url:
        yield url


@pytest.fixture
async def stage(server: str, keys: Path, tmp_path: Path) -> AsyncIterator[AuditStage]:
    async with provisioned_nats(tmp_path / "nats", keys) as nats_url:
        async with connected(nats_url, keys, "provisioner") as client:
            await provision(client, rebuild=True)
        async with fresh_database(server) as url, audit_stage(nats_url, url, keys, tmp_path) as stage:
            yield stage


async def start(stage: AuditStage, *options: str) -> asyncio.subprocess.Process:
    environment = {
        **os.environ, "DATABASE_URL": stage.database_url, "NATS_URL": stage.nats_url, "REMIT_KEYS_DIR": str(stage.keys),
    }  # fmt: skip
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.audit.rebuild", *options,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=environment,
    )  # fmt: skip


async def rebuild(stage: AuditStage, *options: str) -> tuple[int, str]:
    """Run the program in this process and return its exit code and what it found."""
    settings = ServiceSettings(nats_url=stage.nats_url, database_url=stage.database_url, keys_dir=stage.keys)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = await program.rebuild(settings, program.options(list(options)))
    return code, said.getvalue()


async def worked(stage: AuditStage, key: str) -> str:
    """Let a whole action run and wait for its receipt."""
    state = await stage.action(key, *f.EXECUTED_PATH)
    receipt = "SELECT receipt_seq IS NOT NULL FROM audit.actions_all WHERE action_id = $1"
    await eventually(lambda: stage.value(receipt, state.action_id))
    return state.action_id


async def shapes(stage: AuditStage, schema: str) -> dict[str, list[str]]:
    """Return everything the catalogue knows of a schema, its name left out."""
    found = {}
    for what, query in SHAPES.items():
        rows = await stage.database.fetch(query.format(schema))
        found[what] = [str(tuple(row)).replace(f"{schema}.", "audit.") for row in rows]
    return found


async def test_the_rebuilt_ledger_is_identical_and_changes_nothing(stage: AuditStage) -> None:
    async with stage.running():
        await stage.grant()
        await worked(stage, "one")
        code, said = await rebuild(stage)
        assert code == 0, said
        assert "ACTIONS: identical in rows 1 to 8" in said
        assert "REMITS: identical in rows 1 to 1" in said
        assert not await stage.value(TWIN)
        assert not await stage.value(OLD)


async def test_a_swap_keeps_shape_and_privileges_and_the_projector_goes_on(stage: AuditStage) -> None:
    before = await shapes(stage, "audit")
    async with stage.running():
        await stage.grant()
        await worked(stage, "one")
        await eventually(lambda: stage.value("SELECT verified_seq FROM audit.cursor"), 8, within_s=20)
        head, epoch = [await stage.value(f"SELECT {c} FROM audit.cursor") for c in ("chain_head", "epoch")]
        code, said = await rebuild(stage, "--swap")
        assert code == 0, said
        assert await stage.value("SELECT chain_head FROM audit.cursor") == head
        assert await stage.value("SELECT epoch FROM audit.cursor") != epoch
        after = await shapes(stage, "audit")
        assert {what: after[what] for what in after} == before
        await worked(stage, "two")
        await eventually(lambda: stage.value("SELECT verified_seq FROM audit.cursor"), 16, within_s=20)
        assert await stage.value("SELECT used FROM audit.grants") == 2
        assert (await remit(stage, "verify", "--nats", "--checkpoints", str(stage.checkpoints)))[0] == 0
        # Another one begins at sequence 1 again, with durables that were read to the end.
        assert (await rebuild(stage, "--swap"))[0] == 0
    old = await stage.value(OLD)
    auditor = await asyncpg.connect(role_url(stage.database_url, "remit_auditor", PASSWORDS["remit_auditor"]))
    assert await auditor.fetchval("SELECT count(*) FROM audit.audit_event WHERE stream = 'ACTIONS'") == 16
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await auditor.fetchval(f"SELECT count(*) FROM {old}.audit_event")
    await auditor.close()


async def test_a_swap_under_load_loses_nothing(stage: AuditStage) -> None:
    async with stage.running():
        await stage.grant()
        load = asyncio.create_task(many(stage))
        await asyncio.sleep(1)
        code, said = await rebuild(stage, "--swap")
        assert code == 0, said
        ids = await load
        await eventually(lambda: stage.value("SELECT count(receipt_seq) FROM audit.actions_all"), len(ids), within_s=30)
        assert (await remit(stage, "verify", "--nats"))[0] == 0


async def many(stage: AuditStage) -> list[str]:
    return [(await stage.action(f"load-{n}", *f.EXECUTED_PATH)).action_id for n in range(60)]


async def test_a_spoilt_row_is_named_and_replaced_only_on_demand(stage: AuditStage) -> None:
    async with stage.running():
        await stage.grant()
        await worked(stage, "one")
    # The projector would halt at its next checkpoint, and the process of these tests with it.
    async with stage.database.transaction():
        await stage.database.execute(BECOME_ALMIGHTY)
        await stage.database.execute(
            "UPDATE audit.audit_event SET body = 'x' WHERE stream = 'ACTIONS' AND stream_seq = 3"
        )
        await stage.database.execute("SET session_replication_role = origin")
    code, said = await rebuild(stage, "--swap")
    assert code == 1
    assert "1 rows differ, the first is 3" in said
    assert not await stage.value(OLD)
    code, said = await rebuild(stage, "--continue", "--swap", "--replace-differing")
    assert code == 0, said
    assert (await remit(stage, "verify", "--nats"))[0] == 0
    async with stage.running():
        await worked(stage, "two")


async def test_an_interrupted_run_leaves_the_live_ledger_alone_and_can_go_on(stage: AuditStage) -> None:
    await stage.grant()
    await many(stage)
    async with stage.running():
        await eventually(lambda: stage.value("SELECT count(receipt_seq) FROM audit.actions_all"), 60, within_s=30)
        process = await start(stage, "--swap")
        await eventually(lambda: stage.value(TWIN), within_s=20)
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
        assert process.returncode == 130, err
        assert b"nothing but the schema audit_rebuild was written" in err
        assert not await stage.value(OLD)
        assert (await rebuild(stage, "--continue", "--swap"))[0] == 0


async def test_it_says_what_is_missing(stage: AuditStage, tmp_path: Path) -> None:
    async with provisioned_nats(tmp_path / "other", stage.keys) as stage.nats_url:
        with pytest.raises(ConfigurationError, match=r"run `python -m infra\.provision --rebuild`"):
            await rebuild(stage)
    lock = await asyncpg.connect(stage.database_url)
    await lock.execute("SELECT pg_advisory_lock($1)", program.LOCK_KEY)
    with pytest.raises(program.RebuildError, match="another rebuild is at work"):
        await rebuild(stage)
    await lock.close()

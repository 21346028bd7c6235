"""`remit audit` as a person runs it: a whole record, every tampering by a superuser, a cut stream, one action's story."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from remit.runtime.bus import Bus
from remit.runtime.keys import load_checkpoint
from services.audit.chain import GapError, TamperError
from services.audit.checkpoints import Checkpointer, CheckpointFile
from services.audit.database import try_fence
from services.audit.projector import Projector
from services.audit.source import Source
from tests.support import factories as f
from tests.support.audit_stage import AuditStage, audit_stage
from tests.support.postgres import fresh_database, postgres
from tests.support.servers import provisioned_nats
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(120)

BECOME_ALMIGHTY = "SET session_replication_role = replica"
"""A superuser who switches the triggers off."""


@pytest.fixture(scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> AsyncIterator[AuditStage]:
    """A finished run: one remit, two executed actions, one open, some junk; two checkpoints at least."""
    directory = tmp_path_factory.mktemp("verify")
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
            await stage.action("open", "proposed", "evaluated")
            await stage.clients["intake"].request(f"action.{state.action_id}.proposed", b"junk", timeout=5)
            await eventually(lambda: stage.value("SELECT verified_seq FROM audit.cursor"), 19, within_s=20)
        yield stage


async def remit(stage: AuditStage, *arguments: str, url: str | None = None) -> tuple[int, Any]:
    """Run `remit audit ... --json` and return exit code and output."""
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


async def verified(stage: AuditStage, *more: str, url: str | None = None) -> tuple[int, tuple[int, str] | None]:
    """Return exit code and the first bad row of ACTIONS as (sequence, code)."""
    code, found = await remit(stage, "verify", "--json", "--checkpoints", str(stage.checkpoints), *more, url=url)
    first = found["streams"][0]["first"]
    return code, (first["seq"], first["code"]) if first else None


async def test_a_whole_record_is_whole_in_rows_files_and_stream(stage: AuditStage) -> None:
    assert await verified(stage, "--nats") == (0, None)
    code, text = await remit(stage, "verify")
    assert code == 0
    assert "whole" in text
    assert "kept as evidence" in text


@pytest.fixture
async def copy(stage: AuditStage) -> AsyncIterator[tuple[str, asyncpg.Connection[asyncpg.Record]]]:
    """A copy of the ledger's database that may be spoilt, with a connection that obeys no trigger."""
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


E = "audit.audit_event"
ACTIONS = "stream = 'ACTIONS' AND stream_seq"
TAMPERINGS = {
    "edit a body": (f"UPDATE {E} SET body = overlay(body PLACING 'X' FROM 900) WHERE {ACTIONS} = 2", (2, "chain_hash")),
    "edit a status": (f"UPDATE {E} SET verify_status = 'kid' WHERE {ACTIONS} = 3", (3, "verdict")),
    "edit a column": (f"UPDATE {E} SET remit_id = 'rem_x' WHERE {ACTIONS} = 4", (4, "column")),
    "edit a signature": (f"UPDATE {E} SET sig = sig || '\\x00' WHERE {ACTIONS} = 5", (5, "chain_hash")),
    "delete": (f"DELETE FROM {E} WHERE {ACTIONS} = 6", (6, "gap")),
    "delete and renumber": (
        f"DELETE FROM {E} WHERE {ACTIONS} = 6; UPDATE {E} SET stream_seq = 6 WHERE {ACTIONS} = 19", (6, "chain_hash"),
    ),
    "insert": (
        (f"INSERT INTO {E} (stream, stream_seq, subject, body, verify_status, chain_hash, recorded_at)"
        f" SELECT stream, 20, subject, body, 'signature', chain_hash, recorded_at FROM {E} WHERE {ACTIONS} = 1"),
        (20, "chain_hash"),
    ),
    "swap": (
        (f"UPDATE {E} SET stream_seq = stream_seq + 100 WHERE {ACTIONS} IN (7, 8);"
        f" UPDATE {E} SET stream_seq = 215 - stream_seq - 100 WHERE {ACTIONS} IN (107, 108)"), (7, "chain_hash"),
    ),
    "cut the tail": (f"DELETE FROM {E} WHERE {ACTIONS} > 15", (16, "truncated")),
    "cut the tail and the cursor": (
        (f"DELETE FROM {E} WHERE {ACTIONS} > 15; DELETE FROM audit.checkpoint WHERE seq > 15;"
        f" UPDATE audit.progress SET last_seq = 15, chain_head = (SELECT chain_hash FROM {E} WHERE {ACTIONS} = 15)"
        " WHERE stream = 'ACTIONS'"), (16, "truncated"),
    ),
    "replace a checkpoint": (
        "UPDATE audit.checkpoint SET line = replace(line, '\"seq\":19', '\"seq\":18') WHERE stream = 'ACTIONS'",
        (18, "checkpoint"),
    ),
    "spoil a checkpoint": ("UPDATE audit.checkpoint SET line = 'x' WHERE stream = 'ACTIONS' AND seq = 19", (19, "checkpoint")),
}  # fmt: skip


@pytest.mark.parametrize("name", TAMPERINGS)
async def test_the_first_bad_row_is_named(
    stage: AuditStage, copy: tuple[str, asyncpg.Connection[asyncpg.Record]], name: str
) -> None:
    url, connection = copy
    statement, expected = TAMPERINGS[name]
    await connection.execute(statement)
    code, found = await verified(stage, url=url)
    assert (code, found) == (1, expected)


async def test_a_rewritten_history_is_seen_against_the_stream(
    stage: AuditStage, copy: tuple[str, asyncpg.Connection[asyncpg.Record]]
) -> None:
    url, connection = copy
    await connection.execute(f"UPDATE {E} SET kid = 'none' WHERE {ACTIONS} = 19")
    code, found = await remit(stage, "verify", "--json", "--nats", url=url)
    assert code == 1
    assert found["streams"][0]["findings"] >= 2


async def test_the_story_of_an_action_answers_the_five_questions(stage: AuditStage) -> None:
    action_id = await stage.value("SELECT action_id FROM audit.actions_all WHERE receipt_seq IS NOT NULL LIMIT 1")
    code, text = await remit(stage, "show", action_id)
    assert code == 0
    people = ("https://idp.example|emma", f.AGENT.id, "https://idp.example|dana")
    authority = ("grant 1", "ask-payments", "tok_", "executor-1")
    result = ("succeeded", "same arguments    yes", "effect in bounds  not checked", "latency", "receipt")
    assert [answer for answer in (*people, *authority, *result) if answer not in text] == []
    _, found = await remit(stage, "show", action_id, "--json")
    assert [event["type"] for event in found["events"]][-2:] == ["executed", "audited"]


async def test_an_open_action_and_a_missing_one(stage: AuditStage) -> None:
    action_id = await stage.value("SELECT action_id FROM audit.actions_all WHERE terminal IS NULL")
    code, text = await remit(stage, "show", action_id)
    assert (code, "open, last evaluated" in text) == (0, True)
    code, text = await remit(stage, "show", "0" * 32)
    assert (code, "holds no action" in text) == (1, True)


async def test_the_head_of_the_ledger(stage: AuditStage) -> None:
    code, found = await remit(stage, "head", "--json")
    assert (code, [row["last_seq"] for row in found["streams"]]) == (0, [19, 1])
    code, text = await remit(stage, "head")
    assert (code, "ACTIONS" in text) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "url", "code", "word"),
    [
        (("head",), "postgresql://nobody:x@127.0.0.1:1/none", 4, "does not answer"),
        (("verify", "--checkpoints", "/none.jsonl"), None, 2, "cannot read checkpoints"),
        (("verify", "--keys", "/none"), None, 2, "cannot read"),
    ],
)
async def test_what_is_missing_is_said(
    stage: AuditStage, arguments: tuple[str, ...], url: str | None, code: int, word: str
) -> None:
    found, text = await remit(stage, *arguments, url=url)
    assert (found, word in text) == (code, True), text


async def test_the_dashboard_s_role_may_not_verify_but_may_show(stage: AuditStage) -> None:
    url = stage.audit_url.replace("remit_audit", "remit_dashboard")
    code, text = await remit(stage, "verify", url=url)
    assert (code, "may not read the ledger" in text) == (2, True)
    assert (await remit(stage, "head", url=url))[0] == 0


def checkpointer(stage: AuditStage, pool: Any, directory: Path) -> Checkpointer:
    return Checkpointer(
        pool, directory=directory, key=load_checkpoint(stage.keys), clock=lambda: f.NOW, every_events=1, every_s=1
    )


async def test_audit_halts_when_the_ledger_contradicts_its_checkpoints(
    stage: AuditStage, copy: tuple[str, asyncpg.Connection[asyncpg.Record]], tmp_path: Path
) -> None:
    url, connection = copy
    pool = await asyncpg.create_pool(url, min_size=1, max_size=2)
    made = checkpointer(stage, pool, stage.checkpoints)
    assert (await made.previous("ACTIONS"))[0] == 19
    for change in (
        f"UPDATE {E} SET chain_hash = sha256('x') WHERE {ACTIONS} = 19",
        f"DELETE FROM {E} WHERE {ACTIONS} = 19",
    ):
        await connection.execute(change)
        with pytest.raises(TamperError, match="does not hold what the checkpoint at 19 signed"):
            await made.previous("ACTIONS")
    # Without any checkpoint the chain itself is recomputed before a new one is made.
    await connection.execute(f"DELETE FROM audit.checkpoint; UPDATE {E} SET body = 'x' WHERE {ACTIONS} = 3")
    fresh = checkpointer(stage, pool, tmp_path)
    with pytest.raises(TamperError, match="row 3 is not what was chained"):
        await fresh.make("ACTIONS", await fresh.previous("ACTIONS"))
    await pool.close()


async def test_a_line_that_a_crash_left_unfinished_does_not_count(stage: AuditStage, tmp_path: Path) -> None:
    whole = (stage.checkpoints / "actions.jsonl").read_bytes()
    file = CheckpointFile(tmp_path, "ACTIONS")
    assert file.last() is None
    file.path.write_bytes(whole + b'{"checkpoint"')
    found = file.last()
    assert (found.seq if found else None, file.path.read_bytes()) == (19, whole)


class Blind(Source):
    """A consumer on a damaged replica: it never delivers sequence 5 (seen with flipped bits, bus section 1 rule 9)."""

    async def batch(self, *, wait_s: float, linger_s: float) -> list[Any]:
        found = await super().batch(wait_s=wait_s, linger_s=linger_s)
        return [msg for msg in found if msg.metadata.sequence.stream != 5]


async def test_a_hole_halts_the_projector_and_is_named(
    stage: AuditStage, copy: tuple[str, asyncpg.Connection[asyncpg.Record]], tmp_path: Path
) -> None:
    url, connection = copy
    await connection.execute(
        "TRUNCATE audit.audit_event, audit.actions_all, audit.checkpoint, audit.remits, audit.grants;"
        " UPDATE audit.progress SET last_seq = 0,"
        " chain_head = sha256(convert_to('remit.ledger.v1:' || stream, 'UTF8'))"
    )
    service = stage.build(database_url=url, checkpoint_dir=tmp_path)
    settings: Any = service.settings
    pool: Any = await asyncpg.create_pool(url, min_size=1, max_size=4)
    client = stage.clients["audit"]
    from services.audit.app import _tenure  # noqa: PLC0415  (the composition of one tenure)

    projector = Projector(
        pool=pool,
        bus=Bus(client),  # type: ignore[arg-type]  # its `request` has more parameters than the protocol asks for
        source=lambda stream: Blind(client, stream=stream, durable="audit", limit=3),
        begin=lambda fence: _tenure(service, settings, pool, load_checkpoint(stage.keys), fence),
        stamp=lambda: None,
        linger_s=0.01,
        heartbeat_s=5,
    )
    with pytest.RaisesGroup(
        pytest.RaisesExc(GapError, match="ACTIONS sequence 5 is missing: the leader holds it"), flatten_subgroups=True
    ):
        await projector.run()
    assert await connection.fetchval("SELECT max(stream_seq) FROM audit.audit_event WHERE stream = 'ACTIONS'") <= 4
    async with try_fence(pool) as fence:
        assert fence is not None, "the lock is free for whoever repairs it"
    await pool.close()

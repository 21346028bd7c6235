"""`remit audit` as a person runs it: a whole record, one action's story; and where audit itself halts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from remit.errors import ConfigurationError
from remit.ledger_chain import sign_checkpoint
from remit.runtime.bus import Bus
from remit.runtime.keys import load_checkpoint, load_trust
from services.audit.chain import GapError, TamperError
from services.audit.checkpoints import Checkpointer, CheckpointFile
from services.audit.database import try_fence
from services.audit.projector import Projector
from services.audit.source import Source
from tests.support import factories as f
from tests.support.audit_cli import Spoilt, against_files, finished_run, first_finding, remit, spoilt_copy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.audit_stage import AuditStage

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> AsyncIterator[AuditStage]:
    async with finished_run(tmp_path_factory.mktemp("verify"), keys) as stage:
        yield stage


@pytest.fixture
async def copy(stage: AuditStage) -> AsyncIterator[Spoilt]:
    async with spoilt_copy(stage) as found:
        yield found


async def test_a_whole_record_is_whole_in_rows_files_and_stream(stage: AuditStage) -> None:
    assert await first_finding(stage, *against_files(stage), "--nats") == (0, None)
    code, text = await remit(stage, "verify", *against_files(stage))
    assert code == 0
    for words in ("whole", "kept as evidence", "anchored          to sequence 19"):
        assert words in text


async def test_rows_that_nothing_outside_vouches_for_are_not_anchored(stage: AuditStage, tmp_path: Path) -> None:
    for options in ((), ("--checkpoints", str(tmp_path))):
        code, text = await remit(stage, "verify", *options)
        assert (code, "not anchored: a cut tail cannot be seen" in text) == (3, True)
    code, found = await remit(stage, "verify", "--json")
    assert (code, found["whole"], found["anchored"]) == (3, True, False)
    assert [each["anchored_to"] for each in found["streams"]] == [None, None]
    for options in (("--nats",), against_files(stage)):
        code, found = await remit(stage, "verify", "--json", *options)
        assert (code, found["anchored"], [each["anchored_to"] for each in found["streams"]]) == (0, True, [19, 1])


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


async def test_the_auditor_s_role_may_verify(stage: AuditStage) -> None:
    url = stage.audit_url.replace("remit_audit", "remit_auditor")
    assert await first_finding(stage, url=url) == (0, None)


async def test_the_dashboard_s_role_may_not_verify_but_may_show(stage: AuditStage) -> None:
    url = stage.audit_url.replace("remit_audit", "remit_dashboard")
    code, text = await remit(stage, "verify", url=url)
    assert (code, "may not read the ledger" in text) == (2, True)
    assert (await remit(stage, "head", url=url))[0] == 0


E = "audit.audit_event"
ACTIONS = "stream = 'ACTIONS' AND stream_seq"


def checkpointer(stage: AuditStage, pool: Any, directory: Path) -> Checkpointer:
    return Checkpointer(
        pool,
        directory=directory,
        key=load_checkpoint(stage.keys),
        trusted=load_trust(stage.keys).checkpoint_keys,
        clock=lambda: f.NOW,
        every_events=1,
        every_s=1,
    )


async def test_audit_halts_when_the_ledger_contradicts_its_checkpoints(
    stage: AuditStage, copy: Spoilt, tmp_path: Path
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
    assert file.read() == []
    file.path.write_bytes(whole + b'{"checkpoint"')
    found = file.read()
    assert (found[-1].seq, file.path.read_bytes()) == (19, whole)
    file.path.write_bytes(b"nonsense\n" + whole)
    with pytest.raises(ConfigurationError, match="holds a line that is no checkpoint"):
        file.read()


@pytest.mark.parametrize("where", ["database", "file"])
@pytest.mark.parametrize("forged", ["unknown kid", "other key"])
async def test_audit_halts_at_a_checkpoint_that_no_key_of_the_environment_signed(
    stage: AuditStage, copy: Spoilt, tmp_path: Path, where: str, forged: str
) -> None:
    url, connection = copy
    kid, _ = load_checkpoint(stage.keys)
    newest = CheckpointFile(stage.checkpoints, "ACTIONS").read()[-1]
    made = replace(newest, kid="nobody" if forged == "unknown kid" else kid, at=f.NOW)
    made = replace(made, signature=sign_checkpoint(made, f.SIGNERS["intake"].key))
    if where == "database":
        await connection.execute("UPDATE audit.checkpoint SET line = $1 WHERE seq = 19", made.line())
    else:
        CheckpointFile(tmp_path, "ACTIONS").append(made)
    async with asyncpg.create_pool(url, min_size=1, max_size=2) as pool:
        with pytest.raises(TamperError, match="checkpoint at 19 is not signed by a checkpoint key"):
            await checkpointer(stage, pool, tmp_path).previous("ACTIONS")


async def test_a_checkpoint_that_only_the_file_holds_is_given_to_the_database(stage: AuditStage, copy: Spoilt) -> None:
    url, connection = copy
    lines = "SELECT line FROM audit.checkpoint WHERE stream = 'ACTIONS' ORDER BY seq"
    before = await connection.fetch(lines)
    await connection.execute("DELETE FROM audit.checkpoint WHERE stream = 'ACTIONS'")
    async with asyncpg.create_pool(url, min_size=1, max_size=2) as pool:
        await checkpointer(stage, pool, stage.checkpoints).previous("ACTIONS")
    assert await connection.fetch(lines) == before


async def test_audit_refuses_a_checkpoint_key_that_nobody_would_believe(stage: AuditStage, tmp_path: Path) -> None:
    nothing: Any = None
    with pytest.raises(ConfigurationError, match="is not in the key file"):
        Checkpointer(
            nothing,
            directory=tmp_path,
            key=load_checkpoint(stage.keys),
            trusted={},
            clock=nothing,
            every_events=1,
            every_s=1,
        )


class Blind(Source):
    """A consumer on a damaged replica: it never delivers sequence 5 (seen with flipped bits, bus section 1 rule 9)."""

    async def batch(self, *, wait_s: float, linger_s: float) -> list[Any]:
        found = await super().batch(wait_s=wait_s, linger_s=linger_s)
        return [msg for msg in found if msg.metadata.sequence.stream != 5]


async def test_a_hole_halts_the_projector_and_is_named(stage: AuditStage, copy: Spoilt, tmp_path: Path) -> None:
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
    with pytest.raises(GapError, match="ACTIONS sequence 5 is missing: the leader holds it"):
        await projector.run()
    assert await connection.fetchval("SELECT max(stream_seq) FROM audit.audit_event WHERE stream = 'ACTIONS'") <= 4
    async with try_fence(pool) as fence:
        assert fence is not None, "the lock is free for whoever repairs it"
    await pool.close()

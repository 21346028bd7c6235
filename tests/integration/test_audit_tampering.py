"""Whatever a superuser does to the ledger or to the tables people read, `remit audit verify` says so, and where."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from remit.clock import monotonic
from remit.ledger_chain import genesis, link, record_digest
from tests.support.audit_cli import Spoilt, finished_run, first_finding, remit, spoilt_copy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.audit_stage import AuditStage

pytestmark = pytest.mark.timeout(120)

E = "audit.audit_event"
ACTIONS = "stream = 'ACTIONS' AND stream_seq"
RESET = (
    "UPDATE audit.progress SET last_seq = 0, verified_seq = 0,"
    " chain_head = sha256(convert_to('remit.ledger.v1:' || stream, 'UTF8'));"
)
EMPTY = f"TRUNCATE {E}, audit.actions_all, audit.checkpoint, audit.remits, audit.grants; {RESET}"
SETTLED_S = 31.0
"""After so long nothing can still be on its way into the database."""
FINISHED_AT: list[float] = []


@pytest.fixture(scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> AsyncIterator[AuditStage]:
    async with finished_run(tmp_path_factory.mktemp("tampering"), keys) as stage:
        FINISHED_AT.append(monotonic())
        yield stage


@pytest.fixture
async def copy(stage: AuditStage) -> AsyncIterator[Spoilt]:
    async with spoilt_copy(stage) as found:
        yield found


@pytest.fixture
async def settled(stage: AuditStage) -> AuditStage:
    await asyncio.sleep(max(0.0, FINISHED_AT[-1] + SETTLED_S - monotonic()))
    return stage


LEDGER = {
    "edit a body": (f"UPDATE {E} SET body = overlay(body PLACING 'X' FROM 900) WHERE {ACTIONS} = 2", (2, "chain_hash")),
    "edit a status": (f"UPDATE {E} SET verify_status = 'kid' WHERE {ACTIONS} = 3", (3, "verdict")),
    "edit a signature": (f"UPDATE {E} SET sig = sig || '\\x00' WHERE {ACTIONS} = 5", (5, "chain_hash")),
    "edit a time": (f"UPDATE {E} SET recorded_at = recorded_at - interval '1 us' WHERE {ACTIONS} = 5", (5, "chain_hash")),
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
    "truncate": (f"TRUNCATE {E}", (1, "truncated")),
    "cut the tail and the cursor": (
        (f"DELETE FROM {E} WHERE {ACTIONS} > 15; DELETE FROM audit.checkpoint WHERE seq > 15;"
        f" DELETE FROM audit.actions_all WHERE last_seq > 15; UPDATE audit.progress SET last_seq = 15, verified_seq = 0,"
        f" chain_head = (SELECT chain_hash FROM {E} WHERE {ACTIONS} = 15) WHERE stream = 'ACTIONS'"), (16, "truncated"),
    ),
    "delete the cursor": ("DELETE FROM audit.progress", (0, "truncated")),
    "delete the cursor and the rows": (f"DELETE FROM audit.progress; TRUNCATE {E}", (0, "truncated")),
    "delete the checkpoints": ("DELETE FROM audit.checkpoint", (19, "checkpoint")),
    "replace a checkpoint": (
        "UPDATE audit.checkpoint SET line = replace(line, '\"seq\":19', '\"seq\":18') WHERE stream = 'ACTIONS'",
        (18, "checkpoint"),
    ),
    "spoil a checkpoint": ("UPDATE audit.checkpoint SET line = 'x' WHERE stream = 'ACTIONS' AND seq = 19", (19, "checkpoint")),
    "rename a checkpoint's key": (
        (r"""UPDATE audit.checkpoint SET line = regexp_replace(line, '"kid":"[^"]*"', '"kid":"nobody"')"""
        " WHERE stream = 'ACTIONS' AND seq = 19"), (19, "checkpoint"),
    ),
    "write a time outside the calendar": (f"UPDATE {E} SET recorded_at = '4000-01-01 BC' WHERE {ACTIONS} = 5", None),
}  # fmt: skip


@pytest.mark.parametrize("name", LEDGER)
async def test_the_first_bad_row_of_the_ledger_is_named(stage: AuditStage, copy: Spoilt, name: str) -> None:
    url, connection = copy
    statement, expected = LEDGER[name]
    await connection.execute(statement)
    if expected is None:
        code, text = await remit(stage, "verify", "--json", "--checkpoints", str(stage.checkpoints), url=url)
        assert (code, "outside the calendar" in text) == (1, True)
        return
    code, found = await first_finding(stage, url=url)
    assert (code, found[:2] if found else None) == (1, expected)


DONE = "WHERE action_id = (SELECT min(action_id) FROM audit.actions_all WHERE receipt_seq IS NOT NULL)"
READ: dict[str, tuple[str, str]] = {
    "human of an event": (f"UPDATE {E} SET human = 'https://idp.example|mallory' WHERE {ACTIONS} = 4", "column human "),
    "detail of an event": (f"UPDATE {E} SET detail = detail || '{{\"by\": \"policy\"}}' WHERE {ACTIONS} = 4", "column detail "),
    "detail of junk": (f"UPDATE {E} SET detail = '{{\"by\": \"human\"}}' WHERE verify_status = 'signature'", "column detail "),
    "remit of an event": (f"UPDATE {E} SET remit_id = 'rem_x' WHERE {ACTIONS} = 4", "column remit_id "),
    "time an event names": (f"UPDATE {E} SET occurred_at = now() WHERE {ACTIONS} = 4", "column occurred_at "),
    "approver": (f"UPDATE audit.actions_all SET approver = 'https://idp.example|mallory' {DONE}", "column approver "),
    "votes": (f"UPDATE audit.actions_all SET votes = '[]' {DONE}", "column votes "),
    "human": (f"UPDATE audit.actions_all SET human = NULL {DONE}", "column human "),
    "task": (f"UPDATE audit.actions_all SET task = 'Pay rent' {DONE}", "column task "),
    "argument": (
        f"UPDATE audit.actions_all SET args = jsonb_set(args, '{{amount}}', '9.87') {DONE}", "column args ",
    ),
    "argument left out": (f"UPDATE audit.actions_all SET args = args - 'amount' {DONE}", "column args "),
    "no arguments": (f"UPDATE audit.actions_all SET args = 'null' {DONE}", "column args "),
    "resource": (f"UPDATE audit.actions_all SET resource_id = 'UK99' {DONE}", "column resource_id "),
    "outcome": (f"UPDATE audit.actions_all SET outcome = 'failed' {DONE}", "column outcome "),
    "flags": (f"UPDATE audit.actions_all SET flags = '{{evidence_kid}}' {DONE}", "column flags "),
    "last event's time": (f"UPDATE audit.actions_all SET last_event_at = now() {DONE}", "column last_event_at "),
    "an open action": ("UPDATE audit.actions_all SET verdict = 'deny' WHERE terminal IS NULL", "column verdict "),
    "an action less": (f"DELETE FROM audit.actions_all {DONE}", "it has events and no row"),
    "an action more": (
        ("CREATE TEMP TABLE x AS SELECT * FROM audit.actions_all LIMIT 1; UPDATE x SET action_id = repeat('f', 32);"
        " INSERT INTO audit.actions_all SELECT * FROM x"), "it has a row and no events",
    ),
    "uses": ("UPDATE audit.grants SET used = 1", "used says 1, outcomes are 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
async def test_what_people_read_is_what_the_events_say(stage: AuditStage, copy: Spoilt, name: str) -> None:
    url, connection = copy
    statement, words = READ[name]
    await connection.execute(statement)
    code, found = await first_finding(stage, url=url)
    assert code == 1
    assert found is not None
    assert (found[1], words in found[2]) == ("column" if statement.startswith(f"UPDATE {E}") else "projection", True)


REMITS = {
    "task": ("UPDATE audit.remits SET task = 'Pay rent'", "column task "),
    "budget": ("UPDATE audit.remits SET max_calls = 99", "column max_calls "),
    "grant": ("UPDATE audit.grants SET max_calls = NULL", "column max_calls "),
    "a remit less": ("DELETE FROM audit.remits", "it has events and no row"),
    "a grant more": (
        "CREATE TEMP TABLE x AS SELECT * FROM audit.grants; UPDATE x SET grant_no = 2; INSERT INTO audit.grants SELECT * FROM x",
        "it has a row and no events",
    ),
}


@pytest.mark.parametrize("name", REMITS)
async def test_remits_and_grants_are_what_their_events_say(stage: AuditStage, copy: Spoilt, name: str) -> None:
    url, connection = copy
    statement, words = REMITS[name]
    await connection.execute(statement)
    code, found = await first_finding(stage, url=url, stream="REMITS")
    assert code == 1
    assert found is not None
    assert (found[1], words in found[2]) == ("projection", True)


async def test_what_the_registry_hides_is_no_difference(stage: AuditStage, copy: Spoilt) -> None:
    url, connection = copy
    await connection.execute(
        "UPDATE audit.actions_all SET args = jsonb_set(args, '{recipient}', '\"redacted (22 chars)\"'),"
        " resource_id = 'redacted (22 chars)'"
    )
    assert await first_finding(stage, url=url) == (0, None)


async def rechain(connection: Any, changed: int) -> None:
    """Rewrite every link after a change and drop what would contradict it, as somebody does who knows the algorithm."""
    rows = await connection.fetch(
        f"SELECT stream_seq, subject, kid, sig, body_sha256, recorded_at FROM {E} WHERE stream = 'ACTIONS' ORDER BY 1"
    )
    head = genesis("ACTIONS")
    for seq, *message in map(tuple, rows):
        head = link(head, seq, record_digest(*message))
        if seq >= changed:
            await connection.execute(f"UPDATE {E} SET chain_hash = $2 WHERE {ACTIONS} = $1", seq, head)
    await connection.execute(
        "UPDATE audit.progress SET chain_head = $1, verified_seq = 0 WHERE stream = 'ACTIONS'", head
    )
    await connection.execute("DELETE FROM audit.checkpoint WHERE stream = 'ACTIONS'")


@pytest.mark.parametrize(
    ("change", "words"),
    [("kid = 'none'", "another message"), ("recorded_at = recorded_at - interval '1 s'", "at another time")],
)
async def test_a_rewritten_history_is_seen_against_the_stream(
    stage: AuditStage, copy: Spoilt, change: str, words: str
) -> None:
    url, connection = copy
    await connection.execute(f"UPDATE {E} SET {change} WHERE {ACTIONS} = 19")
    await rechain(connection, 19)
    code, found = await first_finding(stage, "--nats", url=url)
    assert code == 1
    assert found is not None
    assert (found[:2], words in found[2]) == ((19, "foreign"), True)


async def test_an_emptied_or_cut_ledger_is_seen_against_the_stream(settled: AuditStage, copy: Spoilt) -> None:
    url, connection = copy
    await connection.execute(
        f"DELETE FROM {E} WHERE {ACTIONS} > 18; DELETE FROM audit.checkpoint WHERE seq > 18;"
        f" UPDATE audit.progress SET last_seq = 18, verified_seq = 0,"
        f" chain_head = (SELECT chain_hash FROM {E} WHERE {ACTIONS} = 18) WHERE stream = 'ACTIONS';"
        " UPDATE audit.actions_all SET flags = '{}'"
    )
    told = (19, "truncated", "the rows end at 18, the stream holds 19 to 19")
    assert await first_finding(settled, "--nats", url=url) == (1, told)
    await connection.execute(EMPTY)
    told = (1, "truncated", "the rows end at 0, the stream holds 1 to 19")
    assert await first_finding(settled, "--nats", url=url) == (1, told)
    assert (await first_finding(settled, "--nats", url=url, stream="REMITS"))[1] == (
        1, "truncated", "the rows end at 0, the stream holds 1 to 1",
    )  # fmt: skip


async def test_an_emptied_ledger_contradicts_the_files(settled: AuditStage, copy: Spoilt) -> None:
    url, connection = copy
    await connection.execute(EMPTY)
    code, found = await remit(settled, "verify", "--json", "--checkpoints", str(settled.checkpoints), url=url)
    assert (code, found["whole"], found["streams"][0]["findings"] >= 2) == (1, False, True)


async def test_checkpoints_taken_out_of_the_database_contradict_the_files(settled: AuditStage, copy: Spoilt) -> None:
    url, connection = copy
    await connection.execute("DELETE FROM audit.checkpoint; UPDATE audit.progress SET verified_seq = 0")
    code, found = await first_finding(settled, url=url)
    assert (code, found[1:] if found else None) == (
        1, ("checkpoint", "the database does not hold this checkpoint any more"),
    )  # fmt: skip

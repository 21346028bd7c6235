"""Whatever a superuser does to the ledger, to what people read or to claims, verification names the first bad row."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from remit.canonical import strict_loads
from remit.cli import audit_proof
from remit.clock import now
from remit.envelope import message
from remit.ledger_chain import genesis, parse_checkpoint, sign_checkpoint, spelled
from remit.runtime.keys import load_checkpoint, load_service_keys
from tests.security.history import ATTACKS, Attack
from tests.support import factories as f
from tests.support.audit_cli import Spoilt, finished_run, first_finding, remit, spoilt_copy
from tests.support.tampering import ACTIONS, EVENTS, Superuser, columns_of, superuser

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from remit.ledger_chain import Checkpoint
    from tests.support.audit_stage import AuditStage

pytestmark = pytest.mark.timeout(120)

LATER = timedelta(minutes=1)
"""After so long nothing can still be on its way into the database."""
DONE = "action_id = (SELECT min(action_id) FROM audit.actions_all WHERE receipt_seq = 8)"


@pytest.fixture(scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> AsyncIterator[AuditStage]:
    async with finished_run(tmp_path_factory.mktemp("tampering"), keys) as stage:
        yield stage


@pytest.fixture
async def almighty(stage: AuditStage, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Superuser]:
    monkeypatch.setattr(audit_proof, "now", lambda: now() + LATER)
    async with superuser(stage, stage.database) as found:
        yield found


async def test_an_honest_record_is_whole(almighty: Superuser) -> None:
    proofs = await almighty.proofs(stream=True)
    found = {name: (proof.first, proof.anchored_to, proof.effects) for name, proof in proofs.items()}
    assert found == {"ACTIONS": (None, 19, 2), "REMITS": (None, 1, None)}


@pytest.mark.parametrize("name", ATTACKS)
async def test_the_first_bad_row_of_a_changed_history_is_named(almighty: Superuser, name: str) -> None:
    attack: Attack = ATTACKS[name]
    await almighty.lift_limits()
    await almighty.do(*attack.sql)
    if attack.rechained:
        await almighty.rechain(keeps_checkpoints=attack.keeps_checkpoints)
    found = {
        "alone": await almighty.first(files=False),
        "files": await almighty.first(),
        "stream": await almighty.first(files=False, stream=True),
    }
    named = {how: (first.seq, first.code) if first else None for how, first in found.items()}
    assert named == {"alone": attack.alone, "files": attack.files, "stream": attack.stream}


async def test_another_genesis_is_no_beginning(almighty: Superuser) -> None:
    await almighty.rechain(start=genesis("REMITS"))
    for files, stream in ((False, False), (True, False), (False, True)):
        first = await almighty.first(files=files, stream=stream)
        assert first is not None
        assert (first.seq, first.code) == (1, "chain_hash")


async def test_a_whole_forked_history_is_seen_from_outside_only(almighty: Superuser) -> None:
    """Another time for every row, every link rewritten, every receipt signed anew with audit's own stolen key."""
    await almighty.lift_limits()
    await almighty.do(
        f"UPDATE {EVENTS} SET recorded_at = recorded_at + interval '1 ms' WHERE stream = 'ACTIONS'",
        "UPDATE audit.actions_all SET last_event_at = last_event_at + interval '1 ms'",
    )
    signer = load_service_keys(almighty.stage.keys, "audit").signer
    for receipt in (8, 16):
        await almighty.rechain()
        query = f"SELECT subject, body FROM {EVENTS} WHERE {ACTIONS} = $1"
        subject, body = tuple(await almighty.connection.fetchrow(query, receipt) or ())
        old, new = strict_loads(body)["data"]["ledger_head"], await _head(almighty, receipt - 1)
        forged = body.replace(old.encode(), new.encode())
        signature = signer.key.sign(message(subject, forged)).signature
        await almighty.connection.execute(
            f"UPDATE {EVENTS} SET body = $2, body_sha256 = sha256($2), sig = $3,"
            f" detail = replace(detail::text, $4, $5)::jsonb WHERE {ACTIONS} = $1",
            receipt, forged, signature, old, new,
        )  # fmt: skip
    await almighty.rechain()
    assert await almighty.first(files=False) is None
    caught = await almighty.first()
    assert caught is not None
    assert (caught.seq, caught.code, "a row from 1 to 19" in caught.detail) == (19, "checkpoint", True)
    caught = await almighty.first(files=False, stream=True)
    assert caught is not None
    assert (caught.seq, caught.code, caught.detail) == (1, "foreign", "the stream stored its message at another time")


TABLES: dict[str, tuple[str, set[str]]] = {
    EVENTS: (f"{ACTIONS} = 4", set()),
    "audit.actions_all": (DONE, set()),
    "audit.remits": ("true", set()),
    "audit.grants": ("true", set()),
    "audit.checkpoint": ("stream = 'ACTIONS'", set()),
    "audit.progress": ("stream = 'ACTIONS'", {"epoch", "approvals_seq", "touched_at"}),
    "control.execution": (
        DONE, {"executor", "reason", "claimed_at", "deadline", "finished_at", "request", "draft"},
    ),
}  # fmt: skip
"""A row of each table that verification covers, and the columns that no event vouches for."""
ROW_OF = {
    EVENTS: {4},
    "audit.actions_all": {8},
    "audit.remits": {0, 1},
    "audit.grants": {0, 1},
    "control.execution": {8},
}
"""The row that must be named; 0 where the finding names a remit's or a grant's row instead."""


@pytest.mark.parametrize("table", TABLES)
async def test_no_column_can_be_changed_unseen(almighty: Superuser, table: str) -> None:
    where, free = TABLES[table]
    unseen = set[str]()
    await almighty.lift_limits()
    for column in await columns_of(almighty.connection, table):
        async with almighty.trial():
            await almighty.change(table, column, where)
            firsts = [proof.first for proof in (await almighty.proofs()).values() if proof.first is not None]
        if not firsts:
            unseen.add(column)
        assert {first.seq for first in firsts} <= ROW_OF.get(table, {0, 19, 20, 1019}), (column, firsts)
        named = {EVENTS: ("4",), "audit.remits": ("rem_",), "audit.grants": ("rem_",)}.get(table, ())
        assert all(any(word in f"{first.seq} {first.detail}" for first in firsts) for word in named), (column, firsts)
    assert unseen == free


READ: dict[str, tuple[str, str]] = {
    "detail of junk": (f"UPDATE {EVENTS} SET detail = '{{\"by\": \"human\"}}' WHERE {ACTIONS} = 19", "column detail "),
    "one argument": (f"UPDATE audit.actions_all SET args = jsonb_set(args, '{{amount}}', '9.87') WHERE {DONE}", "column args "),
    "an argument less": (f"UPDATE audit.actions_all SET args = args - 'amount' WHERE {DONE}", "column args "),
    "no arguments": (f"UPDATE audit.actions_all SET args = 'null' WHERE {DONE}", "column args "),
    "nobody's approval": (f"UPDATE audit.actions_all SET votes = '[]' WHERE {DONE}", "column votes "),
    "an open action": ("UPDATE audit.actions_all SET verdict = 'deny' WHERE terminal IS NULL", "column verdict "),
    "an action less": (f"DELETE FROM audit.actions_all WHERE {DONE}", "it has events and no row"),
    "an action more": (
        ("CREATE TEMP TABLE x AS SELECT * FROM audit.actions_all LIMIT 1; UPDATE x SET action_id = repeat('f', 32);"
         " INSERT INTO audit.actions_all SELECT * FROM x"), "it has a row and no events",
    ),
    "no remit": ("DELETE FROM audit.remits", "it has events and no row"),
    "a grant more": (
        "CREATE TEMP TABLE x AS SELECT * FROM audit.grants; UPDATE x SET grant_no = 2; INSERT INTO audit.grants SELECT * FROM x",
        "it has a row and no events",
    ),
    "a revocation undone": ("UPDATE audit.grants SET revoked_at = now()", "column revoked_at "),
    "a use less": ("UPDATE audit.grants SET used = 1", "used says 1, outcomes are 2"),
    "never used": ("UPDATE audit.grants SET last_used_at = NULL", "column last_used_at "),
    "a claim less": (f"DELETE FROM control.execution WHERE {DONE}", "it has an outcome and no claim"),
    "a claim taken back": (f"UPDATE control.execution SET state = 'refused' WHERE {DONE}", "claim's column state "),
    "a claim open again": (f"UPDATE control.execution SET state = 'in_flight' WHERE {DONE}", "claim's column state "),
    "an effect without evidence": (
        ("INSERT INTO control.execution (action_id, remit_id, state, finished_at)"
         " VALUES (repeat('e', 32), 'rem_x', 'succeeded', now() - interval '1 hour')"),
        "its claim ended as succeeded, the ledger holds no outcome",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
async def test_what_people_read_is_what_the_events_say(almighty: Superuser, name: str) -> None:
    statement, words = READ[name]
    await almighty.do(statement)
    firsts = [proof.first for proof in (await almighty.proofs()).values() if proof.first is not None]
    assert any(words in first.detail for first in firsts), firsts


async def test_an_outcome_that_the_outbox_still_owes_is_not_missing(almighty: Superuser) -> None:
    await almighty.do(
        READ["an effect without evidence"][0],
        "INSERT INTO control.outbox (service, subject_id, event_type, discriminator, draft)"
        " VALUES ('executor', repeat('e', 32), 'executed', '1', '{}')",
    )
    assert await almighty.first() is None


async def test_what_the_registry_hides_is_no_difference(almighty: Superuser) -> None:
    await almighty.do(
        "UPDATE audit.actions_all SET args = jsonb_set(args, '{recipient}', '\"redacted (22 chars)\"'),"
        " resource_id = 'redacted (22 chars)'"
    )
    assert await almighty.first() is None


def _signed(made: Checkpoint, key: Any) -> str:
    return replace(made, signature=sign_checkpoint(made, key)).line()


@pytest.mark.parametrize(
    "how", ["other key", "unknown kid", "an older one", "other head", "unreadable", "wrong types", "removed"]
)
async def test_a_replaced_checkpoint_is_named(almighty: Superuser, how: str) -> None:
    kid, key = load_checkpoint(almighty.stage.keys)
    [true] = [each for each in almighty.outside if each.stream == "ACTIONS"]
    older = replace(true, seq=16, chain_head=await _head(almighty, 16))
    lines = {
        "other key": _signed(true, f.SIGNERS["intake"].key),
        "unknown kid": _signed(replace(true, kid="nobody"), key),
        "an older one": _signed(replace(older, kid=kid), key),
        "other head": _signed(replace(true, chain_head=f.DIGEST), f.SIGNERS["audit"].key),
        "unreadable": "x",
        "wrong types": true.line().replace('"seq":19', '"seq":"19"'),
    }
    assert parse_checkpoint(true.line()) == true
    statement = "DELETE FROM audit.checkpoint WHERE stream = 'ACTIONS'"
    if how in lines:
        await almighty.connection.execute("UPDATE audit.checkpoint SET line = $1 WHERE stream = 'ACTIONS'", lines[how])
    else:
        await almighty.do(statement)
    for files in (False, True):
        first = await almighty.first(files=files)
        assert first is not None
        assert (first.seq, first.code) == (16 if how == "an older one" else 19, "checkpoint")


@pytest.mark.parametrize("how", ["other key", "other head"])
async def test_a_replaced_checkpoint_file_is_named(almighty: Superuser, how: str) -> None:
    _, key = load_checkpoint(almighty.stage.keys)
    [true] = [each for each in almighty.outside if each.stream == "ACTIONS"]
    made = true if how == "other key" else replace(true, chain_head=f.DIGEST)
    signer = f.SIGNERS["intake"].key if how == "other key" else key
    almighty.outside = [parse_checkpoint(_signed(made, signer))]
    first = await almighty.first()
    assert first is not None
    assert (first.seq, first.code) == (19, "checkpoint")


async def _head(almighty: Superuser, seq: int) -> str:
    return spelled(await almighty.connection.fetchval(f"SELECT chain_hash FROM {EVENTS} WHERE {ACTIONS} = $1", seq))


@pytest.fixture
async def copy(stage: AuditStage) -> AsyncIterator[Spoilt]:
    async with spoilt_copy(stage) as found:
        yield found


SHOWN = {
    "delete one": ((), (6, "gap", "rows missing: 6")),
    "an edited receipt, rechained": ((), (8, "verdict", "stored as valid, found signature")),
    "insert behind, rechained": (("--nats",), (20, "foreign", "the stream holds no message at this sequence")),
}


@pytest.mark.parametrize("name", SHOWN)
async def test_the_command_says_so_too(stage: AuditStage, copy: Spoilt, name: str) -> None:
    url, connection = copy
    options, expected = SHOWN[name]
    almighty = Superuser(stage, connection, [])
    await almighty.lift_limits()
    await almighty.do(*ATTACKS[name].sql)
    if ATTACKS[name].rechained:
        await almighty.rechain()
    assert await first_finding(stage, *options, url=url) == (1, expected)
    code, text = await remit(stage, "verify", *(options or ("--checkpoints", str(stage.checkpoints))), url=url)
    assert (code, f"first bad row  {expected[0]}: {expected[1]}: {expected[2]}" in text) == (1, True), text


async def test_a_time_outside_the_calendar_is_said(stage: AuditStage, copy: Spoilt) -> None:
    url, connection = copy
    await connection.execute(f"UPDATE {EVENTS} SET recorded_at = '4000-01-01 BC' WHERE {ACTIONS} = 5")
    code, text = await remit(stage, "verify", "--json", "--checkpoints", str(stage.checkpoints), url=url)
    assert (code, "outside the calendar" in text) == (1, True)

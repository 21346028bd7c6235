"""What a revocation leaves behind, whatever crashes: its event, its evidence, and nothing that can still start."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from remit.commands import ApplyCommand, DenyCommand, GrantCommand, RevokeCommand
from remit.events import ActionEvaluated, ActionRefused, ActionRevoked, RemitGranted, RemitGrantedEvent, Revoked
from remit.ids import fresh_key
from remit.reasons import Reason, Verdict
from remit.registry_files import load_registry
from remit.runtime.ledger import Draft
from services.approval.database import Database
from services.approval.remit_store import RemitStore
from services.approval.store import ActionStore
from services.approval.terms import remit_digest, remit_document
from tests.support import factories as f
from tests.support.approval_stage import REGISTRY, Stage, stage
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from remit.remits import RemitDocument

QUEUED = "SELECT count(*) FROM control.outbox WHERE subject_id = $1"


@pytest.fixture(scope="module")
async def on(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    quick = {"REMIT_STOP_POLL_S": "0.1", "REMIT_OUTBOX_S": "0.1", "REMIT_OUTBOX_AFTER_S": "0.5"}
    async with stage(tmp_path_factory.mktemp("revocation"), **quick) as found:
        assert (await found.apply()).status == "ok"
        yield found


def database(on: Stage) -> Database:
    """Return the database as approval sees it, for the half that a crashed replica had done."""
    found = Database()
    found.attach(on.pool)
    return found


async def status(on: Stage, remit_id: str) -> str:
    return (await on.ledgers["policy"].read_remit(remit_id)).status


async def waiting(on: Stage, remit_id: str) -> str:
    """Return an action that people are asked about."""

    async def asked() -> str | None:
        action = await on.evaluate(remit_id, Verdict.ASK, session=fresh_key())
        await eventually(lambda: is_answered(action))
        return action if await on.last(action) == "approval_requested" else None

    async def is_answered(action: str) -> bool:
        return await on.last(action) in {"approval_requested", "refused"}

    # A switch that a test lifted a moment ago still stands in approval's copy, which is a second old at most.
    for _ in range(4):
        if (action := await asked()) is not None:
            return action
        await asyncio.sleep(0.5)
    raise AssertionError("approval refuses to ask")


async def test_a_crash_after_the_stop_of_an_action_is_made_up_for_by_any_replica(on: Stage) -> None:
    action = await waiting(on, await on.grant())
    said = (await on.read(action)).must(ActionEvaluated).data
    about: dict[str, Any] = {name: getattr(said, name) for name in f.COMMON}
    revoked = Revoked(**about, by=on.human("emma"), cause="changed my mind")
    await ActionStore(database(on)).forestall(revoked, "crashed")
    row = await on.value("SELECT request->'revoked_by'->>'sub' FROM control.execution WHERE action_id = $1", action)
    assert (row, await on.value(QUEUED, action)) == ("emma", 1)
    await eventually(lambda: on.last(action), "revoked")
    event = (await on.read(action)).must(ActionRevoked)
    assert (event.data.by, event.data.cause) == (on.human("emma"), "changed my mind")
    await eventually(lambda: on.value(QUEUED, action), 0)
    await eventually(lambda: on.value("SELECT count(*) FROM control.pending WHERE action_id = $1", action), 0)
    assert [r.event.short for r in (await on.read(action)).chain].count("revoked") == 1


async def test_a_crash_after_the_stop_of_a_remit_is_made_up_for_by_any_replica(on: Stage) -> None:
    remit_id = await on.grant()
    action = await waiting(on, remit_id)
    remits = RemitStore(database(on))
    remit = await remits.find(remit_id)
    assert remit is not None
    [queued] = await remits.end(remit_id, digest=remit.digest, reason="done", by=on.human("emma"))
    assert await remits.end(remit_id, digest=remit.digest, reason="other", by=on.human("otto")) == [queued]
    await eventually(lambda: status(on, remit_id), "revoked")
    await eventually(lambda: on.last(action), "refused")
    refused = (await on.read(action)).must(ActionRefused).data
    assert (refused.reason, refused.by, refused.detail) == (Reason.REVOKED, on.human("emma"), "done")
    await eventually(lambda: on.value(QUEUED, remit_id), 0)
    who = await on.value("SELECT by_sub FROM control.stop WHERE kind = 'remit' AND target = $1", remit_id)
    assert who == "emma"


async def stored_only(on: Stage, key: str) -> RemitDocument:
    """Return a remit whose grant has got as far as its rows."""
    document = remit_document(on.terms(), on.human("emma"), key)
    created = await RemitStore(database(on)).create(document, remit_digest(document), email=None)
    assert not created.is_stopped
    return document


async def test_a_grant_whose_event_comes_after_the_revocation_ends_revoked(on: Stage) -> None:
    document = await stored_only(on, fresh_key())
    reply = await on.ask("emma", RevokeCommand, kind="remit", target=document.remit_id, reason="done")
    assert reply.status == "ok"
    await asyncio.sleep(1.0)  # the relay looks, and finds no remit to end yet
    ledger = on.ledgers["approval"]
    granted = RemitGranted(remit=document, remit_digest=remit_digest(document), by=document.human)
    state = await ledger.read_remit(document.remit_id)
    assert state.status == "none"
    await ledger.append_remit(state, Draft(event=RemitGrantedEvent, data=granted))
    await eventually(lambda: status(on, document.remit_id), "revoked")
    await eventually(lambda: on.value(QUEUED, document.remit_id), 0)


async def test_a_grant_that_is_repeated_after_its_revocation_grants_nothing(on: Stage) -> None:
    key, terms = fresh_key(), on.terms()
    document = remit_document(terms, on.human("emma"), key)
    await RemitStore(database(on)).create(document, remit_digest(document), email=None)
    await on.ask("emma", RevokeCommand, kind="remit", target=document.remit_id, reason="done")
    reply = await on.ask("emma", GrantCommand, key=key, terms=terms)
    assert (reply.status, reply.decision, await status(on, document.remit_id)) == ("decided", "revoked", "none")
    await on.pool.execute(
        "UPDATE control.remit SET expires_at = now(), not_before = now() - interval '1 hour' WHERE remit_id = $1",
        document.remit_id,
    )
    await eventually(lambda: on.value(QUEUED, document.remit_id), 0)


async def test_racing_grants_and_revocations_never_leave_a_remit_active(on: Stage) -> None:
    for _ in range(5):
        key, terms = fresh_key(), on.terms()
        document = remit_document(terms, on.human("emma"), key)

        async def revoke(target: str = document.remit_id) -> str:
            while True:
                reply = await on.ask("emma", RevokeCommand, kind="remit", target=target, reason="done")
                if reply.status != "invalid":
                    return reply.status

        granted, revoked = await asyncio.gather(on.ask("emma", GrantCommand, key=key, terms=terms), revoke())
        assert (granted.status in {"ok", "decided"}, revoked) == (True, "ok")
        assert await status(on, document.remit_id) in {"revoked", "none"}


async def test_two_revocations_of_one_action_are_one_event_and_the_second_learns_of_the_first(on: Stage) -> None:
    action = await waiting(on, await on.grant())
    fields = {"kind": "action", "target": action}
    replies = await asyncio.gather(
        on.ask("emma", RevokeCommand, **fields, reason="one"), on.ask("otto", RevokeCommand, **fields, reason="two")
    )
    assert sorted(reply.status for reply in replies) == ["decided", "ok"], replies
    assert [r.event.short for r in (await on.read(action)).chain].count("revoked") == 1


async def test_a_revocation_of_what_was_refused_does_not_claim_that_a_call_was_made(on: Stage) -> None:
    remit_id = await on.grant()
    action = await on.evaluate(remit_id, Verdict.ALLOW)
    await eventually(lambda: on.last(action), "approved")
    await on.pool.execute(
        "INSERT INTO control.execution (action_id, remit_id, state, reason, claim_id)"
        " VALUES ($1, $2, 'refused', 'budget_exhausted', 'clm_1')",
        action,
        remit_id,
    )
    reply = await on.ask("emma", RevokeCommand, kind="action", target=action, reason="x")
    assert (reply.status, reply.decision) == ("decided", "refused")
    assert "nothing was called" in reply.detail
    assert "budget_exhausted" in reply.detail


LOG = "SELECT change, reason, by_sub, login FROM control.stop_log WHERE kind = $1 AND target = $2 ORDER BY id"


async def test_every_change_of_a_switch_is_kept(on: Stage) -> None:
    switch = {"kind": "agent", "target": f.AGENT.id}
    for lift, reason in ((False, "drill"), (False, "real"), (True, "over")):
        assert (await on.ask("otto", RevokeCommand, **switch, reason=reason, lift=lift)).status == "ok"
    rows = [tuple(row) for row in await on.pool.fetch(LOG, "agent", f.AGENT.id)]
    assert rows == [
        ("engaged", "drill", "otto", "remit_approval"),
        ("engaged", "real", "otto", "remit_approval"),
        ("lifted", "over", "otto", "remit_approval"),
    ]


@pytest.mark.parametrize(
    "change",
    [
        "INSERT INTO control.stop_log (kind, target, change, login) VALUES ('global', '*', 'lifted', 'x')",
        "UPDATE control.stop_log SET by_sub = 'emma'",
        "DELETE FROM control.stop_log",
        "TRUNCATE control.stop_log",
    ],
)
async def test_nobody_writes_or_changes_the_log_of_switches(on: Stage, change: str) -> None:
    approval = await asyncpg.connect(on.environment.database_url("approval"))
    try:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await approval.execute(change)
    finally:
        await approval.close()
    if not change.startswith("INSERT"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="insert-only"):
            await on.pool.execute(change)


async def engaged(on: Stage, tool: str) -> set[str]:
    query = "SELECT target FROM control.stop WHERE kind = 'tool' AND engaged_at IS NOT NULL AND target LIKE $1"
    return {row["target"] for row in await on.pool.fetch(query, f"{tool}.%")}


async def test_a_whole_tool_is_stopped_with_what_is_registered_later(on: Stage) -> None:
    tool = {"kind": "tool", "reason": "the bank is compromised"}
    alone = {"kind": "tool", "target": "bank.update_password", "reason": "by itself"}
    assert (await on.ask("otto", RevokeCommand, **alone)).status == "ok"
    reply = await on.ask("otto", RevokeCommand, **tool, target="bank")
    assert (reply.status, "for 11 actions" in reply.detail) == ("ok", True), reply
    known = {f"bank.{name}" for name in load_registry(REGISTRY, on.placeholders()).tools["bank"].actions}
    assert await engaged(on, "bank") == known | {"bank.*"}

    content = load_registry(REGISTRY, on.placeholders())
    bank = content.tools["bank"]
    more = bank.model_copy(update={"actions": {**bank.actions, "pay_twice": bank.actions["send_money"]}})
    version = (await on.apply()).bundle_version or 0
    grown = content.model_copy(update={"tools": {"bank": more}})
    assert (await on.ask("otto", ApplyCommand, content=grown, base_version=version)).status == "ok"
    assert "bank.pay_twice" in await engaged(on, "bank")
    held = await on.ask("otto", RevokeCommand, **tool, target="bank.send_money", lift=True)
    assert (held.status, "lift tool bank first" in held.detail) == ("invalid", True)

    assert (await on.ask("otto", RevokeCommand, **tool, target="bank.*", lift=True)).status == "ok"
    assert await engaged(on, "bank") == {"bank.update_password"}
    assert (await on.ask("otto", RevokeCommand, **alone, lift=True)).status == "ok"
    unknown = await on.ask("otto", RevokeCommand, **tool, target="bnak")
    assert (unknown.status, "nothing was stopped" in unknown.detail) == ("invalid", True)


async def test_a_stopped_person_may_only_take_back(on: Stage) -> None:
    remit_id = await on.grant()
    action = await waiting(on, remit_id)
    stopped = {"kind": "human", "reason": "stolen laptop"}
    for person in ("dana", "otto", "emma"):
        target = f"{on.issuer}|{person}"
        assert (await on.ask("otto", RevokeCommand, **stopped, target=target)).status == "ok"
    lift = await on.ask("otto", RevokeCommand, **stopped, target=f"{on.issuer}|otto", lift=True)
    replies = [
        lift,
        await on.approve("dana", action),
        await on.ask("dana", DenyCommand, action_id=action),
        await on.apply(base=1),
        await on.ask("emma", GrantCommand, terms=on.terms(), phase="preview"),
    ]
    assert {(reply.status, "may only revoke" in reply.detail) for reply in replies} == {("forbidden", True)}
    assert (await on.ask("emma", RevokeCommand, kind="remit", target=remit_id, reason="mine")).status == "ok"
    await on.pool.execute("UPDATE control.stop SET engaged_at = NULL WHERE kind = 'human'")

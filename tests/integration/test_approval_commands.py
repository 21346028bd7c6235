"""Human commands against a real approval service: two replicas, NATS, Postgres with its own role, an OpenID provider."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from remit.bundle_store import decode_manifest
from remit.commands import (
    ApproveCommand,
    DenyCommand,
    GrantCommand,
    ResolveCommand,
    RevokeCommand,
)
from remit.events import (
    ActionApprovalRequested,
    ActionApproved,
    ActionEvaluated,
    ActionExecuted,
    ActionRefused,
    ActionStarted,
    ActionTokenized,
)
from remit.ids import fresh_key
from remit.reasons import Outcome, Reason, Verdict
from remit.remits import Grant
from remit.runtime.ledger import Draft
from tests.support import factories as f
from tests.support.approval_stage import Stage, stage
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

ARGS = f.COMMON["action"].args_digest


@pytest.fixture(scope="module")
async def on(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with stage(tmp_path_factory.mktemp("approval"), REMIT_SWEEP_S="0.3", REMIT_STOP_POLL_S="0.1") as found:
        reply = await found.apply()
        assert (reply.status, reply.bundle_version) == ("ok", 1), reply
        yield found


async def asked(on: Stage, remit_id: str, **more: Any) -> str:
    """Return an action that waits for people."""
    action = await on.evaluate(remit_id, Verdict.ASK, **more)
    await eventually(lambda: on.last(action), "approval_requested")
    return action


approve = Stage.approve


async def test_a_bundle_is_put_in_force_whole_by_an_administrator_only(on: Stage) -> None:
    assert (await on.apply(person="emma")).status == "forbidden"
    assert (await on.apply()).bundle_version == 1
    broken = await on.apply(base=1, policies={"bad.cedar": "permit (principal"})
    assert (broken.status, broken.field) == ("invalid", "content")
    assert "bad.cedar" in broken.detail
    stale = await on.apply(base=7, policies={"a.cedar": "permit (principal, action, resource);"})
    assert (stale.status, stale.bundle_version) == ("stale", 1)
    stored = await on.ledgers["policy"]._bus.leader_read("KV_REGISTRY", {"last_by_subj": "$KV.REGISTRY.bundle"})
    assert stored is not None
    manifest = decode_manifest(stored.body, on.ledgers["policy"]._trust)
    assert (manifest.version, manifest.applied_by) == (1, f"{on.issuer}|otto")
    rows = await on.pool.fetch("SELECT kind, target FROM control.stop WHERE kind IN ('tool', 'agent')")
    assert {("tool", "bank.send_money"), ("agent", f.AGENT.id)} <= {(row["kind"], row["target"]) for row in rows}


async def test_a_grant_is_previewed_committed_once_and_repeated_without_effect(on: Stage) -> None:
    key, terms = fresh_key(), on.terms()
    preview = await on.ask("emma", GrantCommand, key=key, terms=terms, phase="preview")
    assert preview.remit_id is not None
    assert await on.value("SELECT count(*) FROM control.remit WHERE remit_id = $1", preview.remit_id) == 0
    replies = await asyncio.gather(
        *(on.ask("emma", GrantCommand, key=key, terms=terms, remit_digest=preview.remit_digest) for _ in range(4))
    )
    assert {(r.status, r.remit_id, r.remit_digest) for r in replies} == {("ok", preview.remit_id, preview.remit_digest)}
    state = await on.ledgers["policy"].read_remit(preview.remit_id)
    assert (state.status, state.n, state.digest) == ("active", 1, preview.remit_digest)
    budgets = await on.pool.fetch(
        "SELECT grant_no, max_calls FROM control.budget WHERE remit_id = $1 ORDER BY 1", preview.remit_id
    )
    assert [(row["grant_no"], row["max_calls"]) for row in budgets] == [(0, 5), (1, 2)]
    assert await on.value("SELECT granted_seq FROM control.remit WHERE remit_id = $1", preview.remit_id) == state.seq
    other = await on.ask("emma", GrantCommand, key=key, terms=on.terms(max_calls=9))
    assert (other.status, other.field) == ("invalid", "idempotency_key")


async def test_only_a_delegator_grants_and_only_what_exists(on: Stage) -> None:
    assert (await on.ask("dana", GrantCommand, terms=on.terms())).status == "forbidden"
    missing = await on.ask("emma", GrantCommand, terms=on.terms(agent_id="spiffe://acme.example/agent/nobody"))
    assert (missing.status, missing.field) == ("invalid", "terms.agent_id")


async def test_allow_is_approved_by_policy(on: Stage) -> None:
    action = await on.evaluate(await on.grant(), Verdict.ALLOW)
    await eventually(lambda: on.last(action), "approved")


async def test_an_approval_binds_to_arguments_and_to_a_person_who_is_not_the_human(on: Stage) -> None:
    action = await asked(on, await on.grant())
    assert await on.value("SELECT count(*) FROM control.pending WHERE action_id = $1", action) == 1
    request = (await on.read(action)).must(ActionApprovalRequested)
    assert (await approve(on, "emma", action)).status == "forbidden"
    assert (await approve(on, "otto", action)).status == "forbidden"
    assert (await approve(on, "dana", action, args_digest=f.DIGEST)).status == "stale"
    blind = await on.ask("dana", ApproveCommand, action_id=action, args_digest=ARGS)
    assert (blind.status, blind.field) == ("invalid", "shown_digest")
    key = fresh_key()
    for _ in range(2):
        reply = await approve(on, "dana", action, key=key, shown_digest=request.data.shown_digest, version=1)
        assert (reply.status, reply.votes) == ("ok", 1), reply
    other = await approve(on, "dana", action, key=key, narrowing={"properties": {"amount": {"maximum": 100}}})
    assert (other.status, other.field) == ("invalid", "idempotency_key")
    later = await on.ask("dana", DenyCommand, action_id=action)
    assert (later.status, later.decided_by) == ("decided", on.human("dana"))
    assert await on.value("SELECT count(*) FROM control.pending WHERE action_id = $1", action) == 0
    assert [r.event.short for r in (await on.read(action)).chain].count("approved") == 1


async def test_a_denial_blocks_its_like_under_the_remit_whatever_the_session_is_called(on: Stage) -> None:
    remit_id = await on.grant()
    action, twin = [await asked(on, remit_id, session=f"s-{number}") for number in range(2)]
    assert (await on.ask("dana", DenyCommand, action_id=action, reason="wrong recipient")).status == "ok"
    for session, verdict in (("s-0", Verdict.ASK), ("s-2", Verdict.ASK), ("s-3", Verdict.ALLOW)):
        again = await on.evaluate(remit_id, verdict, session=session)
        await eventually(lambda again=again: on.last(again), "refused")
        refused = (await on.read(again)).must(ActionRefused).data
        assert (refused.reason, refused.detail) == (Reason.BLOCKED, "wrong recipient")
    late = await approve(on, "sam", twin)
    assert (late.status, late.decision, late.decided_by) == ("decided", "refused", on.human("dana"))
    assert "wrong recipient" in late.detail
    assert (await on.read(twin)).must(ActionRefused).data.reason is Reason.BLOCKED
    await asked(on, remit_id, session="s-1", action={"resource_id": "another"})
    await asked(on, await on.grant(), session="s-1")


async def test_what_is_critical_needs_two_people(on: Stage) -> None:
    action = await asked(on, await on.grant(), action={"risk": "T4"})
    first = await approve(on, "dana", action)
    assert (first.status, first.votes, first.quorum, await on.last(action)) == ("ok", 1, 2, "approval_requested")
    assert (await approve(on, "dana", action)).status == "forbidden"
    second = await approve(on, "sam", action)
    assert (second.status, second.votes, second.detail) == ("ok", 2, "approved")
    assert [vote.sub for vote in (await on.read(action)).must(ActionApproved).data.votes] == ["dana", "sam"]


async def test_a_second_account_with_the_humans_address_is_the_human(on: Stage) -> None:
    remit_id = await on.grant()
    await on.pool.execute("UPDATE control.remit SET human_email = 'dana@acme.example' WHERE remit_id = $1", remit_id)
    action = await asked(on, remit_id)
    assert "themselves" in (await approve(on, "dana", action)).detail
    assert (await approve(on, "sam", action)).status == "ok"
    stored = "SELECT human_email FROM control.remit WHERE remit_id = $1"
    assert await on.value(stored, await on.grant()) == "emma@acme.example"


async def test_a_narrowing_that_limits_nothing_is_not_an_approval(on: Stage) -> None:
    action = await asked(on, await on.grant())
    wrong = await approve(on, "dana", action, narrowing={"properties": {"amount": {"maxium": 1}}})
    assert (wrong.status, wrong.field) == ("invalid", "narrowing.properties.amount.maxium")
    right = await approve(on, "dana", action, narrowing={"properties": {"amount": {"maximum": 100}}})
    assert right.status == "ok"


async def test_a_race_of_yes_and_no_has_one_decision(on: Stage) -> None:
    for _ in range(5):
        action = await asked(on, await on.grant(), session=fresh_key())
        replies = await asyncio.gather(
            *(approve(on, "dana", action) for _ in range(6)),
            *(on.ask("dana", DenyCommand, action_id=action) for _ in range(6)),
        )
        assert Counter(reply.status for reply in replies) == {"ok": 1, "decided": 11}
        kinds = [r.event.short for r in (await on.read(action)).chain]
        assert kinds.count("approved") + kinds.count("refused") == 1


async def test_spent_and_stopped_is_not_even_asked(on: Stage) -> None:
    remit_id = await on.grant(max_calls=2)
    await on.pool.execute("UPDATE control.budget SET used = 2 WHERE remit_id = $1 AND grant_no = 0", remit_id)
    spent = await on.evaluate(remit_id, Verdict.ASK)
    await eventually(lambda: on.last(spent), "refused")
    assert (await on.read(spent)).must(ActionRefused).data.reason is Reason.BUDGET_EXHAUSTED
    await eventually(lambda: _status(on, remit_id), "exhausted")
    assert await on.value("SELECT ended_reason FROM control.remit WHERE remit_id = $1", remit_id) == "exhausted"
    target = {"kind": "tool", "target": "bank.send_money", "reason": "test"}
    assert (await on.ask("emma", RevokeCommand, **target)).status == "forbidden"
    assert (await on.ask("otto", RevokeCommand, **target)).status == "ok"
    await asyncio.sleep(0.5)  # the copy is advisory: both replicas look ten times a second
    stopped = await on.evaluate(await on.grant(), Verdict.ALLOW)
    await eventually(lambda: on.last(stopped), "refused")
    assert (await on.ask("otto", RevokeCommand, **target, lift=True)).status == "ok"
    await asyncio.sleep(0.5)
    unknown = await on.ask("otto", RevokeCommand, kind="tool", target="bank.rob", reason="test")
    assert (unknown.status, unknown.field) == ("invalid", "target")


async def _status(on: Stage, remit_id: str) -> str:
    return (await on.ledgers["policy"].read_remit(remit_id)).status


async def claim(on: Stage, action: str, remit_id: str) -> str:
    """Claim as the executor does, with evidence that is fresh."""
    await on.pool.execute(
        "INSERT INTO control.heartbeat (service, at, position) VALUES ('audit', clock_timestamp(), 1)"
        " ON CONFLICT (service) DO UPDATE SET at = excluded.at"
    )
    return await on.value(
        "SELECT control.claim($1, $2, $3, 1, 1, $4, $5, 'executor-1', 30, clock_timestamp() + interval '1 minute',"
        " $6, $7, 'bank.send_money', 60)",
        action, f"tok_{action}", remit_id, ARGS, f"claim_{action}", f"{on.issuer}|emma", f.AGENT.id,
    )  # fmt: skip


async def test_a_revoked_action_cannot_be_claimed_and_a_claimed_one_cannot_be_revoked(on: Stage) -> None:
    remit_id = await on.grant()
    first, second = [await on.evaluate(remit_id, Verdict.ALLOW) for _ in range(2)]
    await eventually(lambda: on.last(second), "approved")
    revoke = {"kind": "action", "reason": "changed my mind"}
    assert (await on.ask("dana", RevokeCommand, **revoke, target=first)).status == "forbidden"
    key = fresh_key()
    for _ in range(2):
        assert (await on.ask("emma", RevokeCommand, key=key, **revoke, target=first)).status == "ok"
    assert await claim(on, first, remit_id) == "exists"
    assert await on.last(first) == "revoked"
    assert await claim(on, second, remit_id) == "claimed"
    late = await on.ask("emma", RevokeCommand, **revoke, target=second)
    assert (late.status, "in_flight" in late.detail) == ("revoke_too_late", True)


async def test_after_a_revoke_of_a_remit_returned_no_claim_commits(on: Stage) -> None:
    remit_id = await on.grant()
    waiting, ready = await asked(on, remit_id), await on.evaluate(remit_id, Verdict.ALLOW)
    await eventually(lambda: on.last(ready), "approved")
    assert (await on.ask("emma", RevokeCommand, kind="remit", target=remit_id, reason="done")).status == "ok"
    assert await claim(on, ready, remit_id) == "remit_revoked"
    assert await _status(on, remit_id) == "revoked"
    assert (await on.read(waiting)).must(ActionRefused).data.reason is Reason.REVOKED
    assert (await on.ask("emma", RevokeCommand, kind="remit", target=remit_id, reason="done")).status == "ok"


async def test_a_row_alone_expires_nothing(on: Stage) -> None:
    action = await asked(on, await on.grant())
    await on.pool.execute("UPDATE control.pending SET expires_at = now() WHERE action_id = $1", action)
    await asyncio.sleep(1.0)  # three sweeps of two replicas
    assert await on.last(action) == "approval_requested"
    assert (await approve(on, "dana", action)).status == "ok"


async def test_an_approval_survives_the_death_of_every_replica(on: Stage) -> None:
    remit_id = await on.grant()
    action = await asked(on, remit_id)
    before = on.supervisor.pids("approval")
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    late = await on.evaluate(remit_id, Verdict.ASK, session=fresh_key())
    await eventually(lambda: set(on.supervisor.pids("approval")).isdisjoint(before))
    await on.supervisor.ready()
    assert (await approve(on, "dana", action)).status == "ok"
    await eventually(lambda: on.last(late), "approval_requested", within_s=40)


async def test_a_revoke_against_claims_leaves_no_claim_behind_its_answer(on: Stage) -> None:
    remit_id = await on.grant(max_calls=1000, grants=[Grant(type="tool_call", tool="bank", action="send_money")])
    actions = [await on.evaluate(remit_id, Verdict.ALLOW) for _ in range(3)]
    await eventually(lambda: on.last(actions[-1]), "approved")
    returned = asyncio.Event()
    after = Counter[str]()

    async def claims() -> None:
        for number in range(60):
            before = returned.is_set()
            result = await claim(on, f"{number:032x}", remit_id)
            after.update([result] if before else [])

    async def revoke() -> None:
        await asyncio.sleep(0.05)
        reply = await on.ask("emma", RevokeCommand, kind="remit", target=remit_id, reason="done")
        assert reply.status == "ok"
        returned.set()

    await asyncio.gather(*(claims() for _ in range(1)), revoke())
    assert set(after) <= {"remit_revoked"}
    assert await claim(on, actions[0], remit_id) == "remit_revoked"


async def test_an_unknown_outcome_is_resolved_once_through_the_executors_outbox(on: Stage) -> None:
    remit_id = await on.grant()
    action = await on.evaluate(remit_id, Verdict.ALLOW)
    await eventually(lambda: on.last(action), "approved")
    assert await claim(on, action, remit_id) == "claimed"
    await _executed_unknown(on, action)
    fields = {"action_id": action, "outcome": "succeeded", "finding": "the bank's log shows it"}
    assert (await on.ask("emma", ResolveCommand, **fields)).status == "forbidden"
    assert (await on.ask("otto", ResolveCommand, **fields)).status == "ok"
    assert (await on.ask("otto", ResolveCommand, **fields)).status == "decided"
    row = await on.pool.fetchrow("SELECT * FROM control.outbox WHERE subject_id = $1", action)
    assert row is not None
    assert (row["service"], row["event_type"], row["discriminator"]) == ("executor", "executed", "1:resolved")
    data = json.loads(row["draft"])["data"]
    assert (data["outcome"], "log shows it" in data["finding"], data["attempt"]) == ("succeeded", True, 1)


async def _executed_unknown(on: Stage, action: str) -> None:
    about = {name: getattr((await on.read(action)).must(ActionEvaluated).data, name) for name in f.COMMON}
    state = await on.read(action)
    tokenized = f.TOKENIZED.model_copy(update=about)
    state = await on.ledgers["tokens"].append(state, Draft(event=ActionTokenized, data=tokenized))
    started = f.STARTED.model_copy(update={**about, "jti": tokenized.jti})
    state = await on.ledgers["executor"].append(state, Draft(event=ActionStarted, data=started))
    unknown = f.EXECUTED.model_copy(update={**about, "outcome": Outcome.UNKNOWN, "result": None, "result_digest": None})
    await on.ledgers["executor"].append(state, Draft(event=ActionExecuted, data=unknown))
    await on.pool.execute("UPDATE control.execution SET state = 'unknown' WHERE action_id = $1", action)


@pytest.mark.parametrize(
    ("subject", "body", "status"),
    [
        ("human.deny", b"junk", "invalid"),
        ("human.deny", b"{}", "invalid"),
        ("human.ask", b"{}", "invalid"),
        (
            "human.deny",
            b'{"id_token":"x","idempotency_key":"key-00001","action_id":"%s"}' % (b"0" * 32),
            "login_needed",
        ),
    ],
)
async def test_who_does_not_prove_a_person_commands_nothing(on: Stage, subject: str, body: bytes, status: str) -> None:
    assert (await on.send(subject, body)).status == status


async def test_an_unanswered_approval_expires(tmp_path: Path) -> None:
    async with stage(tmp_path, REMIT_APPROVAL_TIMEOUT_S="1", REMIT_SWEEP_S="0.2") as quick:
        await quick.apply()
        action = await quick.evaluate(await quick.grant(), Verdict.ASK)
        await eventually(lambda: quick.last(action), "refused")
        state = await quick.read(action)
        refused, request = state.must(ActionRefused), state.must(ActionApprovalRequested)
        assert (refused.data.reason, refused.data.by) == (Reason.EXPIRED, None)
        assert request.expirytime is not None
        assert refused.time >= request.expirytime
        late = await approve(quick, "dana", action)
        assert (late.status, late.decision, late.decided_by) == ("decided", "refused", None)
        await eventually(lambda: quick.value("SELECT count(*) FROM control.pending"), 0)


async def test_no_token_ever_reaches_a_log(on: Stage) -> None:
    await approve(on, "dana", "0" * 32)
    logs = [path.read_text() for path in (on.environment.directory / "logs").glob("*.log")]
    assert any("command answered" in text for text in logs)
    assert not any("eyJ" in text for text in logs)

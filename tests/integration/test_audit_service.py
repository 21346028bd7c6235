"""The whole service against a real broker and a real Postgres: projection, receipts, checkpoints, proof, recovery."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from remit.ledger_chain import parse_checkpoint
from remit.reasons import Outcome, Reason, Verdict
from tests.support import factories as f
from tests.support.audit_stage import AuditStage, audit_stage
from tests.support.postgres import fresh_database, postgres
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(90)

DENIED = f.decision(Verdict.DENY, Reason.NO_GRANT)
RECEIPT = "SELECT receipt_seq FROM audit.actions_all WHERE action_id = $1"


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    async with postgres(tmp_path_factory.mktemp("pg")) as url:
        yield url


@pytest.fixture
async def stage(server: str, nats_url: str, keys: Path, tmp_path: Path) -> AsyncIterator[AuditStage]:
    async with fresh_database(server) as url, audit_stage(nats_url, url, keys, tmp_path) as stage:
        yield stage


async def row(stage: AuditStage, action_id: str) -> dict[str, Any]:
    found = await stage.database.fetchrow("SELECT * FROM audit.actions_all WHERE action_id = $1", action_id)
    return dict(found) if found else {}


async def test_an_executed_action_gets_its_row_its_receipt_and_all_telemetry(stage: AuditStage) -> None:
    async with stage.running():
        await stage.grant()
        state = await stage.action("pay", *f.EXECUTED_PATH)
        await eventually(lambda: stage.value(RECEIPT, state.action_id), 8)
        found = await row(stage, state.action_id)
        telemetry = ("agent_id", "human", "task", "remit_id", "tool", "resource_id", "scopes_requested", "scopes_granted",
                     "scopes_used", "verdict", "policy_version", "approval_status", "latency_ms", "total_ms",
                     "result_status", "redacted_paths")  # fmt: skip
        assert [name for name in telemetry if found[name] is None] == []
        assert (found["match"], found["terminal"], found["approver"]) == (
            "match",
            "executed",
            "https://idp.example|dana",
        )
        assert await stage.value("SELECT used FROM audit.grants") == 1
        receipt = json.loads(await stage.value("SELECT body FROM audit.audit_event WHERE type = 'audited'"))
        assert receipt["data"]["flags"] == []
        assert (receipt["data"]["first_seq"], receipt["data"]["last_seq"], receipt["data"]["events"]) == (1, 7, 7)


async def test_denied_and_refused_actions_get_exactly_one_receipt(stage: AuditStage) -> None:
    async with stage.running():
        denied = await stage.action("denied", "proposed", "evaluated", decision=DENIED, approvers=[])
        refused = await stage.action("refused", "proposed", "evaluated", "approval_requested", "refused")
        await eventually(lambda: stage.value("SELECT count(*) FROM audit.actions_all WHERE receipt_seq IS NOT NULL"), 2)
        assert (await row(stage, denied.action_id))["result_status"] == "blocked"
        assert (await row(stage, refused.action_id))["approval_status"] == "denied"
        await asyncio.sleep(1.2)  # Two more reconciliations: none of them may write again.
        assert await stage.value("SELECT count(*) FROM audit.audit_event WHERE type = 'audited'") == 2


async def test_doubt_waits_for_its_resolution_before_the_receipt(stage: AuditStage) -> None:
    async with stage.running():
        state = await stage.action("doubt", *f.EXECUTED_PATH, outcome=Outcome.UNKNOWN)
        await eventually(stage.projected, 7)
        await asyncio.sleep(1.2)
        assert await stage.value(RECEIPT, state.action_id) is None
        await stage.resolve(state, "doubt", "succeeded")
        await eventually(lambda: stage.value(RECEIPT, state.action_id), 9)
        assert (await row(stage, state.action_id))["outcome"] == "succeeded"


async def test_doubt_gets_its_receipt_when_the_window_closes(stage: AuditStage) -> None:
    async with stage.running(resolution_window_s=0):
        state = await stage.action("doubt", *f.EXECUTED_PATH, outcome=Outcome.UNKNOWN)
        await eventually(lambda: stage.value(RECEIPT, state.action_id), 8, within_s=20)
        receipt = json.loads(await stage.value("SELECT body FROM audit.audit_event WHERE type = 'audited'"))
        assert receipt["data"]["flags"] == ["outcome_unknown"]


async def test_receipts_forgotten_by_a_crash_are_written_after_the_restart(stage: AuditStage) -> None:
    state = await stage.action("first", *f.EXECUTED_PATH)
    async with stage.running():
        await eventually(lambda: stage.value(RECEIPT, state.action_id), 8)
    # As if the process had died between the commit of the batch and the receipt.
    other = await stage.action("second", "proposed", "evaluated", decision=DENIED, approvers=[])
    async with stage.running():
        await eventually(lambda: stage.value(RECEIPT, other.action_id), 11)


async def test_junk_is_kept_as_evidence_and_changes_nothing(stage: AuditStage) -> None:
    state = await stage.action("pay", "proposed")
    signed = state.chain[0].signed
    intake = stage.clients["intake"]
    for body, headers in ((b"junk", {}), (signed.body, signed.headers()), (b"{}", signed.headers())):
        await intake.request(signed.subject, body, headers=headers, timeout=5)
    async with stage.running():
        await eventually(stage.projected, 4)
        statuses = [r[0] for r in await stage.database.fetch("SELECT verify_status FROM audit.audit_event ORDER BY 1")]
        assert statuses == ["duplicate", "signature", "signature", "valid"]
        found = await row(stage, state.action_id)
        assert (found["version"], found["flags"]) == (1, ["evidence_duplicate", "evidence_signature"])


async def test_an_approval_change_is_signalled_after_commit_and_counted(stage: AuditStage) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    listener = await asyncpg.connect(stage.database_url)
    await listener.add_listener("remit_approvals", lambda *arguments: heard.put_nowait(str(arguments[3])))
    async with stage.running():
        await stage.action("ask", "proposed", "evaluated", "approval_requested")
        version = await asyncio.wait_for(heard.get(), 10)
        assert version == await stage.value("SELECT epoch || ':' || approvals_seq FROM audit.cursor")
    await listener.close()


async def test_the_heartbeat_goes_on_without_traffic(stage: AuditStage) -> None:
    async with stage.running():
        beat = "SELECT at FROM control.heartbeat WHERE service = 'audit'"
        await eventually(lambda: stage.value(f"SELECT ({beat}) IS NOT NULL"))
        first = await stage.value(beat)
        await eventually(lambda: stage.value(f"SELECT ({beat}) > $1", first))


async def test_a_standby_waits_healthy_and_takes_over_when_the_active_one_goes(stage: AuditStage) -> None:
    async with AsyncExitStack() as active, AsyncExitStack() as standby:
        await active.enter_async_context(stage.running(replica="audit-1"))
        await stage.action("one", "proposed")
        await eventually(stage.projected, 1)
        second = await standby.enter_async_context(stage.running(replica="audit-2"))
        assert second.probes.unready() == []
        await active.aclose()
        await stage.action("two", "proposed")
        await eventually(stage.projected, 2)


async def test_a_lost_database_connection_costs_nothing(stage: AuditStage) -> None:
    async with stage.running():
        await stage.action("one", "proposed")
        await eventually(stage.projected, 1)
        await stage.database.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'remit_audit'"
        )
        await stage.action("two", "proposed")
        await eventually(stage.projected, 2, within_s=30)


async def test_redelivered_messages_are_projected_once(stage: AuditStage) -> None:
    async with stage.running():
        await stage.action("one", *f.APPROVED_PATH)
        await eventually(stage.projected, 4)
    # As after a crash before the acknowledgements: everything is delivered again, and the cursor decides.
    await stage.clients["audit"].jetstream().reset_consumer("ACTIONS", "audit", seq=1)
    async with stage.running():
        await stage.action("two", "proposed")
        await eventually(stage.projected, 5)
        assert await stage.value("SELECT count(*) FROM audit.audit_event") == 5


async def test_checkpoints_are_written_outside_the_database_and_verified(stage: AuditStage) -> None:
    async with stage.running():
        await stage.grant()
        await stage.action("pay", *f.EXECUTED_PATH)
        await eventually(lambda: stage.value("SELECT verified_seq FROM audit.cursor"), 8, within_s=20)
        lines = (stage.checkpoints / "actions.jsonl").read_text().splitlines()
        kept = await stage.database.fetch("SELECT line FROM audit.checkpoint WHERE stream = 'ACTIONS' ORDER BY seq")
        assert [row["line"].strip() for row in kept] == lines
        assert parse_checkpoint(lines[-1]).seq == 8


async def test_actions_that_stand_still_are_driven_again(stage: AuditStage) -> None:
    driven: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()

    async def hear(msg: Any) -> None:
        driven.put_nowait((msg.subject, msg.data))

    await stage.clients["policy"].subscribe("redrive.policy", cb=hear)
    await stage.clients["policy"].flush()
    state = await stage.action("stuck", "proposed")
    async with stage.running(action_sla_s=1.0):
        assert await asyncio.wait_for(driven.get(), 20) == ("redrive.policy", state.action_id.encode())


async def test_dead_letters_are_kept_for_people(stage: AuditStage) -> None:
    letter = {
        "v": 1,
        "service": "intake",
        "code": "bad_signature",
        "subject": "in.propose.a1",
        "seq": 3,
        "stream": "INTAKE",
    }
    await stage.clients["intake"].request("dlq.intake", json.dumps(letter).encode(), timeout=5)
    async with stage.running():
        await eventually(lambda: stage.value("SELECT code || ' ' || agent FROM audit.rejected"), "bad_signature a1")

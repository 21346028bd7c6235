"""A batch becomes rows: what is believed is folded, what is not is kept, and memory can be rebuilt from the rows at any point."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remit.canonical import digest
from remit.ledger_chain import Evidence, admit, genesis
from remit.projection.event_columns import addressed_to, event_columns, missing_content
from remit.projection.shapes import call_shape, grant_shape, task_shape
from remit.projection.tracking import is_closed
from services.audit.project import Admitted, KeptRow, fold_actions, fold_remits, restore, restore_remit
from tests.support import factories as f
from tests.support.ledger_stream import StreamWriter, chain_heads, evidence, rows_of

if TYPE_CHECKING:
    from remit.fold import RemitState
    from remit.projection.tracking import Tracked


def nothing_marked(_: str) -> tuple[str, ...]:
    return ()


def admitted(writer: StreamWriter) -> list[Admitted]:
    found = list[Admitted]()
    for message in writer.messages:
        held = evidence(message)
        found.append(Admitted(held, *admit(held, f.TRUST)))
    return found


def mixed() -> StreamWriter:
    """Two actions, one finished with its receipt, and every kind of junk between them."""
    writer = StreamWriter()
    open_action = writer.action("open", "proposed", "evaluated")
    writer.raw(f"action.{open_action.action_id}.approved", b"junk")
    writer.raw("action.no-id.approved", b"junk")
    writer.raw("nonsense", b"junk")
    writer.audited(writer.action("done", *f.EXECUTED_PATH), "done")
    replayed = writer.messages[0]
    writer.raw(replayed.subject, replayed.body, dict(replayed.headers))
    return writer


def fold(items: list[Admitted], memory: dict[str, Tracked], head: bytes) -> Any:
    return fold_actions(items, head=head, memory=memory, sensitive=nothing_marked)


def test_statuses_and_chain_are_those_the_verifier_expects() -> None:
    writer = mixed()
    batch = fold(admitted(writer), {}, genesis("ACTIONS"))
    assert batch.statuses == [row.verify_status for row in rows_of(writer)]
    assert [event["chain_hash"] for event in batch.events] == chain_heads(writer.messages, "ACTIONS")
    assert (batch.first_seq, batch.last_seq, batch.head) == (1, len(writer.messages), batch.events[-1]["chain_hash"])


def test_rows_agents_and_uses_of_a_batch() -> None:
    batch = fold(admitted(mixed()), {}, genesis("ACTIONS"))
    rows = {row["last_type"]: row for row in batch.rows}
    assert rows.keys() == {"evaluated", "audited"}
    assert rows["evaluated"]["flags"] == ["evidence_duplicate", "evidence_signature"]
    assert [use[:2] for use in batch.uses] == [(f.REMIT.remit_id, 1)]
    assert {seen[:3] for seen in batch.seen} == {(f.AGENT.id, "bookkeeper", f.REMIT.remit_id)}
    assert batch.approvals_changed


def test_junk_before_a_proposal_makes_no_row() -> None:
    writer = StreamWriter()
    writer.raw(f"action.{f.ACTION_ID}.approved", b"junk")
    batch = fold(admitted(writer), {}, genesis("ACTIONS"))
    assert (batch.rows, batch.statuses, batch.approvals_changed) == ([], ["signature"], False)
    assert batch.events[0]["action_id"] == f.ACTION_ID


@settings(max_examples=30, deadline=None)
@given(cut=st.integers(1, 13), forget=st.booleans())
def test_any_cut_and_any_loss_of_memory_give_the_same_rows(cut: int, forget: bool) -> None:
    items = admitted(mixed())
    memory: dict[str, Tracked] = {}
    whole = fold(items, {}, genesis("ACTIONS"))
    first = fold(items[:cut], memory, genesis("ACTIONS"))
    if forget:
        kept: dict[str, list[KeptRow]] = {}
        for item, event in zip(items[:cut], first.events, strict=True):
            action_id = addressed_to("ACTIONS", item.evidence.subject, item.recorded)
            if action_id is not None:
                kept.setdefault(action_id, []).append(
                    KeptRow(item.evidence, event["verify_status"], event["chain_hash"])
                )
        memory = {action_id: restore(action_id, rows, nothing_marked) for action_id, rows in kept.items()}
    second = fold(items[cut:], memory, first.head)
    assert [*first.events, *second.events] == whole.events
    final = {row["action_id"]: row for row in (*first.rows, *second.rows)}
    # The rows of the first batch are computed late here, so the newest of each action counts.
    assert {**final, **{row["action_id"]: row for row in second.rows}} == {row["action_id"]: row for row in whole.rows}


def test_a_closed_action_may_be_forgotten() -> None:
    memory: dict[str, Tracked] = {}
    fold(admitted(mixed()), memory, genesis("ACTIONS"))
    assert sorted(is_closed(tracked) for tracked in memory.values() if tracked.state.chain) == [False, True]


def test_remits_fold_into_rows_and_grants() -> None:
    writer = StreamWriter("REMITS")
    writer.remit("granted", "amended", "exhausted", "revoked")
    writer.raw(f"remit.{f.REMIT.remit_id}.revoked", b"junk")
    writer.raw("remit.no-id.revoked", b"junk")
    writer.add(f.record("remit.granted", place=f.Place(n=9)))
    memory: dict[str, RemitState] = {}
    batch = fold_remits(admitted(writer), head=genesis("REMITS"), memory=memory)
    assert batch.statuses == ["valid"] * 4 + ["signature", "signature", "order"]
    statuses = [(row.get("status"), len(grants)) for row, grants in batch.changes]
    assert statuses == [("active", 1), ("active", 1), ("exhausted", 0), ("revoked", 0)]
    granted, grants = batch.changes[0]
    assert (granted["granted_by"], granted["task_shape"], granted["granted_seq"]) == (
        "https://idp.example|emma", task_shape(f.REMIT.task), 1,
    )  # fmt: skip
    assert (grants[0]["grant_no"], grants[0]["max_calls"]) == (1, 1)
    assert grants[0]["expires_at"] == f.REMIT.expires_at.isoformat()
    kept = [KeptRow(i.evidence, s, b"") for i, s in zip(admitted(writer), batch.statuses, strict=True)]
    assert restore_remit(f.REMIT.remit_id, kept).status == memory[f.REMIT.remit_id].status == "revoked"


@pytest.mark.parametrize("kind", [*f.EXAMPLES])
def test_every_event_has_a_line_for_timelines(kind: str) -> None:
    stream = "ACTIONS" if kind.startswith("action.") else "REMITS"
    columns = event_columns(stream, "", f.record(kind))
    assert (columns["type"], columns["remit_id"]) == (kind.split(".")[1], f.REMIT.remit_id)
    assert columns["detail"]
    if stream == "ACTIONS":
        assert (columns["agent_id"], columns["tool"], columns["action"]) == (f.AGENT.id, "bank", "send_money")


@pytest.mark.parametrize(
    ("stream", "subject", "expected"),
    [
        ("ACTIONS", f"action.{f.ACTION_ID}.approved", {"action_id": f.ACTION_ID}),
        ("ACTIONS", f"action.{f.ACTION_ID}", {}),
        ("ACTIONS", "action.x.approved", {}),
        ("REMITS", f"remit.{f.REMIT.remit_id}.revoked", {"remit_id": f.REMIT.remit_id}),
        ("REMITS", "remit.x.revoked", {}),
    ],
)
def test_junk_is_filed_under_a_plain_id_only(stream: str, subject: str, expected: dict[str, str]) -> None:
    assert event_columns(stream, subject, None) == expected


NOBODY = f.EVALUATED.principal.model_copy(update={"human": None})
NAMELESS = f.EVALUATED.principal.model_copy(update={"agent": f.AGENT.model_copy(update={"id": ""})})
TOOLLESS = f.EVALUATED.principal.model_copy(update={"tool": f.TOOL.model_copy(update={"resource": ""})})
OTHER = f.EVALUATED.action.model_copy(update={"name": "mail.send"})


@pytest.mark.parametrize(
    ("kind", "changes", "missing"),
    [
        ("evaluated", {}, []),
        ("proposed", {}, []),
        ("evaluated", {"principal": NOBODY}, ["missing_subject"]),
        ("evaluated", {"principal": NOBODY, "decision": f.decision(reason=f.Reason.UNKNOWN_REMIT)}, []),
        ("tokenized", {"principal": NOBODY}, ["missing_subject"]),
        ("audited", {"principal": NOBODY}, []),
        ("evaluated", {"principal": NAMELESS}, ["missing_agent"]),
        ("evaluated", {"principal": TOOLLESS}, ["missing_tool"]),
        ("evaluated", {"action": OTHER}, ["missing_action"]),
        ("evaluated", {"txn": "0" * 32}, ["missing_correlation"]),
        ("revoked", {"cause": ""}, ["missing_cause"]),
    ],
)
def test_missing_minimum_content_is_flagged(kind: str, changes: dict[str, Any], missing: list[str]) -> None:
    data = f.EXAMPLES[f"action.{kind}"].model_copy(update=changes)
    assert missing_content(f.record(f"action.{kind}", data).event) == missing  # type: ignore[arg-type]  # they are action events


def test_a_shape_forgets_values_and_keeps_structure() -> None:
    one = call_shape("bank", "send", {"to": "UK1", "amount": 1, "tags": ["a", "b"], "x": None, "ok": True})
    same = call_shape("bank", "send", {"to": "UK2", "amount": 2.5, "tags": ["c"], "x": None, "ok": False})
    assert one == same
    assert one != call_shape("bank", "send", {"to": "UK1", "amount": "1", "tags": ["a"], "x": None, "ok": True})
    assert grant_shape("bank", "send", None) != grant_shape("bank", "send", {})
    assert grant_shape("b", "s", {"maximum": 1}) == grant_shape("b", "s", {"maximum": 9})


def test_tasks_of_one_kind_share_a_shape() -> None:
    assert task_shape('Pay bill "december" to UK123') == task_shape("pay  bill 'january'\nto DE99")
    assert task_shape("Pay the bill") != task_shape("Read the bill")
    assert task_shape("x").startswith(digest("x")[:8])


def test_evidence_without_a_place_in_the_contract_is_still_chained() -> None:
    held = Evidence(seq=1, subject="nonsense", body=b"", kid=None, signature=None, at=f.NOW)
    batch = fold([Admitted(held, *admit(held, f.TRUST))], {}, genesis("ACTIONS"))
    assert (batch.statuses, len(batch.events), batch.touched) == (["signature"], 1, {})

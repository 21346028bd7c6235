"""The verifier finds every kind of tampering and names the first bad row; an honest ledger has no finding."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from remit.ledger_chain import Checkpoint, Evidence, merkle_root, parse_checkpoint, sign_checkpoint, spelled
from remit.ledger_models import EVENT_COLUMNS
from remit.ledger_proof import LedgerRow, Proof, Verifier
from remit.reasons import Outcome, Reason, Verdict
from tests.support import factories as f
from tests.support.ledger_stream import StreamWriter, chain_heads, data_for, evidence, rechained, rows_of

if TYPE_CHECKING:
    from collections.abc import Sequence

OTHER_TOOL = f.TOOL.model_copy(update={"name": "mail"})
CHECKPOINT_KEY, OLD_KEY = f.SIGNERS["audit"].key, f.SIGNERS["intake"].key
CHECKPOINT_KEYS = {"checkpoint-1": CHECKPOINT_KEY.verify_key, "checkpoint-0": OLD_KEY.verify_key}


def stream() -> StreamWriter:
    writer = StreamWriter()
    for key in ("one", "two"):
        writer.audited(writer.action(key, *f.EXECUTED_PATH), key)
    writer.action("open", "proposed", "evaluated")
    return writer


def proof(rows: Sequence[LedgerRow], **more: Any) -> Proof:
    return fed(rows, **more).finish()


def fed(rows: Sequence[LedgerRow] = (), **more: Any) -> Verifier:
    keys = more.pop("checkpoint_keys", CHECKPOINT_KEYS)
    verifier = Verifier(more.pop("stream", "ACTIONS"), f.TRUST, checkpoint_keys=keys, **more)
    for row in rows:
        verifier.add(row)
    return verifier


def first(rows: Sequence[LedgerRow], **more: Any) -> tuple[int, str]:
    found = proof(rows, **more).findings
    assert found, "nothing was found"
    return found[0].seq, found[0].code


def codes(rows: Sequence[LedgerRow], **more: Any) -> set[str]:
    return {finding.code for finding in proof(rows, **more).findings}


def edited(row: LedgerRow, **changes: Any) -> LedgerRow:
    return replace(row, evidence=replace(row.evidence, **changes))


def checkpoint(writer: StreamWriter, seq: int, previous: int = 0, **changes: Any) -> Checkpoint:
    records = [evidence(m).record for m in writer.messages[previous:seq]]
    made = Checkpoint(
        stream=writer.stream,
        seq=seq,
        chain_head=spelled(chain_heads(writer.messages, writer.stream)[seq - 1]),
        previous_seq=previous,
        merkle_root=spelled(merkle_root(records)),
        at=f.NOW,
        kid="checkpoint-1",
    )
    made = replace(made, **changes)
    return replace(made, signature=sign_checkpoint(made, CHECKPOINT_KEY))


def test_an_honest_ledger_is_whole() -> None:
    found = proof(rows_of(stream()))
    assert found.findings == []
    assert (found.rows, found.actions, found.receipts, found.open_actions) == (18, 3, 2, 1)
    assert found.statuses == {"valid": 18}


def test_an_honest_remit_ledger_is_whole() -> None:
    writer = StreamWriter("REMITS")
    writer.remit("granted", "amended", "exhausted", "revoked")
    assert proof(rows_of(writer), stream="REMITS").is_whole


def test_junk_is_evidence_and_no_break() -> None:
    writer = stream()
    writer.raw(f"action.{f.ACTION_ID}.approved", b"junk")
    replayed = writer.messages[0]
    writer.raw(replayed.subject, replayed.body, dict(replayed.headers))
    found = proof(rows_of(writer))
    assert found.is_whole
    assert found.statuses == {"valid": 18, "signature": 1, "duplicate": 1}


def test_an_edited_body_is_named() -> None:
    rows = rows_of(stream())
    rows[4] = edited(rows[4], body=rows[4].evidence.body.replace(b"bookkeeper", b"bookmaker!"))
    assert first(rows) == (5, "chain_hash")
    assert "verdict" in codes(rows)


def test_an_edit_with_a_fitting_chain_fails_its_signature() -> None:
    rows = rows_of(stream())
    rows[4] = edited(rows[4], body=rows[4].evidence.body.replace(b"bookkeeper", b"bookmaker!"))
    assert first(rechained(rows)) == (5, "verdict")


@pytest.mark.parametrize("column", EVENT_COLUMNS)
@pytest.mark.parametrize("value", ["forged", None])
def test_an_edited_column_is_named(column: str, value: Any) -> None:
    rows = rows_of(stream())
    rows[2] = replace(rows[2], columns={**rows[2].columns, column: value})
    [finding] = proof(rows).findings
    assert (finding.seq, finding.code, f"column {column} " in finding.detail) == (3, "column", True)


def test_a_column_of_junk_is_named() -> None:
    writer = stream()
    writer.raw(f"action.{f.ACTION_ID}.approved", b"junk")
    rows = rows_of(writer)
    rows[-1] = replace(rows[-1], columns={**rows[-1].columns, "human": "https://idp.example|dana"})
    assert first(rows) == (19, "column")


def test_an_edited_time_is_named() -> None:
    rows = rows_of(stream())
    rows[3] = edited(rows[3], at=f.NOW)
    assert first(rows) == (4, "chain_hash")


def test_an_edited_status_is_named() -> None:
    rows = rows_of(stream())
    rows[3] = replace(rows[3], verify_status="signature")
    assert first(rows) == (4, "verdict")


@pytest.mark.parametrize(
    "change", [{"kid": None}, {"signature": None}, {"kid": "executor-2026-11"}, {"subject": "action.x.approved"}]
)
def test_an_edited_proof_of_origin_is_named(change: dict[str, Any]) -> None:
    rows = rows_of(stream())
    rows[3] = edited(rows[3], **change)
    assert first(rows) == (4, "chain_hash")


def test_a_deleted_row_is_named() -> None:
    rows = rows_of(stream())
    del rows[6]
    assert first(rows) == (7, "gap")


def test_a_deleted_row_hidden_by_renumbering_is_named() -> None:
    rows = rows_of(stream())
    del rows[6]
    moved = [edited(row, seq=n) for n, row in enumerate(rows, 1)]
    assert first(moved) == (7, "chain_hash")
    assert first(rechained(moved))[0] == 7


def test_an_inserted_row_is_named() -> None:
    rows = rows_of(stream())
    rows.insert(6, replace(edited(rows[5], seq=7)))
    moved = [edited(row, seq=n) for n, row in enumerate(rows, 1)]
    assert first(moved) == (7, "chain_hash")
    # The thief who recomputes the chain still has to explain a second event of the same id.
    assert first(rechained(moved)) == (7, "verdict")


def test_swapped_rows_are_named() -> None:
    rows = rows_of(stream())
    rows[2], rows[3] = edited(rows[3], seq=3), edited(rows[2], seq=4)
    assert first(rows) == (3, "chain_hash")
    assert first(rechained(rows)) == (3, "verdict")


def test_rows_out_of_order_are_named() -> None:
    rows = rows_of(stream())
    rows[2], rows[3] = rows[3], rows[2]
    assert first(rows) == (3, "gap")
    assert "order" in codes(rows)


def test_a_cut_tail_contradicts_a_checkpoint() -> None:
    writer = stream()
    rows = rows_of(writer)
    assert proof(rows[:-3]).is_whole, "without a checkpoint nothing can be seen"
    assert first(rows[:-3], outside=[checkpoint(writer, 18)]) == (16, "truncated")


def test_a_cut_tail_contradicts_the_cursor() -> None:
    rows = rows_of(stream())
    for rows_left, expected in ((15, (16, "truncated")), (18, None)):
        verifier = fed(rows[:rows_left])
        verifier.expect_end(18, rows[-1].chain_hash)
        found = verifier.finish().findings
        assert ((found[0].seq, found[0].code) if found else None) == expected


def test_a_cursor_behind_or_beside_the_rows_is_named() -> None:
    rows = rows_of(stream())
    for cursor, head, expected in ((17, rows[16].chain_hash, (18, "foreign")), (18, b"x" * 32, (18, "chain_hash"))):
        verifier = fed(rows)
        verifier.expect_end(cursor, head)
        assert [(x.seq, x.code) for x in verifier.finish().findings] == [expected]


def test_a_rewritten_ledger_contradicts_a_checkpoint() -> None:
    writer, other = stream(), StreamWriter()
    other.audited(other.action("else", *f.EXECUTED_PATH), "else")
    other.audited(other.action("two", *f.EXECUTED_PATH), "two")
    other.action("open", "proposed", "evaluated")
    assert proof(rows_of(other)).is_whole
    assert first(rows_of(other), outside=[checkpoint(writer, 9)]) == (9, "checkpoint")


def test_checkpoints_of_an_honest_ledger_hold() -> None:
    writer = stream()
    marks = [checkpoint(writer, 7), checkpoint(writer, 12, 7), checkpoint(writer, 18, 12)]
    found = proof(rows_of(writer), outside=marks[:2], inside=marks)
    assert (found.findings, found.checkpoints, found.anchored_to) == ([], 3, 12)


def test_rows_alone_are_not_anchored() -> None:
    writer = stream()
    marks = [checkpoint(writer, 18)]
    assert proof(rows_of(writer), inside=marks).anchored_to is None
    assert proof(rows_of(writer), outside=[replace(marks[0], kid="nobody")]).anchored_to is None
    assert proof(rows_of(writer), outside=marks).anchored_to == 18
    verifier = fed(rows_of(writer))
    verifier.anchor()
    assert verifier.finish().anchored_to == 18


def test_a_checkpoint_in_the_middle_may_not_be_missing() -> None:
    writer = stream()
    marks = [checkpoint(writer, 7), checkpoint(writer, 18, 12)]
    [finding] = proof(rows_of(writer), inside=marks).findings
    assert (finding.seq, finding.code, "at 12" in finding.detail) == (18, "checkpoint", True)


def test_checkpoints_of_a_retired_key_hold() -> None:
    writer = stream()
    old = checkpoint(writer, 7, kid="checkpoint-0")
    old = replace(old, signature=sign_checkpoint(old, OLD_KEY))
    assert proof(rows_of(writer), outside=[old, checkpoint(writer, 18, 7)]).is_whole


@pytest.mark.parametrize("kid", ["checkpoint-0", "nobody"])
def test_a_checkpoint_that_names_another_or_an_unknown_key_is_named(kid: str) -> None:
    writer = stream()
    assert first(rows_of(writer), outside=[checkpoint(writer, 7, kid=kid)]) == (7, "checkpoint")


def test_a_replaced_checkpoint_is_named() -> None:
    writer = stream()
    forged = replace(checkpoint(writer, 7), at=f.NOW.replace(year=2027))
    assert first(rows_of(writer), outside=[forged]) == (7, "checkpoint")


def test_a_checkpoint_with_a_foreign_root_is_named() -> None:
    writer = stream()
    assert first(rows_of(writer), outside=[checkpoint(writer, 7, merkle_root=f.DIGEST)]) == (7, "checkpoint")


def test_a_checkpoint_without_a_key_to_check_it_is_no_proof() -> None:
    writer = stream()
    found = proof(rows_of(writer)[:1], checkpoint_keys={}, outside=[checkpoint(writer, 1)])
    assert [x.code for x in found.findings] == ["checkpoint"]


def test_a_missing_row_at_a_checkpoint_is_found_as_missing() -> None:
    writer = stream()
    rows = rows_of(writer)
    del rows[6]
    found = proof(rows, outside=[checkpoint(writer, 7)])
    assert [(x.seq, x.code) for x in found.findings][:2] == [(7, "gap"), (8, "chain_hash")]
    assert "checkpoint" not in {x.code for x in found.findings}


def test_a_checkpoint_line_survives_its_file() -> None:
    made = checkpoint(stream(), 7)
    assert parse_checkpoint(made.line()) == made


def test_a_call_without_a_token_is_not_folded() -> None:
    writer = StreamWriter()
    state = writer.action("free", *f.APPROVED_PATH)
    place = f.Place(n=5, prev=state.head)
    for kind in ("started", "executed"):
        data = data_for(kind, state.action_id, "free")
        writer.add(f.record(f"action.{kind}", data, place=place, subject=state.action_id))
    found = proof(rows_of(writer))
    assert found.statuses == {"valid": 4, "illegal": 2}


def test_nothing_follows_a_receipt() -> None:
    writer = StreamWriter()
    state = writer.audited(writer.action("done", *f.EXECUTED_PATH), "done")
    place = f.Place(n=9, prev=state.head)
    data = data_for("executed", state.action_id, "done", outcome=Outcome.FAILED)
    writer.add(f.record("action.executed", data, place=place, subject=state.action_id, discriminator="2"))
    rows = rows_of(writer)
    assert proof(rows).statuses["closed"] == 1
    rows[-1] = replace(rows[-1], verify_status="valid")
    assert first(rows) == (9, "verdict")


@pytest.mark.parametrize("field", ["terminal", "events", "first_seq", "last_seq", "action_head", "ledger_head"])
def test_a_receipt_that_says_something_else_is_named(field: str) -> None:
    writer = StreamWriter()
    state = writer.action("done", *f.EXECUTED_PATH)
    wrong = {"terminal": "refused", "action_head": f.DIGEST, "ledger_head": f.DIGEST}
    writer.audited(state, "done", **{field: wrong.get(field, 99)})
    assert first(rows_of(writer)) == (8, "receipt")


def test_a_denied_action_awaits_its_receipt() -> None:
    writer = StreamWriter()
    state = writer.action("no", "proposed")
    denied = data_for("evaluated", state.action_id, "no", decision=f.decision(Verdict.DENY, Reason.NO_GRANT))
    writer.grow(state, "evaluated", "no", data=denied)
    assert proof(rows_of(writer)).awaiting_receipt == 1


def test_everything_is_counted_though_not_everything_is_kept() -> None:
    rows = [LedgerRow(evidence=Evidence(seq=n, subject="x", body=b"", kid=None, signature=None, at=f.NOW),
                      verify_status="signature", chain_hash=b"", columns={}) for n in range(1, 1_202)]  # fmt: skip
    found = proof(rows)
    assert (found.finding_count > 1_000, len(found.findings)) == (True, 1_000)


def test_a_note_of_another_copy_counts() -> None:
    verifier = fed()
    verifier.note(3, "foreign", "the stream holds another message")
    assert not verifier.finish().is_whole

"""The projector's own side of the chain: contiguity, receipts, checkpoints."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.fold import ActionState
from remit.ledger_chain import genesis, merkle_root, spelled
from remit.projection.encoding import to_json
from remit.projection.fields import instant
from remit.projection.tracking import Tracked
from remit.reasons import Outcome
from services.audit.chain import (
    TamperError,
    next_missing,
    receipt,
    receipt_flags,
    signed_checkpoint,
    verified_checkpoint,
)
from services.audit.reconciler import TURN, Standing, redrives
from tests.support import factories as f
from tests.support.ledger_stream import StreamWriter, chain_heads, data_for, evidence

Links = list[tuple[int, bytes, bytes]]


@given(st.integers(0, 50), st.lists(st.integers(1, 60), unique=True))
def test_a_hole_is_the_first_sequence_that_is_left_out(last: int, numbers: list[int]) -> None:
    found = next_missing(last, sorted(n for n in numbers if n > last))
    expected = next(n for n in range(last + 1, 1_000) if n not in numbers)
    beyond = [n for n in numbers if n > expected]
    assert found == (expected if beyond else None)


def links(writer: StreamWriter) -> Links:
    held = [evidence(message) for message in writer.messages]
    return [(e.seq, e.record, h) for e, h in zip(held, chain_heads(writer.messages, writer.stream), strict=True)]


def stream() -> StreamWriter:
    writer = StreamWriter()
    writer.action("pay", *f.EXECUTED_PATH)
    return writer


def make(rows: Links, previous: tuple[int, bytes] | None = None) -> Any:
    return verified_checkpoint(
        previous or (0, genesis("ACTIONS")), rows, stream="ACTIONS", at=f.NOW, kid="checkpoint-1"
    )


def test_a_checkpoint_states_the_head_and_the_root_of_what_is_new() -> None:
    rows = links(stream())
    first = make(rows[:4])
    second = make(rows[4:], (4, rows[3][2]))
    assert (first.seq, first.chain_head, second.seq, second.previous_seq) == (4, spelled(rows[3][2]), 7, 4)
    assert second.merkle_root == spelled(merkle_root([record for _, record, _ in rows[4:]]))


def test_no_checkpoint_over_rows_that_do_not_hold() -> None:
    rows = links(stream())
    with pytest.raises(TamperError, match="row 3 is missing"):
        make([*rows[:2], *rows[3:]])
    rows[4] = (5, b"x" * 32, rows[4][2])
    with pytest.raises(TamperError, match="row 5 is not what was chained"):
        make(rows)


def test_a_signed_checkpoint_is_believed() -> None:
    signed = signed_checkpoint(make(links(stream())), f.SIGNERS["audit"].key)
    assert signed.is_signed_by(f.SIGNERS["audit"].key.verify_key)


def tracked(*kinds: str, **changes: Any) -> Tracked:
    writer = StreamWriter()
    state = writer.action("pay", *kinds[:-1])
    state = writer.grow(state, kinds[-1], "pay", data=data_for(kinds[-1], state.action_id, "pay", **changes))
    return Tracked(state=state, link=chain_heads(writer.messages, "ACTIONS")[-1])


def test_a_receipt_names_range_and_heads() -> None:
    done = tracked(*f.EXECUTED_PATH)
    found = receipt(done)
    assert (found.terminal, found.events, found.first_seq, found.last_seq) == ("executed", 7, 1, 7)
    assert (found.action_head, found.ledger_head) == (done.state.head, spelled(done.link))
    assert found.txn == done.state.action_id


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({}, []),
        ({"outcome": Outcome.UNKNOWN}, ["outcome_unknown"]),
        ({"effect_matches_decision": False}, ["effect_differs"]),
    ],
)
def test_a_receipt_flags_doubt_and_difference(changes: dict[str, Any], flags: list[str]) -> None:
    assert receipt_flags(tracked(*f.EXECUTED_PATH, **changes)) == flags


def test_a_receipt_flags_evidence_and_unnamed_sinks() -> None:
    asked = tracked("proposed", "evaluated", unnamed_sinks=["recipient"])
    assert receipt_flags(replace(asked, flags={"evidence_kid"})) == ["evidence_kid", "unnamed_sinks"]


def test_an_unfinished_action_has_no_receipt() -> None:
    for unfinished in (tracked("proposed", "evaluated"), Tracked(state=ActionState(f.ACTION_ID))):
        with pytest.raises(LookupError):
            receipt(unfinished)


def standing(last_type: str, age_s: float, expires_in_s: float | None = None) -> Standing:
    expires = None if expires_in_s is None else f.NOW + timedelta(seconds=expires_in_s)
    return Standing(
        action_id="a" * 32, last_type=last_type, last_event_at=f.NOW - timedelta(seconds=age_s), expires_at=expires
    )


@pytest.mark.parametrize("last_type", sorted(TURN))
def test_an_overdue_action_is_driven_by_whose_turn_it_is(last_type: str) -> None:
    sla = timedelta(seconds=60)
    assert redrives([standing(last_type, 61)], now=f.NOW, sla=sla) == [(TURN[last_type], "a" * 32)]
    assert redrives([standing(last_type, 59)], now=f.NOW, sla=sla) == []


def test_an_open_approval_is_overdue_after_its_expiry_only() -> None:
    sla = timedelta(seconds=60)
    assert redrives([standing("approval_requested", 600, 5)], now=f.NOW, sla=sla) == []
    assert redrives([standing("approval_requested", 600, -61)], now=f.NOW, sla=sla) == [("approval", "a" * 32)]


def test_a_finished_action_is_nobody_s_turn() -> None:
    assert redrives([standing("executed", 600)], now=f.NOW, sla=timedelta(0)) == []


def test_json_for_postgres_holds_no_nul_and_any_number() -> None:
    assert to_json({"a": "x\x00y"}) == '{"a":"x\\ufffdy"}'
    assert to_json({"a": 10**30}) == '{"a": 1000000000000000000000000000000}'


def test_a_time_outside_the_calendar_is_no_time() -> None:
    edge = f.NOW.replace(year=1, month=1, day=1, hour=0, tzinfo=f.NOW.astimezone().tzinfo)
    assert instant(f.NOW) == f.NOW
    eastern = f.datetime.fromisoformat("0001-01-01T00:00:00+14:00")
    assert (instant(eastern), instant(edge) is not None) == (None, True)

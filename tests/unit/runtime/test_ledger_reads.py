"""Reading an action: junk never blocks it, what may matter is waited for, and an unsigned header can do no harm."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from remit.canonical import b64url
from remit.envelope import Recorded, Signed, pack_chain
from remit.events import ActionEvaluated, ActionProposed, ActionRefused
from remit.fold import ActionState, could_follow
from remit.runtime import patience
from remit.runtime.bus import NotUnderstoodError, parse_headers
from remit.runtime.ledger import Draft, Ledger, OversizeError
from remit.runtime.telemetry import Telemetry
from tests.support import factories
from tests.support.factories import ACTION_ID, APPROVED_PATH, SIGNERS, TRUST, action_until, grow
from tests.unit.runtime.memory_bus import MemoryBus

EVALUATED_SUBJECT = f"action.{ACTION_ID}.evaluated"


def stream(*kinds: str) -> MemoryBus:
    bus = MemoryBus()
    for recorded in action_until(*kinds).chain:
        bus.put(recorded)
    return bus


def ledger(bus: MemoryBus, service: str = "policy", **trust: Any) -> Ledger:
    signer = SIGNERS[service]
    return Ledger(bus=bus, signer=signer, trust={**TRUST, **trust}, tenant="default", telemetry=Telemetry("t"))


def unknown_kid(recorded: Recorded) -> Recorded:
    return replace(recorded, signed=replace(recorded.signed, kid="policy-next"))


async def test_read_knows_when_the_broker_stored_each_event() -> None:
    bus = stream("proposed", "evaluated")
    state = await ledger(bus).read(ACTION_ID)
    assert [r.stored_at for r in state.chain] == [s.time for s in bus.stored]


async def test_successor_by_an_unknown_kid_is_waited_for() -> None:
    bus = stream("proposed")
    bus.put(unknown_kid(action_until("proposed", "evaluated").chain[-1]))
    with pytest.raises(NotUnderstoodError):
        await ledger(bus).read(ACTION_ID)


async def test_unknown_kid_on_a_type_that_may_not_follow_is_junk() -> None:
    bus = stream("proposed", "evaluated", "approval_requested")
    bus.put(unknown_kid(action_until("proposed", "evaluated").chain[-1]))
    state = await ledger(bus).read(ACTION_ID)
    assert (len(state.chain), state.last_seq) == (3, 4)


@pytest.mark.parametrize("verify_chain", [True, False])
@pytest.mark.parametrize("damage", ["signature", "body", "spelling", "kid"])
async def test_damaged_chain_header_costs_a_read_and_never_the_event(damage: str, verify_chain: bool) -> None:
    bus = stream("proposed", "evaluated")
    state = action_until("proposed", "evaluated")
    short, kid, signature, body = pack_chain(state.chain[:1]).split(":")
    header = {
        "signature": f"{short}:{kid}:{'A' * 86}:{body}",
        "body": f"{short}:{kid}:{signature}:{b64url(b'{}')}",
        "spelling": f"{short}:{kid}:{signature}",
        "kid": f"{short}:nobody:{signature}:{body}",
    }[damage]
    current: Signed = state.chain[-1].signed
    built = await ledger(bus).state_at(current, seq=2, chain_header=header, verify_chain=verify_chain)
    assert built is not None
    assert built.head == state.head


async def test_consumed_message_carries_its_time_and_predecessors_none() -> None:
    state = action_until("proposed", "evaluated")
    built = await ledger(MemoryBus()).state_at(
        state.chain[-1].signed,
        seq=2,
        chain_header=pack_chain(state.chain[:1]),
        verify_chain=True,
        stored_at=factories.NOW,
    )
    assert built is not None
    assert [r.stored_at for r in built.chain] == [None, factories.NOW]


async def test_event_that_does_not_fit_is_never_sent() -> None:
    bus = MemoryBus()
    large = factories.PROPOSED.model_copy(update={"proposal": '"' * 33_000})
    with pytest.raises(OversizeError):
        await ledger(bus, "intake").append(ActionState(action_id=ACTION_ID), Draft(event=ActionProposed, data=large))
    assert bus.stored == []


async def test_large_predecessors_stay_out_of_the_message() -> None:
    bus = MemoryBus()
    large = factories.PROPOSED.model_copy(update={"proposal": "x" * 45_000})
    state = await ledger(bus, "intake").append(
        ActionState(action_id=ACTION_ID), Draft(event=ActionProposed, data=large)
    )
    await ledger(bus).append(state, Draft(event=ActionEvaluated, data=factories.EVALUATED))
    assert "Remit-Chain" not in bus.stored[-1].headers


def test_invalid_byte_in_a_header_costs_that_header_only() -> None:
    found = parse_headers(b"NATS/1.0\r\nRemit-Kid: a\r\nX: \xff\r\nRemit-Kid: b\r\n\r\n")
    assert (found["Remit-Kid"], found["X"]) == ("a", "\ufffd")


async def test_refusal_by_an_unknown_kid_holds_the_action_up_for_a_while_and_not_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = iter([0.0, 0.0, 0.0, patience.PATIENCE_S - 1, 0.0, patience.PATIENCE_S])
    monkeypatch.setattr(patience, "monotonic", lambda: next(times))
    bus = stream("proposed", "evaluated", "approval_requested")
    bus.put(unknown_kid(grow(action_until("proposed", "evaluated", "approval_requested"), "action.refused").chain[-1]))
    reading = ledger(bus)
    for _ in range(2):
        with pytest.raises(NotUnderstoodError):
            await reading.read(ACTION_ID)
    state = await reading.read(ACTION_ID)
    assert (len(state.chain), state.last_seq) == (3, 4)


async def test_revocation_of_an_action_by_an_unknown_kid_is_waited_for_however_long_it_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(patience, "PATIENCE_S", 0.0)
    bus = stream("proposed", "evaluated")
    bus.put(unknown_kid(grow(action_until("proposed", "evaluated"), "action.revoked").chain[-1]))
    with pytest.raises(NotUnderstoodError):
        await ledger(bus).read(ACTION_ID)


def test_known_writer_holds_up_its_own_step_only() -> None:
    asked, approved = action_until("proposed", "evaluated", "approval_requested"), action_until(*APPROVED_PATH)
    held = {
        (writer, step.last.short): could_follow(step.last, ActionRefused, writer)
        for writer in ActionRefused.writers
        for step in (asked, approved)
        if step.last is not None
    }
    assert {pair for pair, holds in held.items() if holds} == {
        ("approval", "approval_requested"),
        ("tokens", "approved"),
    }

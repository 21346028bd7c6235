"""Holes are asked for again, then named; receipts are offered once; none of it needs a server."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

import pytest

from remit.events import ActionAudited
from remit.fold import ActionState, junk
from remit.projection.tracking import Tracked
from remit.reasons import Outcome
from remit.runtime.bus import Stored
from remit.runtime.ledger import Draft, Superseded
from services.audit.chain import GapError
from services.audit.evidence import EvidenceStore
from services.audit.projector import HEAL_ATTEMPTS, Projector
from services.audit.receipts import Receipts
from services.audit.source import stored_at
from tests.support import factories as f
from tests.support.ledger_stream import StreamWriter, data_for, evidence

if TYPE_CHECKING:
    from services.audit.source import Source


class FakeSource:
    stream = "ACTIONS"

    def __init__(self) -> None:
        self.restarts: list[int] = []

    async def restart_at(self, seq: int) -> None:
        self.restarts.append(seq)


class FakeBus:
    def __init__(self, held: Stored | None = None) -> None:
        self.held = held

    async def leader_read(self, _stream: str, _query: dict[str, Any]) -> Stored | None:
        return self.held


class FakeStore:
    def __init__(self, record: bytes | None) -> None:
        self.record = record

    async def record_at(self, _stream: str, _seq: int) -> bytes | None:
        return self.record


def projector(bus: FakeBus) -> Projector:
    nothing: Any = None
    return Projector(
        pool=nothing, bus=cast("Any", bus), source=nothing, begin=nothing, stamp=nothing, linger_s=0, heartbeat_s=5
    )


async def test_a_hole_is_asked_for_three_times_then_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.audit.projector.HEAL_PAUSE_S", 0)
    source = FakeSource()
    for attempt in range(1, HEAL_ATTEMPTS + 1):
        await projector(FakeBus())._heal(cast("Source", source), 5, 7, attempt=attempt)
    assert source.restarts == [5, 5, 5]
    with pytest.raises(GapError, match="ACTIONS sequence 7 is missing: no replica"):
        await projector(FakeBus())._heal(cast("Source", source), 5, 7, attempt=HEAL_ATTEMPTS + 1)


async def test_a_damaged_replica_is_told_from_a_lost_message() -> None:
    bus = FakeBus(Stored("action.x.proposed", 7, b"{}", {}))
    with pytest.raises(GapError, match="the leader holds it, the consumer's replica does not"):
        await projector(bus)._heal(cast("Source", FakeSource()), 7, 7, attempt=HEAL_ATTEMPTS + 1)


@pytest.mark.parametrize("head", ["$JS.ACK.ACTIONS.audit", "$JS.ACK._.hash.ACTIONS.audit"])
def test_the_time_of_a_delivery_is_that_of_a_read(head: str) -> None:
    at = datetime(2026, 11, 24, 12, 0, 0, 999_999, tzinfo=UTC)
    nanoseconds = int(at.timestamp()) * 10**9 + 999_999_999
    tail = "" if head.endswith("ACK.ACTIONS.audit") else ".token"
    assert stored_at(f"{head}.1.7.7.{nanoseconds}.0{tail}") == at


class Held:
    """A tenure that stands at sequence 1."""

    def __init__(self, last_seq: int, record: bytes | None) -> None:
        position = type("Position", (), {"last_seq": last_seq})()
        self.handlers = type("Handlers", (), {"positions": {"ACTIONS": position}})()
        self.store = FakeStore(record)


def first_message() -> tuple[Stored, bytes]:
    writer = StreamWriter()
    writer.action("pay", "proposed")
    [message] = writer.messages
    return Stored(message.subject, 1, message.body, message.headers, message.time), evidence(message).record


async def test_the_stream_that_was_projected_is_recognised() -> None:
    stored, record = first_message()
    await projector(FakeBus())._check_anchor("ACTIONS", cast("Any", Held(0, None)))
    await projector(FakeBus(stored))._check_anchor("ACTIONS", cast("Any", Held(1, record)))


@pytest.mark.parametrize("changes", [None, {"body": b"other"}, {"time": f.NOW}, {"time": None}])
async def test_a_replaced_or_cut_stream_halts(changes: dict[str, Any] | None) -> None:
    stored, record = first_message()
    bus = FakeBus(None if changes is None else replace(stored, **changes))
    with pytest.raises(GapError, match="cut, replaced or recreated"):
        await projector(bus)._check_anchor("ACTIONS", cast("Any", Held(1, record)))


def finished(**changes: Any) -> Tracked:
    writer = StreamWriter()
    state = writer.action("pay", *f.EXECUTED_PATH[:-1])
    data = data_for("executed", state.action_id, "pay", **changes)
    return Tracked(state=writer.grow(state, "executed", "pay", data=data), link=b"x" * 32)


class Recorder:
    """A ledger that remembers what was appended; it loses its first races, `lost` says to which truth."""

    def __init__(self, *lost: ActionState) -> None:
        self.appended: list[type] = []
        self.after: list[int] = []
        self.lost = list(lost)

    async def append(self, state: ActionState, draft: Draft) -> ActionState:
        self.appended.append(draft.event)
        self.after.append(state.last_seq)
        if self.lost:
            raise Superseded(self.lost.pop(0))
        return state

    async def read(self, _: str) -> ActionState:
        return finished().state


def receipts(ledger: Recorder, overdue: list[Tracked]) -> Receipts:
    async def found(limit: int) -> list[Tracked]:
        return overdue[:limit]

    return Receipts(append=ledger.append, read=ledger.read, overdue=found, every_s=60)


async def run(made: Receipts, ledger: Recorder, expected: int) -> None:
    task = asyncio.create_task(made.run())
    try:
        async with asyncio.timeout(5):
            while len(ledger.appended) < expected:
                await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def moved_on() -> ActionState:
    """Return the truth after a second outcome that the receipt's author had not seen."""
    return resolved_doubt()[1].state


def resolved_doubt() -> tuple[Tracked, Tracked]:
    writer = StreamWriter()
    state = writer.action("pay", *f.EXECUTED_PATH[:-1])
    doubt = data_for("executed", state.action_id, "pay", outcome=Outcome.UNKNOWN)
    unknown = writer.grow(state, "executed", "pay", data=doubt)
    known = writer.grow(unknown, "executed", "pay", discriminator="resolved")
    return Tracked(state=unknown, link=b"x" * 32), Tracked(state=known, link=b"y" * 32)


async def test_a_receipt_is_never_stored_behind_what_it_does_not_say() -> None:
    doubt, known = resolved_doubt()
    ledger = Recorder(known.state)
    made = receipts(ledger, [])
    made._queue(doubt)
    await run(made, ledger, 1)
    assert ledger.after == [doubt.state.last_seq], "the receipt of the doubt was written again, behind its resolution"
    # Once the resolution is projected, the action is offered anew, though the first offer may not be done yet.
    made.offered.add((doubt.state.action_id, doubt.state.head))
    made.offer([known])
    await run(made, ledger, 2)
    assert ledger.after[1:] == [known.state.last_seq]


async def test_junk_in_between_does_not_cost_the_receipt() -> None:
    done = finished()
    ledger = Recorder(junk(done.state, 40), junk(done.state, 41))
    made = receipts(ledger, [])
    made.offer([done])
    await run(made, ledger, 3)
    assert ledger.after == [7, 40, 41]


@pytest.mark.parametrize("lost", [(), (moved_on(),)])
async def test_a_finished_action_is_offered_once(lost: tuple[ActionState, ...]) -> None:
    ledger = Recorder(*lost)
    made = receipts(ledger, [])
    made.offer([finished(), finished()])
    await run(made, ledger, 1)
    assert ledger.appended == [ActionAudited]
    assert made.offered == set()


async def test_doubt_is_offered_only_by_the_reconciliation_and_only_when_current() -> None:
    doubt = finished(outcome=Outcome.UNKNOWN)
    ledger = Recorder()
    made = receipts(ledger, [doubt, finished()])
    made.offer([doubt])
    assert made.queue.empty()
    # The ledger already knows the resolution, so only the second one may be written.
    await run(made, ledger, 1)
    assert ledger.appended == [ActionAudited]


async def test_letters_and_advisories_are_read_however_odd_they_are() -> None:
    writer = StreamWriter("DLQ")
    writer.raw("dlq.intake", b'{"code":"kid","seq":true,"subject":5,"stream":"INTAKE","detail":"x\\u0000"}')
    writer.raw("dlq.intake", b"not json")
    writer.raw("dlq.intake", b"[1]")
    writer.raw("$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.ACTIONS.policy", b'{"stream":"ACTIONS","stream_seq":10}')
    writer.raw("$JS.EVENT.ADVISORY.CONSUMER.NEW.ACTIONS.policy", b"{}")
    rows: list[tuple[Any, ...]] = []
    alarms: list[str] = []
    store = EvidenceStore(cast("Any", None), alarm=alarms.append)

    async def keep(_statement: str, found: list[tuple[Any, ...]]) -> None:
        rows.extend(found)

    store._keep = keep  # type: ignore[method-assign]  # the statement needs a server, the reading does not
    await store.keep_letters(writer.messages[:3])
    await store.keep_advisories(writer.messages[3:])
    assert [row[3] for row in rows[:3]] == ["kid", "unreadable", "unreadable"]
    assert [row[2] for row in rows[3:]] == ["msg_terminated", "other"]
    assert alarms == ["dead_letter"] * 3 + ["advisory"] * 2

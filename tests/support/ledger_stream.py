"""A stream of signed events for tests of the ledger: whole actions one after the other, as the bus would store them."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from remit.canonical import canonical
from remit.events import Proposed
from remit.fold import ActionState, RemitState, step
from remit.ids import action_id, jti
from remit.ledger_chain import Evidence, admit, evidence_from, genesis, judge_action, judge_remit, link, spelled
from remit.ledger_proof import LedgerRow
from remit.projection.event_columns import event_columns
from remit.runtime.delivery import Inbound
from tests.support import factories as f

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from pydantic import BaseModel

    from remit.envelope import Recorded


def data_for(kind: str, identity: str, key: str, **changes: Any) -> BaseModel:
    """Return the example data of an event, rewritten for another action."""
    data = f.EXAMPLES[f"action.{kind}"]
    update: dict[str, Any] = {"txn": identity}
    if isinstance(data, Proposed):
        update |= {"idempotency_key": key, "proposal": canonical(f.PROPOSAL | {"idempotency_key": key}).decode()}
    if kind in {"tokenized", "started"}:
        update["jti"] = jti(identity, 1)
    return data.model_copy(update=update | changes)


class StreamWriter:
    """Appends signed messages and remembers them as the broker delivers them."""

    def __init__(self, stream: str = "ACTIONS") -> None:
        """Begin before sequence 1."""
        self.stream = stream
        self.messages: list[Inbound] = []

    @property
    def last_seq(self) -> int:
        return len(self.messages)

    def add(self, recorded: Recorded, at: datetime | None = None) -> Recorded:
        """Store one signed event; `at` is the broker's time."""
        self.raw(recorded.signed.subject, recorded.signed.body, recorded.signed.headers(), at=at)
        return replace(recorded, seq=self.last_seq, stored_at=self.messages[-1].time)

    def raw(self, subject: str, body: bytes, headers: dict[str, str] | None = None, at: datetime | None = None) -> None:
        """Store anything at all."""
        seq = self.last_seq + 1
        at = at or f.NOW + timedelta(milliseconds=seq)
        self.messages.append(Inbound(subject, body, headers or {}, seq=seq, time=at, stream=self.stream))

    def grow(self, state: ActionState, kind: str, key: str, **more: Any) -> ActionState:
        """Append one valid event to an action; `data` replaces the example, `at` is the broker's time, `more` is the event's."""
        data = more.pop("data", None) or data_for(kind, state.action_id, key)
        place = f.Place(n=len(state.chain) + 1, prev=state.head)
        more.setdefault("time", f.NOW + timedelta(milliseconds=10 * len(state.chain)))
        if kind == "approval_requested":
            more.setdefault("expirytime", f.NOW + timedelta(minutes=15))
        at = more.pop("at", None)
        recorded = self.add(f.record(f"action.{kind}", data, place=place, subject=state.action_id, **more), at=at)
        state, finding = step(state, recorded, self.last_seq)
        assert finding is None, f"{kind} does not fold: {finding}"
        return state

    def action(self, key: str, *kinds: str) -> ActionState:
        """Append a whole action."""
        state = ActionState(action_id("default", "bookkeeper", key))
        for kind in kinds:
            state = self.grow(state, kind, key)
        return state

    def audited(self, state: ActionState, key: str, **changes: Any) -> ActionState:
        """Append the right receipt of a finished action, or one with changes."""
        heads = chain_heads(self.messages, self.stream)
        assert state.head is not None
        last = state.chain[-1]
        facts: dict[str, Any] = {
            "terminal": last.event.short,
            "events": len(state.chain),
            "first_seq": state.chain[0].seq,
            "last_seq": last.seq,
            "action_head": state.head,
            "ledger_head": spelled(heads[(last.seq or 1) - 1]),
        }
        return self.grow(state, "audited", key, data=data_for("audited", state.action_id, key, **(facts | changes)))

    def remit(self, *kinds: str) -> None:
        """Append remit events of the example remit."""
        prev = None
        for n, kind in enumerate(kinds, 1):
            recorded = self.add(f.record(f"remit.{kind}", place=f.Place(n=n, prev=prev), discriminator=str(n)))
            prev = recorded.signed.digest


def evidence(message: Inbound) -> Evidence:
    """Return a message as the ledger keeps it."""
    assert message.time is not None
    return evidence_from((message.seq or 0, message.time), message.subject, message.body, message.headers)


def chain_heads(messages: Iterable[Inbound], stream: str) -> list[bytes]:
    """Return the chain hash at each message."""
    heads, previous = list[bytes](), genesis(stream)
    for message in messages:
        held = evidence(message)
        previous = link(previous, held.seq, held.record)
        heads.append(previous)
    return heads


def rows_of(writer: StreamWriter) -> list[LedgerRow]:
    """Return the rows that a faithful projector writes for a stream."""
    rows, states = list[LedgerRow](), dict[str, Any]()
    for message, head in zip(writer.messages, chain_heads(writer.messages, writer.stream), strict=True):
        held = evidence(message)
        recorded, code = admit(held, f.TRUST)
        subject_id = f"{message.subject}.".split(".")[1]
        status = _judge(writer.stream, states, subject_id, recorded, held.seq, code)
        columns = event_columns(writer.stream, held.subject, recorded)
        rows.append(LedgerRow(evidence=held, verify_status=status, chain_hash=head, columns=columns))
    return rows


def _judge(stream: str, states: dict[str, Any], subject_id: str, recorded: Recorded | None, seq: int, code: str) -> str:
    if stream == "ACTIONS":
        state: ActionState = states.get(subject_id) or ActionState(subject_id)
        states[subject_id], status = judge_action(state, recorded, seq, code)
        return status
    remit: RemitState = states.get(subject_id) or RemitState(subject_id)
    states[subject_id], status = judge_remit(remit, recorded, seq, code)
    return status


def rechained(rows: Sequence[LedgerRow], stream: str = "ACTIONS") -> list[LedgerRow]:
    """Return the rows with chain hashes that fit, as somebody would write them who knows the algorithm."""
    previous, fitted = genesis(stream), list[LedgerRow]()
    for row in rows:
        previous = link(previous, row.seq, row.evidence.record)
        fitted.append(replace(row, chain_hash=previous))
    return fitted

"""Proof of a ledger: recompute everything that its rows claim, in stream order, and name the first row that does not hold.

Pure; the rows come from Postgres, from the stream, or from a test. It finds edited, deleted, inserted, reordered and cut rows,
and events that break the life cycle of an action. Source: design, standards section 3.3; bus section 8.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, cast

from remit.events import ActionAudited, ActionEvent
from remit.fold import ActionState, RemitState, is_terminal
from remit.ledger_chain import (
    VALID,
    Checkpoint,
    Evidence,
    admit,
    genesis,
    judge_action,
    judge_remit,
    link,
    merkle_root,
    spelled,
)
from remit.ledger_rules import life_cycle, receipt_breaks

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from nacl.signing import VerifyKey

    from remit.envelope import Recorded, TrustedKey

Stream = Literal["ACTIONS", "REMITS"]
MAX_KEPT_FINDINGS = 1_000
"""A ledger that is broken everywhere must not fill the memory of who looks at it; all are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRow:
    """One row of `audit.audit_event`, as far as it can be proved: the message, and what the row says about it."""

    evidence: Evidence
    verify_status: str
    chain_hash: bytes
    event_id: str | None = None
    type: str | None = None
    subject_id: str | None = None
    remit_id: str | None = None
    n: int | None = None

    @property
    def seq(self) -> int:
        """Stream sequence."""
        return self.evidence.seq


@dataclass(frozen=True, slots=True)
class Finding:
    """What does not hold, and at which row.

    `code` is one of: gap order chain_hash verdict column lifecycle receipt checkpoint truncated foreign.
    """

    stream: str
    seq: int
    code: str
    detail: str


@dataclass(slots=True, kw_only=True)
class Proof:
    """The answer about one stream; the record is whole when `findings` is empty."""

    stream: str
    rows: int = 0
    head: str = ""
    last_seq: int = 0
    statuses: Counter[str] = field(default_factory=Counter[str])
    """Rows by `verify_status`, recomputed."""
    actions: int = 0
    receipts: int = 0
    open_actions: int = 0
    awaiting_receipt: int = 0
    checkpoints: int = 0
    finding_count: int = 0
    findings: list[Finding] = field(default_factory=list[Finding])

    @property
    def is_whole(self) -> bool:
        """Whether nothing was found."""
        return self.finding_count == 0


@dataclass(slots=True)
class _Trail:
    """One unfinished action or remit while its rows pass by; `link` is the chain hash of its newest valid row."""

    state: ActionState | RemitState
    link: bytes = b""


class Verifier:
    """Feed it every row of one stream in order, then ask for the proof."""

    def __init__(
        self,
        stream: Stream,
        trust: Mapping[str, TrustedKey],
        *,
        checkpoint_key: VerifyKey | None = None,
        checkpoints: Iterable[Checkpoint] = (),
    ) -> None:
        """Start before sequence 1; `checkpoints` are those of this stream, from wherever they are kept."""
        self._stream, self._trust = stream, trust
        self._previous, self._expected = genesis(stream), 1
        self._trails: dict[str, _Trail] = {}
        self._closed: set[str] = set()
        self._checkpoint_key = checkpoint_key
        unique = {(c.seq, c.chain_head): c for c in checkpoints if c.stream == stream}
        self._checkpoints = sorted(unique.values(), key=lambda c: c.seq)
        self._records: dict[int, bytes] = {}
        self._proof = Proof(stream=stream)

    def add(self, row: LedgerRow) -> None:
        """Check one row against everything before it."""
        self._contiguous(row)
        record = row.evidence.record
        expected = link(self._previous, row.seq, record)
        if expected != row.chain_hash:
            self._find(row.seq, "chain_hash", "its bytes, or a row before it, are not what was chained")
        recorded, status = self._judge(row)
        if status != row.verify_status:
            self._find(row.seq, "verdict", f"stored as {row.verify_status}, found {status}")
        self._columns(row, recorded)
        # Going on from the stored hash names each independent break once, instead of every row after the first.
        self._previous, self._expected = row.chain_hash, row.seq + 1
        self._proof.rows += 1
        self._proof.last_seq = row.seq
        self._proof.statuses[status] += 1
        self._at_checkpoint(row, record)

    def finish(self) -> Proof:
        """Return the proof; checkpoints beyond the last row mean that the tail was cut off."""
        for checkpoint in self._checkpoints:
            found = f"the rows end at {self._proof.last_seq}, a signed checkpoint saw {checkpoint.seq}"
            self._find(self._proof.last_seq + 1, "truncated", found)
        self._checkpoints = []
        proof = self._proof
        proof.head = spelled(self._previous)
        proof.receipts = len(self._closed)
        proof.actions = len(self._closed) + len(self._trails)
        states = [t.state for t in self._trails.values() if isinstance(t.state, ActionState) and t.state.chain]
        proof.awaiting_receipt = sum(is_terminal(state.last) for state in states)
        proof.open_actions = len(states) - proof.awaiting_receipt
        return proof

    def expect_end(self, last_seq: int, head: bytes) -> None:
        """Hold the projector's cursor against the rows: it moves in the transaction that writes them."""
        if last_seq > self._proof.last_seq:
            missing = f"the rows end at {self._proof.last_seq}, the cursor stands at {last_seq}"
            self._find(self._proof.last_seq + 1, "truncated", missing)
        elif last_seq < self._proof.last_seq:
            self._find(last_seq + 1, "foreign", f"rows beyond the cursor, which stands at {last_seq}")
        elif head != self._previous:
            self._find(last_seq, "chain_hash", "the cursor holds another chain head than the last row")

    def note(self, seq: int, code: str, detail: str) -> None:
        """Add a finding of somebody who looked elsewhere, such as at another copy of the stream."""
        self._find(seq, code, detail)

    def _find(self, seq: int, code: str, detail: str) -> None:
        self._proof.finding_count += 1
        if len(self._proof.findings) < MAX_KEPT_FINDINGS:
            self._proof.findings.append(Finding(self._stream, seq, code, detail))

    def _contiguous(self, row: LedgerRow) -> None:
        if row.seq > self._expected:
            missing = f"{self._expected}" if row.seq == self._expected + 1 else f"{self._expected} to {row.seq - 1}"
            self._find(self._expected, "gap", f"rows missing: {missing}")
        elif row.seq < self._expected:
            self._find(row.seq, "order", f"expected sequence {self._expected}")

    def _judge(self, row: LedgerRow) -> tuple[Recorded | None, str]:
        recorded, code = admit(row.evidence, self._trust)
        subject_id = recorded.event.subject if recorded else _subject_id(row.evidence.subject)
        if subject_id in self._closed:
            # The action is over; which of the two reasons applies needs its events, which are no longer held.
            return recorded, row.verify_status if row.verify_status in {"closed", "duplicate"} else _after_end(code)
        return recorded, self._fold(row, subject_id, recorded, code)

    def _fold(self, row: LedgerRow, subject_id: str, recorded: Recorded | None, code: str) -> str:
        trail = self._trails.get(subject_id)
        if trail is None:
            fresh = ActionState(subject_id) if self._stream == "ACTIONS" else RemitState(subject_id)
            trail = _Trail(fresh)
        if isinstance(trail.state, RemitState):
            trail.state, status = judge_remit(trail.state, recorded, row.seq, code)
        else:
            before = trail.state
            trail.state, status = judge_action(before, recorded, row.seq, code)
            if status == VALID and recorded is not None:
                self._life_cycle(row, trail, before, cast("ActionEvent", recorded.event))
        if status == VALID:
            trail.link = row.chain_hash
            self._trails[subject_id] = trail
            if recorded is not None and isinstance(recorded.event, ActionAudited):
                self._closed.add(subject_id)
                del self._trails[subject_id]
        return status

    def _life_cycle(self, row: LedgerRow, trail: _Trail, before: ActionState, event: ActionEvent) -> None:
        for detail in life_cycle(before, event):
            self._find(row.seq, "lifecycle", detail)
        if isinstance(event, ActionAudited):
            for detail in receipt_breaks(before, event, trail.link):
                self._find(row.seq, "receipt", detail)

    def _columns(self, row: LedgerRow, recorded: Recorded | None) -> None:
        if recorded is None:
            return
        event = recorded.event
        remit_id = event.subject if event.stream == "REMITS" else cast("ActionEvent", event).data.remit_id
        claimed = (row.event_id, row.type, row.subject_id, row.remit_id, row.n)
        if claimed != (event.id, event.short, event.subject, remit_id[:MAX_REMIT_ID], event.n):
            self._find(row.seq, "column", "a column says something else than the signed body")

    def _at_checkpoint(self, row: LedgerRow, record: bytes) -> None:
        if not self._checkpoints:
            return
        self._records[row.seq] = record
        while self._checkpoints and self._checkpoints[0].seq <= row.seq:
            checkpoint = self._checkpoints.pop(0)
            self._proof.checkpoints += 1
            problem = self._checkpoint_problem(checkpoint, row)
            if problem:
                self._find(checkpoint.seq, "checkpoint", problem)
        lowest = min((c.previous_seq for c in self._checkpoints), default=row.seq)
        for seq in [seq for seq in self._records if seq <= lowest]:
            del self._records[seq]

    def _checkpoint_problem(self, checkpoint: Checkpoint, row: LedgerRow) -> str | None:
        if self._checkpoint_key is None or not checkpoint.is_signed_by(self._checkpoint_key):
            return "the checkpoint is not signed by the environment's checkpoint key"
        if checkpoint.seq != row.seq:
            return None  # Its row is missing, which is a finding of its own.
        if checkpoint.chain_head != spelled(row.chain_hash):
            return "the chain is not the one that was signed here"
        covered = [self._records.get(seq) for seq in range(checkpoint.previous_seq + 1, checkpoint.seq + 1)]
        present = [record for record in covered if record is not None]
        if len(present) != len(covered) or spelled(merkle_root(present)) != checkpoint.merkle_root:
            return "the records since the previous checkpoint are not the ones that were signed"
        return None


MAX_REMIT_ID = 64
"""Longest remit id that a column keeps; ours have 36 characters, a proposal may name anything up to this."""


def _subject_id(subject: str) -> str:
    tokens = subject.split(".")
    return tokens[1] if len(tokens) > 1 else ""


def _after_end(code: str) -> str:
    return "closed" if code == VALID else code

"""Proof of a ledger: recompute everything that its rows claim, in stream order, and name the first row that does not hold.

Pure; the rows come from Postgres, from the stream, or from a test. It finds edited, deleted, inserted, reordered and cut rows,
and events that break the life cycle of an action. Source: design, standards section 3.3; bus section 8.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

from remit.events import ActionAudited, ActionEvent, RemitEvent
from remit.fold import ActionState, RemitState, is_terminal
from remit.ledger_chain import (
    VALID,
    Checkpoint,
    Evidence,
    admit,
    genesis,
    is_believed,
    judge_action,
    judge_remit,
    link,
    merkle_root,
    spelled,
)
from remit.ledger_models import ActionFold, RemitFold, differing_columns
from remit.ledger_rules import life_cycle, receipt_breaks
from remit.projection.event_columns import addressed_to

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nacl.signing import VerifyKey

    from remit.envelope import Recorded, TrustedKey
    from remit.ledger_models import ExpectedAction

Stream = Literal["ACTIONS", "REMITS"]
FOLLOWING = frozenset({"projection", "effect"})
"""Findings about other tables: a bad row of the ledger makes these too."""
MAX_KEPT_FINDINGS = 1_000
"""A ledger that is broken everywhere must not fill the memory of who looks at it; all are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRow:
    """One row of `audit.audit_event`: the message, and what the row says about it (`columns` as in `EVENT_COLUMNS`)."""

    evidence: Evidence
    verify_status: str
    chain_hash: bytes
    columns: Mapping[str, Any]

    @property
    def seq(self) -> int:
        """Stream sequence."""
        return self.evidence.seq


@dataclass(frozen=True, slots=True)
class Finding:
    """What does not hold, and at which row.

    `code` is one of: gap order chain_hash verdict column lifecycle receipt checkpoint truncated foreign projection effect.
    """

    stream: str
    seq: int
    code: str
    detail: str

    @property
    def rank(self) -> tuple[bool, bool, int]:
        """Sort key that puts causes first: rows of the ledger in order, what no row bears, then what only follows from rows."""
        return self.code in FOLLOWING, self.seq == 0, self.seq


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
    anchored_to: int | None = None
    """Up to which sequence something outside the database says that these rows must be there; None when nothing does."""
    effects: int | None = None
    """How many outcomes were held against `control.execution`; None when this login may not read it."""
    finding_count: int = 0
    findings: list[Finding] = field(default_factory=list[Finding])
    first: Finding | None = None
    """The one with the lowest rank: the first bad row."""

    @property
    def is_whole(self) -> bool:
        """Whether nothing was found."""
        return self.finding_count == 0


class Verifier:
    """Feed it every row of one stream in order, then ask for the proof.

    `actions` and `remits` hold what the read models must say about what has passed by.
    """

    def __init__(
        self,
        stream: Stream,
        trust: Mapping[str, TrustedKey],
        *,
        checkpoint_keys: Mapping[str, VerifyKey],
        outside: Sequence[Checkpoint] = (),
        inside: Sequence[Checkpoint] = (),
    ) -> None:
        """Start before sequence 1; checkpoints are those kept `outside` the database, and those `inside` it."""
        self._stream, self._trust = stream, trust
        self._previous, self._expected = genesis(stream), 1
        self.actions, self.remits = ActionFold(), RemitFold()
        self._states: dict[str, RemitState] = {}
        self._checkpoint_keys = checkpoint_keys
        unique = {c for c in (*outside, *inside) if c.stream == stream}
        self._checkpoints = sorted(unique, key=lambda c: c.seq)
        self._marks = {0, *(c.seq for c in self._checkpoints)}
        self._records: dict[int, bytes] = {}
        anchors = [c.seq for c in outside if c.stream == stream and is_believed(c, checkpoint_keys)]
        self._proof = Proof(stream=stream, anchored_to=max(anchors, default=None))

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
        for name in differing_columns(self._stream, row.evidence.subject, recorded, row.columns):
            self._find(row.seq, "column", f"the column {name} says something else than the message")
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
        proof.receipts = len(self.actions.flags)
        states = [t.state for t in self.actions.open.values() if t.state.chain]
        proof.actions = proof.receipts + len(states)
        proof.awaiting_receipt = sum(is_terminal(state.last) for state in states)
        proof.open_actions = len(states) - proof.awaiting_receipt
        self.actions.finish()
        return proof

    def take_settled(self, at_least: int) -> list[ExpectedAction]:
        """Hand out the actions that are settled since the last time, or none while there are fewer than that."""
        settled = self.actions.settled
        if len(settled) < at_least:
            return []
        self.actions.settled = []
        return settled

    def effects_held(self, number: int) -> None:
        """Say that so many outcomes were held against the claims of the executor."""
        self._proof.effects = (self._proof.effects or 0) + number

    def anchor(self) -> None:
        """Say that the stream itself was held against the rows, to its end."""
        self._proof.anchored_to = self._proof.last_seq

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
        found, proof = Finding(self._stream, seq, code, detail), self._proof
        proof.finding_count += 1
        if len(proof.findings) < MAX_KEPT_FINDINGS:
            proof.findings.append(found)
        if proof.first is None or found.rank < proof.first.rank:
            proof.first = found

    def _contiguous(self, row: LedgerRow) -> None:
        if row.seq > self._expected:
            missing = f"{self._expected}" if row.seq == self._expected + 1 else f"{self._expected} to {row.seq - 1}"
            self._find(self._expected, "gap", f"rows missing: {missing}")
        elif row.seq < self._expected:
            self._find(row.seq, "order", f"expected sequence {self._expected}")

    def _judge(self, row: LedgerRow) -> tuple[Recorded | None, str]:
        recorded, code = admit(row.evidence, self._trust)
        subject_id = addressed_to(self._stream, row.evidence.subject, recorded)
        if subject_id is None:
            return recorded, code
        if self._stream == "REMITS":
            return recorded, self._remit(row, subject_id, recorded, code)
        if subject_id in self.actions.flags:
            # The action is over; which of the two reasons applies needs its events, which are no longer held.
            status = row.verify_status if row.verify_status in {"closed", "duplicate"} else _after_end(code)
            self.actions.add_late(subject_id, status)
            return recorded, status
        return recorded, self._action(row, subject_id, recorded, code)

    def _remit(self, row: LedgerRow, remit_id: str, recorded: Recorded | None, code: str) -> str:
        before = self._states.get(remit_id, RemitState(remit_id))
        state, status = judge_remit(before, recorded, row.seq, code)
        if status == VALID and recorded is not None:
            self._states[remit_id] = state
            self.remits.add(cast("RemitEvent", recorded.event), row.seq)
        return status

    def _action(self, row: LedgerRow, action_id: str, recorded: Recorded | None, code: str) -> str:
        tracked = self.actions.tracked(action_id)
        before = tracked.state
        tracked.state, status = judge_action(before, recorded, row.seq, code)
        if status == VALID and recorded is not None:
            self._life_cycle(row, before, cast("ActionEvent", recorded.event), tracked.link)
        self.actions.add(tracked, recorded, status, row.chain_hash)
        return status

    def _life_cycle(self, row: LedgerRow, before: ActionState, event: ActionEvent, head: bytes) -> None:
        for detail in life_cycle(before, event, row.evidence.at):
            self._find(row.seq, "lifecycle", detail)
        if isinstance(event, ActionAudited):
            for detail in receipt_breaks(before, event, head):
                self._find(row.seq, "receipt", detail)

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
        if not is_believed(checkpoint, self._checkpoint_keys):
            return f"the checkpoint is not signed by a checkpoint key of the environment; it names the kid {checkpoint.kid!r}"
        if checkpoint.previous_seq not in self._marks:
            return f"the checkpoint before it, at {checkpoint.previous_seq}, is missing"
        if checkpoint.seq != row.seq:
            return None  # Its row is missing, which is a finding of its own.
        if checkpoint.chain_head != spelled(row.chain_hash):
            return f"the chain is not the one that was signed here: {_rows_since(checkpoint)} was rewritten"
        covered = [self._records.get(seq) for seq in range(checkpoint.previous_seq + 1, checkpoint.seq + 1)]
        present = [record for record in covered if record is not None]
        if len(present) != len(covered) or spelled(merkle_root(present)) != checkpoint.merkle_root:
            return f"the records are not the ones that were signed: {_rows_since(checkpoint)} was rewritten"
        return None


def _rows_since(checkpoint: Checkpoint) -> str:
    return f"a row from {checkpoint.previous_seq + 1} to {checkpoint.seq}, or one before,"


def _after_end(code: str) -> str:
    return "closed" if code == VALID else code

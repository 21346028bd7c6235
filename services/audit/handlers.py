"""The handlers of audit: take a batch of messages, fold it, write it in one transaction, say which actions are finished."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from remit.errors import PermanentError, TransientError
from remit.ledger_chain import VALID, admit, evidence_from
from services.audit.folding import (
    Admitted,
    addressed_to,
    fold_actions,
    fold_remits,
    is_closed,
    restore,
    restore_remit,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from remit.envelope import TrustedKey
    from remit.fold import RemitState
    from remit.runtime.delivery import Inbound
    from services.audit.evidence import EvidenceStore
    from services.audit.folding import Batch
    from services.audit.store import Position, Store
    from services.audit.tracking import Tracked

MAX_REMITS = 4_096
"""Remits held in memory; the others are read back from their rows when an event of theirs comes."""


class NewerVersionError(PermanentError):
    """A signed event of a newer contract: projecting it as unknown would lose it, so audit must be upgraded first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditHandlers:
    """One tenure of the active projector: the positions and the memory go with it when it ends.

    `count` is told each `verify_status` with its number; `sensitive` names the arguments of `tool.action` to hide.
    """

    trust: Mapping[str, TrustedKey]
    store: Store
    evidence: EvidenceStore
    sensitive: Callable[[str], Collection[str] | None]
    count: Callable[[str, int], None]
    memory_actions: int
    positions: dict[str, Position] = field(default_factory=dict[str, "Position"])
    actions: dict[str, Tracked] = field(default_factory=dict[str, "Tracked"])
    remits: dict[str, RemitState] = field(default_factory=dict[str, "RemitState"])

    def admit(self, stream: str, messages: Sequence[Inbound]) -> list[Admitted]:
        """Do the checks that need no history; they take most of the time and may run in a thread.

        Raises:
            NewerVersionError: an event that this version of audit cannot read.

        """
        admitted: list[Admitted] = []
        for message in messages:
            if message.seq is None or message.time is None:
                raise TransientError(f"a message of {stream} came without its place in the stream")
            evidence = evidence_from(message.seq, message.subject, message.body, message.headers)
            recorded, code = admit(evidence, self.trust)
            if code == "version":
                raise NewerVersionError(
                    f"{stream} {message.seq} is of a newer contract; upgrade audit before its writers"
                )
            admitted.append(Admitted(evidence, message.time, recorded, code))
        return admitted

    async def on_actions(self, admitted: list[Admitted]) -> list[Tracked]:
        """Project contiguous messages of ACTIONS and return the actions that are finished and have no receipt yet."""
        ids = {found for item in admitted if (found := addressed_to(item, "ACTIONS")) is not None}
        for action_id, rows in (await self.store.rows_of("ACTIONS", ids - self.actions.keys())).items():
            self.actions[action_id] = restore(action_id, rows, self.sensitive)
        head = self.positions["ACTIONS"].head
        batch = fold_actions(admitted, head=head, memory=self.actions, sensitive=self.sensitive)
        await self.store.commit_actions(batch)
        self._committed("ACTIONS", batch)
        self._forget_actions(batch.touched)
        return [t for t in batch.touched.values() if t.terminal is not None and not is_closed(t)]

    async def on_remits(self, admitted: list[Admitted]) -> None:
        """Project contiguous messages of REMITS."""
        ids = {found for item in admitted if (found := addressed_to(item, "REMITS")) is not None}
        for remit_id, rows in (await self.store.rows_of("REMITS", ids - self.remits.keys())).items():
            self.remits[remit_id] = restore_remit(remit_id, rows)
        batch = fold_remits(admitted, head=self.positions["REMITS"].head, memory=self.remits)
        await self.store.commit_remits(batch)
        self._committed("REMITS", batch)
        while len(self.remits) > MAX_REMITS:
            self.remits.pop(next(iter(self.remits)))

    async def on_dead_letters(self, messages: Sequence[Inbound]) -> None:
        """Keep dead letters; each is an alarm already where it was written."""
        await self.evidence.keep_letters(messages)

    async def on_advisories(self, messages: Sequence[Inbound]) -> None:
        """Keep the broker's word that it gave up a delivery, and count it: a stranded message is never silent."""
        await self.evidence.keep_advisories(messages)

    async def resume(self, stream: str) -> int:
        """Read the cursor of a stream, forget what was folded beyond it, and return the next sequence."""
        self.positions[stream] = await self.store.position(stream)
        (self.actions if stream == "ACTIONS" else self.remits).clear()
        return self.positions[stream].last_seq + 1

    def _committed(self, stream: str, batch: Batch) -> None:
        self.positions[stream] = type(self.positions[stream])(batch.last_seq, batch.head)
        for status, number in Counter(batch.statuses).items():
            if status != VALID:
                self.count(status, number)

    def _forget_actions(self, touched: Mapping[str, Tracked]) -> None:
        for action_id, tracked in touched.items():
            # Taken out and put back: the order of the dict is the order of last use.
            del self.actions[action_id]
            if tracked.state.chain and not is_closed(tracked):
                self.actions[action_id] = tracked
        while len(self.actions) > self.memory_actions:
            self.actions.pop(next(iter(self.actions)))

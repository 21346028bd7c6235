"""The handlers of audit: take a batch of messages, fold it, write it in one transaction, say which actions are finished."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from remit.errors import TransientError
from remit.ledger_chain import VALID, admit, evidence_from
from remit.projection.event_columns import addressed_to
from remit.projection.tracking import is_closed
from services.audit.project import Admitted, fold_actions, fold_remits, restore, restore_remit

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from remit.envelope import TrustedKey
    from remit.fold import RemitState
    from remit.projection.tracking import Tracked
    from remit.runtime.delivery import Inbound
    from services.audit.evidence import EvidenceStore
    from services.audit.project import Batch
    from services.audit.store import Position, Store

log = structlog.get_logger("audit.handlers")

NEWER = "version"
"""`verify_status` of an event that only a newer audit can read."""
MAX_REMITS = 4_096
"""Remits held in memory; the others are read back from their rows when an event of theirs comes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditHandlers:
    """One tenure of the active projector: the positions and the memory go with it when it ends.

    `count` is told each `verify_status` with its number; `sensitive` names the arguments of `tool.action` to hide. An event of
    a newer contract is kept as evidence with the status `version`, and `alarm` is told: a rebuild by a newer audit folds it.
    """

    trust: Mapping[str, TrustedKey]
    store: Store
    evidence: EvidenceStore
    sensitive: Callable[[str], Collection[str] | None]
    count: Callable[[str, int], None]
    alarm: Callable[[str], None]
    memory_actions: int
    positions: dict[str, Position] = field(default_factory=dict[str, "Position"])
    actions: dict[str, Tracked] = field(default_factory=dict[str, "Tracked"])
    remits: dict[str, RemitState] = field(default_factory=dict[str, "RemitState"])

    def admit(self, stream: str, messages: Sequence[Inbound]) -> list[Admitted]:
        """Do the checks that need no history; they take most of the time and may run in a thread."""
        admitted: list[Admitted] = []
        for message in messages:
            if message.seq is None or message.time is None:
                raise TransientError(f"a message of {stream} came without its place in the stream")
            evidence = evidence_from((message.seq, message.time), message.subject, message.body, message.headers)
            admitted.append(Admitted(evidence, *admit(evidence, self.trust)))
        return admitted

    async def on_actions(self, admitted: list[Admitted]) -> list[Tracked]:
        """Project contiguous messages of ACTIONS and return the actions that are finished and have no receipt yet."""
        ids = _addressed("ACTIONS", admitted)
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
        ids = _addressed("REMITS", admitted)
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
            if status == NEWER:
                log.error(
                    "events of a newer contract are kept unread; upgrade audit and rebuild",
                    stream=stream,
                    events=number,
                )
                self.alarm("newer_contract")

    def _forget_actions(self, touched: Mapping[str, Tracked]) -> None:
        for action_id, tracked in touched.items():
            # Taken out and put back: the order of the dict is the order of last use.
            del self.actions[action_id]
            if tracked.state.chain and not is_closed(tracked):
                self.actions[action_id] = tracked
        while len(self.actions) > self.memory_actions:
            self.actions.pop(next(iter(self.actions)))


def _addressed(stream: str, admitted: list[Admitted]) -> set[str]:
    found = (addressed_to(stream, item.evidence.subject, item.recorded) for item in admitted)
    return {subject_id for subject_id in found if subject_id is not None}

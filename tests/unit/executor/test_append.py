"""What the executor makes of a lost append: junk is stepped over, another's event wins, silence is no answer."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, cast

import pytest

from remit.errors import TransientError
from remit.events import ActionStarted
from remit.runtime.ledger import Draft, Superseded
from services.executor.handlers import ExecutorHandlers
from tests.support import factories as f

if TYPE_CHECKING:
    from remit.fold import ActionState

TOKENIZED = f.action_until(*f.APPROVED_PATH, "tokenized")
STARTED = f.action_until(*f.APPROVED_PATH, "tokenized", "started")
BEYOND_JUNK = replace(TOKENIZED, last_seq=TOKENIZED.last_seq + 1)
DRAFT = Draft(event=ActionStarted, data=cast(Any, None))


@dataclass(slots=True)
class Answers:
    """A ledger that answers appends with what each of them lost to, or None when it is stored."""

    lost_to: list[ActionState | None]
    asked: list[ActionState] = field(default_factory=list[Any])

    async def append(self, state: ActionState, _draft: Draft) -> ActionState:
        self.asked.append(state)
        lost = self.lost_to.pop(0)
        if lost is None:
            return STARTED
        raise Superseded(lost)


def handlers(ledger: Answers) -> ExecutorHandlers:
    parts = cast(Any, {**dict.fromkeys((part.name for part in fields(ExecutorHandlers)), None), "ledger": ledger})
    return ExecutorHandlers(**parts)


async def test_junk_that_came_first_is_stepped_over() -> None:
    ledger = Answers([BEYOND_JUNK, None])
    assert await handlers(ledger)._append(TOKENIZED, DRAFT) is STARTED
    assert ledger.asked == [TOKENIZED, BEYOND_JUNK]


async def test_an_event_that_came_first_wins() -> None:
    assert await handlers(Answers([STARTED]))._append(TOKENIZED, DRAFT) is STARTED


async def test_an_append_that_lost_to_nothing_is_tried_again_later() -> None:
    with pytest.raises(TransientError):
        await handlers(Answers([TOKENIZED]))._append(TOKENIZED, DRAFT)

"""One overdue action that cannot be read yet waits alone: the others expire."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

from remit.runtime.bus import NotUnderstoodError
from services.approval.sweeper import Sweeper
from tests.support import factories as f


@dataclass(slots=True)
class Books:
    """A ledger where one action holds an event of an unknown kid, and stores that know two overdue ones and no remit."""

    action_ids: tuple[str, ...] = ("unclear", "clear")
    now: Any = f.NOW
    closed: list[str] = field(default_factory=list[str])
    noted: int = 0

    async def overdue(self) -> Books:
        return self

    async def read(self, action_id: str) -> Any:
        if action_id == "unclear":
            raise NotUnderstoodError("names a kid that is not in the key file")
        return f.action_until("proposed")

    async def close(self, action_id: str) -> None:
        self.closed.append(action_id)

    async def spent(self, _limit: int) -> list[Any]:
        return []

    async def note_expired(self) -> None:
        self.noted += 1


async def test_an_action_that_is_not_understood_holds_up_no_other() -> None:
    books = Books()
    await Sweeper(ledger=cast(Any, books), store=cast(Any, books), remits=cast(Any, books), pause_s=1).sweep()
    assert (books.closed, books.noted) == (["clear"], 1)

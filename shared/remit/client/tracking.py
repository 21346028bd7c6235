"""Which notices belong to which waiting call: pure bookkeeping, no I/O.

A call believes only notices about an action that intake bound to its own bytes (`proposal_digest`), so a reused key can never
bring home another call's result. Notices are unordered and repeated; the most final one counts.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

from remit.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Generator

    from remit.proposal import Notice

_RANK = {"proposed": 0, "pending": 1, "unknown": 2, "rejected": 3, "refused": 3, "succeeded": 3, "failed": 3}
_FINAL = 2
"""An unknown outcome ends the wait as well: doubt is told, and asking later may tell more."""


class Tracked:
    """One call that somebody waits for."""

    def __init__(
        self, *, action_id: str, idempotency_key: str | None, digest: str | None, body: bytes | None = None
    ) -> None:
        """Start without news; without a digest the action is known to be ours already."""
        self.action_id, self.idempotency_key = action_id, idempotency_key
        self.digest, self.body = digest, body
        self.bound = digest is None
        self.latest: Notice | None = None
        self.throttled: Notice | None = None
        self.absences = 0
        self._early: Notice | None = None
        self._seen: set[tuple[str, str | None]] = set()
        self._moved = asyncio.Event()

    @property
    def answered(self) -> bool:
        """Whether intake said anything about these bytes."""
        return self.latest is not None or self.throttled is not None

    @property
    def final(self) -> Notice | None:
        """The notice that ends the wait, once there is one."""
        return self.latest if self.latest is not None and _RANK[self.latest.status] >= _FINAL else None

    def see(self, notice: Notice) -> None:
        """Take one notice into account; repeated and older ones change nothing."""
        seen = (notice.event_id, notice.proposal_digest)
        if seen in self._seen:
            return
        self._seen.add(seen)
        if notice.status == "rejected":
            self._rejected(notice)
        elif self.digest is not None and notice.proposal_digest == self.digest:
            self._bind(notice)
        elif notice.action_id == self.action_id:
            self._about_action(notice)

    def _rejected(self, notice: Notice) -> None:
        # Once bound an action exists for these bytes, so a refusal of a repetition says nothing about it.
        if self.bound or self.digest is None or notice.proposal_digest != self.digest:
            return
        if notice.reason is Reason.QUOTA_EXCEEDED:
            self.throttled = notice
        else:
            self.latest = notice
        self._moved.set()

    def _bind(self, notice: Notice) -> None:
        if notice.action_id is None:
            return
        early = self._early if notice.action_id == self.action_id else None
        self.bound, self.action_id, self.throttled, self._early = True, notice.action_id, None, None
        self._take(notice)
        if early is not None:
            self._take(early)

    def _about_action(self, notice: Notice) -> None:
        if self.bound:
            self._take(notice)
        elif self._early is None or _RANK[notice.status] >= _RANK[self._early.status]:
            self._early = notice

    def _take(self, notice: Notice) -> None:
        if self.latest is None or _RANK[notice.status] >= _RANK[self.latest.status]:
            self.latest = notice
        self._moved.set()

    async def moved(self, timeout_s: float) -> bool:
        """Wait for news; return whether some came in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._moved.wait()
        except TimeoutError:
            return False
        self._moved.clear()
        return True


class Desk:
    """All calls that somebody waits for right now, by digest of their bytes and by action."""

    def __init__(self) -> None:
        self._by_digest: dict[str, list[Tracked]] = {}
        self._by_action: dict[str, list[Tracked]] = {}

    @contextmanager
    def watching(self, tracked: Tracked) -> Generator[Tracked]:
        """Deliver notices to a call for as long as the block runs."""
        self._add(self._by_digest, tracked.digest, tracked)
        self._add(self._by_action, tracked.action_id, tracked)
        try:
            yield tracked
        finally:
            self._drop(self._by_digest, tracked.digest, tracked)
            self._drop(self._by_action, tracked.action_id, tracked)

    def deliver(self, notice: Notice) -> None:
        """Hand a notice to every call it concerns; nobody waiting is fine."""
        found = [
            *self._by_digest.get(notice.proposal_digest or "", ()),
            *self._by_action.get(notice.action_id or "", ()),
        ]
        for tracked in found:
            before = tracked.action_id
            tracked.see(notice)
            if tracked.action_id != before:
                self._drop(self._by_action, before, tracked)
                self._add(self._by_action, tracked.action_id, tracked)

    @staticmethod
    def _add(index: dict[str, list[Tracked]], key: str | None, tracked: Tracked) -> None:
        if key is not None:
            index.setdefault(key, []).append(tracked)

    @staticmethod
    def _drop(index: dict[str, list[Tracked]], key: str | None, tracked: Tracked) -> None:
        waiting = index.get(key or "", [])
        if tracked in waiting:
            waiting.remove(tracked)
        if key is not None and not waiting:
            index.pop(key, None)

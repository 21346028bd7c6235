"""How long a refusal by an unknown kid holds up its action: time enough for a changed key file, but not for ever.

Waiting for ever would let a service that was taken over stop every action with one message, and junk must not be able to.
Counted from when this replica first met the event, by its own monotonic clock: clocks that disagree shorten nothing.
Source: design, bus section 5 (fold rule: junk cannot block an action).
"""

from __future__ import annotations

from remit.clock import monotonic

PATIENCE_S = 60.0
"""Six times the pace at which the key file is read again (`trust.LOOK_EVERY_S`)."""
MAX_REMEMBERED = 4_096
"""The oldest is forgotten, and waited for once more when it is met again."""


class Patience:
    """Remembers when unreadable events were first met."""

    def __init__(self) -> None:
        self._met: dict[int, float] = {}

    def is_over(self, seq: int) -> bool:
        """Return whether the event at a sequence of the stream was waited for long enough."""
        met = self._met.setdefault(seq, monotonic())
        while len(self._met) > MAX_REMEMBERED:
            self._met.pop(next(iter(self._met)))
        return monotonic() - met >= PATIENCE_S

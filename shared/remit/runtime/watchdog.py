"""A service that cannot work must die: a thread reads time stamps that the event loop writes, and exits the process.

A thread, because the loop itself may be starved. A call into native code that keeps the interpreter's lock starves the thread
too, so a timer of the interpreter's own stands behind it. Exit codes: 70 not connected, 71 loop starved, 72 consumer missing or
drifted, 73 messages pending but nothing handled, 74 permissions violation, 1 interpreter held. Source: design, bus section 3.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from dataclasses import dataclass, field
from enum import IntEnum

LOOP_LIMIT_S = 20.0
CONNECTION_LIMIT_S = 30.0
PROGRESS_LIMIT_S = 60.0
HELD_LIMIT_S = 45.0
"""Longest time that this thread may get no turn; a host that stood still that long starts anew as well."""
GRACE_LIMIT_S = 45.0
"""Longest graceful stop before the process is ended hard; above every `graceful_timeout_s` default."""


class Exit(IntEnum):
    """Why the process ended itself."""

    NOT_CONNECTED = 70
    LOOP_STARVED = 71
    CONSUMER_DRIFT = 72
    NO_PROGRESS = 73
    PERMISSIONS = 74
    TASK_DIED = 75


def die(code: Exit, why: str) -> None:
    """End the process at once; the supervisor starts it again with back-off."""
    sys.stderr.write(
        f'{{"event": "exiting", "code": {int(code)}, "reason": "{code.name.lower()}", "detail": "{why}"}}\n'
    )
    sys.stderr.flush()
    os._exit(int(code))


@dataclass(slots=True)
class Flow:
    """What this process does with one durable consumer."""

    in_flight: int = 0
    progress_at: float = field(default_factory=time.monotonic)
    starving_since: float | None = None
    """Since when probes find messages waiting for this process although handlers are free; None while they do not."""


@dataclass(slots=True)
class Vitals:
    """What the loop stamps and the watchdog reads; seconds of the monotonic clock."""

    loop_beat: float = field(default_factory=time.monotonic)
    connected_at: float = field(default_factory=time.monotonic)
    progress_at: float = field(default_factory=time.monotonic)
    """Of work that no engine does, such as the projector's; counts for every flow."""
    flows: dict[str, Flow] = field(default_factory=dict[str, Flow])
    """By `STREAM/durable`."""
    waiting_for_dependency: bool = False
    """Still starting: the reason is logged, and restarting would not help."""
    stopping_since: float | None = None
    ended: bool = False
    """The run is over in good order, so there is nothing left to watch; a process may outlive it."""

    def flow(self, name: str) -> Flow:
        """Return the flow of a durable, made on first use."""
        return self.flows.setdefault(name, Flow())


class Watchdog(threading.Thread):
    """Reads the vitals each second."""

    def __init__(self, vitals: Vitals, *, held_limit_s: float = HELD_LIMIT_S) -> None:
        """Prepare a daemon thread; it never keeps the process alive by itself."""
        super().__init__(name="watchdog", daemon=True)
        self._vitals, self._held_limit_s = vitals, held_limit_s

    def run(self) -> None:
        """Look once a second until the run or the process ends."""
        while True:
            faulthandler.dump_traceback_later(self._held_limit_s, exit=True, file=sys.__stderr__ or sys.stderr)
            time.sleep(1.0)
            if self._vitals.ended:
                faulthandler.cancel_dump_traceback_later()
                return
            verdict = judge(self._vitals, time.monotonic())
            if verdict is not None:
                die(*verdict)


def judge(vitals: Vitals, at: float) -> tuple[Exit, str] | None:
    """Return why the process must end, or None. Pure, so that the limits can be tested."""
    if vitals.stopping_since is not None:
        overdue = at - vitals.stopping_since > GRACE_LIMIT_S
        return (Exit.LOOP_STARVED, "graceful stop took too long") if overdue else None
    if at - vitals.loop_beat > LOOP_LIMIT_S:
        return Exit.LOOP_STARVED, f"event loop beat is {at - vitals.loop_beat:.0f} s old"
    if not vitals.waiting_for_dependency and at - vitals.connected_at > CONNECTION_LIMIT_S:
        return Exit.NOT_CONNECTED, f"not connected to NATS for {at - vitals.connected_at:.0f} s"
    # The loop may add a flow at any moment, hence the copy.
    for name, flow in list(vitals.flows.items()):
        if flow.starving_since is None:
            continue
        idle_s = at - max(flow.starving_since, flow.progress_at, vitals.progress_at)
        if idle_s > PROGRESS_LIMIT_S:
            return Exit.NO_PROGRESS, f"messages of {name} wait, nothing handled for {idle_s:.0f} s"
    return None

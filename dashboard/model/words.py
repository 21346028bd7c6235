"""The words and spellings of the screen: one word per concept, times people can read, never a value of a row."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime, timedelta

VERDICTS = {"allow": "by rule", "ask": "asked", "deny": "blocked"}
RISKS = {"T1": "▽ T1 low", "T2": "○ T2 medium", "T3": "△ T3 high", "T4": "▲ T4 critical"}
"""Shape, tier and word, so that no meaning rests on colour alone."""
RISK_COLORS = {"T1": "gray", "T2": "blue", "T3": "orange", "T4": "red"}
EFFECTS = {
    "read": "only reads",
    "write": "changes something",
    "destructive": "destroys something",
}
UNDO = {
    "reversible": "can be undone",
    "compensable": "can be made up for, not undone",
    "irreversible": "**cannot be undone**",
}
DENY_REASONS = ("wrong target", "wrong amount or values", "not part of the task", "checked with the owner: no")
STOP_REASONS = ("suspicious behaviour", "wrong delegation", "incident response", "maintenance")


def duration(value: timedelta | float | None) -> str:
    """Return a duration in its largest useful unit: `850 ms`, `42 s`, `3:12 min`, `5 h 04`, `12 d`; `—` when unknown."""
    if value is None:
        return "—"
    seconds = value if isinstance(value, int | float) else value.total_seconds()
    if seconds < 1:
        return f"{max(0, seconds) * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"
    if seconds < 48 * 3600:
        return f"{int(seconds) // 3600} h {int(seconds) % 3600 // 60:02d}"
    return f"{int(seconds) // 86_400} d"


def clock(value: datetime | None) -> str:
    """Return the time of day with seconds, in the zone the value carries; `—` when unknown."""
    return value.strftime("%H:%M:%S") if value is not None else "—"


def until(value: datetime | None, now: datetime) -> str:
    """Return how long is left, or `over`."""
    if value is None:
        return "no limit"
    return duration(value - now) if value > now else "over"


def ago(value: datetime | None, now: datetime) -> str:
    """Return how long ago something was."""
    return f"{duration(now - value)} ago" if value is not None else "never"


def short_digest(value: str | None) -> str:
    """Return what people compare by eye: the first 12 characters of a digest without its algorithm."""
    return value.removeprefix("sha-256:")[:12] if value else "—"


def short_agent(value: str) -> str:
    """Return the last path segment of a SPIFFE id."""
    return value.rstrip("/").rsplit("/", 1)[-1]


def short_human(value: str | None) -> str:
    """Return the subject of `<iss>|<sub>`."""
    return value.rsplit("|", 1)[-1] if value else "unknown"


def percent(part: int, whole: int) -> str:
    """Return a share in whole percent; `—` of nothing."""
    return f"{100 * part / whole:.0f} %" if whole else "—"


def reason(code: str | None) -> str:
    """Return a reason code as words; codes are a closed list of our own."""
    if not code or not re.fullmatch(r"[a-z_]{1,60}", code):
        return "no reason given"
    return code.replace("_", " ")

"""Which differences between a stream or consumer and the table may be put right in place, which not. Pure."""

from __future__ import annotations

from typing import Any

FINAL_KEYS = frozenset({"name", "retention", "storage", "deliver_policy", "ack_policy", "replay_policy"})
"""What a stream or consumer is made with for life; another value is another stream."""
LIMIT_KEYS = frozenset({"max_bytes", "max_age", "max_msgs", "max_msgs_per_subject"})
"""Lowering one of these would let the broker delete stored messages."""
ROUTING_KEYS = frozenset({"mirror", "sources", "republish", "subject_transform"})
"""Carry messages in or out behind the permission lists; the table has none, so a stream that has one is put right."""
LOCK_KEYS = frozenset({"deny_delete", "deny_purge"})
"""Can be set, never lifted (the broker answers 10052)."""


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return (found, wanted) of every key we set that differs; the broker leaves out what is zero."""
    changed: dict[str, tuple[Any, Any]] = {}
    for key in {*wanted, *(key for key in ("filter_subject", "filter_subjects", *ROUTING_KEYS) if key in found)}:
        have, want = found.get(key) or None, wanted.get(key) or None
        if isinstance(have, list) and isinstance(want, list):
            have, want = sorted(have), sorted(want)
        if have != want:
            changed[key] = (found.get(key), wanted.get(key))
    return changed


def obstacle(key: str, found: object, wanted: object) -> str | None:
    """Return why a key may not change in place from what was found to what is wanted; None when it may."""
    if key in FINAL_KEYS:
        return "it is fixed when the stream or consumer is made"
    if key in LOCK_KEYS and found:
        return "it can be set but never lifted"
    if key in LIMIT_KEYS and _as_limit(wanted) < _as_limit(found):
        return "a lower limit could delete stored messages"
    if key == "subjects" and _as_set(found) - _as_set(wanted):
        return "a subject would no longer be stored"
    return None


def _as_limit(value: object) -> float:
    return value if isinstance(value, int) and value > 0 else float("inf")


def _as_set(value: object) -> set[object]:
    return set(value) if isinstance(value, list) else set()

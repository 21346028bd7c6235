"""Values as columns take them: bounded, without NUL, so that nothing a sender writes can stop the projector. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from remit.remits import Human

MAX_TEXT = 512
"""Characters of an indexed text column; an index entry of 2,704 bytes or more would be refused by Postgres."""
MAX_REMIT_ID = 64
_INT4 = 2**31 - 1


def clean(value: str, limit: int = MAX_TEXT) -> str:
    """Return text that Postgres stores: no NUL, at most `limit` characters."""
    return value.replace("\x00", "\ufffd")[:limit]


def clean_or_none(value: str | None, limit: int = MAX_TEXT) -> str | None:
    """Return the same for text that may be absent."""
    return None if value is None else clean(value, limit)


def texts(values: list[str]) -> list[str]:
    """Return a list of clean texts."""
    return [clean(value) for value in values]


def small(value: int) -> int:
    """Return a number that fits the column type integer."""
    return max(-_INT4, min(value, _INT4))


def milliseconds(start: datetime | None, end: datetime | None) -> int | None:
    """Return the whole milliseconds between two times, when both are known."""
    return None if start is None or end is None else small(int((end - start).total_seconds() * 1000))


def stamp(value: datetime | None) -> str | None:
    """Return a time as JSON carries it to Postgres."""
    return None if value is None else value.isoformat()


def instant(value: datetime) -> datetime | None:
    """Return a time in UTC, or None when its offset takes it out of the calendar, which no client library can send."""
    try:
        return value.astimezone(UTC)
    except OverflowError:
        return None


def numeric_date(value: int) -> str | None:
    """Return a token's NumericDate (RFC 7519 section 2) as a time, or None when it is no date at all."""
    try:
        return datetime.fromtimestamp(value, UTC).isoformat()
    except (OverflowError, ValueError, OSError):
        return None


def person(human: Human | None) -> str | None:
    """Return `<iss>|<sub>`, the spelling that stop rows use for a human as well."""
    return None if human is None else clean(f"{human.iss}|{human.sub}", 768)

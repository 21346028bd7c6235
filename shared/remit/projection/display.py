"""Takes secrets out of arguments before the display copy exists: what the registry marks, and what looks like a credential.

The rules are those of `remit.redaction`; only the marks differ. The signed bytes stay whole in the ledger; only what people are
shown passes through here. Source: design, dashboard section 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from remit import redaction

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from pydantic import JsonValue


def redact_arguments(
    arguments: Mapping[str, JsonValue], sensitive: Collection[str] | None = ()
) -> dict[str, JsonValue]:
    """Return the arguments as people may see them; `sensitive` are the top-level names marked x-remit-sensitive.

    None hides every value: nobody could say which of them are.
    """
    marked = arguments.keys() if sensitive is None else sensitive
    pointers = [redaction.pointer((name,)) for name in marked]
    clean = redaction.redact(dict(arguments), pointers, mark=hidden).value
    return cast("dict[str, JsonValue]", clean)  # an object stays one: the empty pointer is never given


def redact_text(value: str | None) -> str | None:
    """Return free text without anything that looks like a credential."""
    return None if value is None else redaction.redact_text(value, mark=hidden)


def hidden(value: JsonValue) -> str:
    """Return what stands in place of a secret; its length helps to tell an empty one from a long one."""
    return f"redacted ({len(value)} chars)" if isinstance(value, str) else "redacted"

"""Shapes: what two calls, grants or tasks have in common when their values are taken away. Pure.

Source: design, dashboard sections 2 (same shape), 3.6 (task text is normalised before hashing) and 3.8 (stable shape).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from remit.canonical import digest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import JsonValue

_QUOTED = re.compile(r"\"[^\"]*\"|'[^'\n]*'|`[^`]*`|“[^”]*”|„[^“]*“|«[^»]*»")
_WORD = re.compile(r"\S+")
_SPACE = re.compile(r"\s+")


def call_shape(tool: str, action: str, arguments: Mapping[str, JsonValue]) -> str:
    """Return the digest of a call without its values: which arguments, nested how, of which JSON types."""
    return digest({"tool": tool, "action": action, "arguments": _shape(dict(arguments))})


def grant_shape(tool: str, action: str, constraints: Mapping[str, JsonValue] | None) -> str:
    """Return the digest of a grant without its bounds: which keywords constrain which arguments."""
    shape = _shape(dict(constraints)) if constraints is not None else None
    return digest({"tool": tool, "action": action, "constraints": shape})


def task_shape(task: str) -> str:
    """Return the digest of a task's wording without what changes from task to task: numbers, ids, names with digits, quotes."""
    unquoted = _QUOTED.sub("…", task.casefold())
    words = _WORD.sub(lambda word: "#" if any(c.isdigit() for c in word.group()) else word.group(), unquoted)
    return digest(_SPACE.sub(" ", words).strip())


def _shape(value: JsonValue) -> JsonValue:
    if isinstance(value, dict):
        return {name: _shape(member) for name, member in value.items()}
    if isinstance(value, list):
        kinds = {digest(shape): shape for shape in map(_shape, value)}
        return [kinds[name] for name in sorted(kinds)]
    if isinstance(value, bool) or value is None:
        return "null" if value is None else "boolean"
    return "string" if isinstance(value, str) else "number"

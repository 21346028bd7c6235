"""Parsed Cedar conditions as data: what they look at. One node is one operator with its operands (Cedar policy JSON)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTEXT = {"Var": "context"}
ARGUMENTS = {".": {"left": CONTEXT, "attr": "args"}}


@dataclass(frozen=True, slots=True)
class Reads:
    """What conditions look at: keys of `context`, names in `context.args`; None means all of them.

    Cedar spends most of a decision on parsing the context, so it is given only what a rule can see.
    """

    keys: frozenset[str] | None
    arguments: frozenset[str] | None

    def joined(self, other: Reads) -> Reads:
        """Return what either looks at."""
        keys = None if self.keys is None or other.keys is None else self.keys | other.keys
        mine, theirs = self.arguments, other.arguments
        return Reads(keys, None if mine is None or theirs is None else mine | theirs)


def reads_of(conditions: object) -> Reads:
    """Return what parsed conditions look at; using `context` or `context.args` as a value reads all of it."""
    keys: set[str] = set()
    arguments: set[str] = set()
    whole_context = whole_arguments = False
    level: list[object] = [conditions]
    while level:
        node = level.pop()
        attribute, owner = access_of(node)
        if attribute is not None and owner == CONTEXT:
            keys.add(attribute)
            whole_arguments |= node == ARGUMENTS
        elif attribute is not None and owner == ARGUMENTS:
            keys.add("args")
            arguments.add(attribute)
        elif node == CONTEXT:
            whole_context = True
        else:
            level.extend(children(node))
    return Reads(None if whole_context else frozenset(keys), None if whole_arguments else frozenset(arguments))


def access_of(node: object) -> tuple[str | None, object]:
    """Return attribute and owner when a node is `owner.attribute` or `owner has attribute`."""
    for operator in (".", "has"):
        access = cast("dict[str, Any]", node).get(operator) if isinstance(node, dict) else None
        if isinstance(access, dict) and isinstance(cast("dict[str, Any]", access).get("attr"), str):
            inner = cast("dict[str, Any]", access)
            return inner["attr"], inner["left"]
    return None, None


def children(node: object) -> list[object]:
    """Return the parts of a node."""
    if isinstance(node, dict):
        return list(cast("dict[str, object]", node).values())
    return cast("list[object]", node) if isinstance(node, list) else []


def nodes(value: object) -> Iterator[dict[str, Any]]:
    """Yield every operator of parsed conditions, at any depth."""
    level: list[object] = [value]
    while level:
        item = level.pop()
        if isinstance(item, dict):
            yield cast("dict[str, Any]", item)
        level.extend(children(item))

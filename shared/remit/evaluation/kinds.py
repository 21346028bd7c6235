"""Which Cedar kinds conditions compare: a comparison between kinds that never meet refuses the bundle.

Cedar answers `==`, `!=` and `contains` between a long and a decimal without an error, and always alike: `forbid ... when
{ context.args.amount == 50 }` would let 50 pass when the schema says `number`. So literals are held against the action's schema.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any, cast

from remit.evaluation.conditions import nodes
from remit.evaluation.context import ANY_DECIMAL, CONTEXT_SHAPE, FRACTION, LONG, UNSHAPED, WHOLE, Shape

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_EQUALITY = ("==", "!=")
_MEMBERSHIP = ("contains", "containsAll", "containsAny")
_ORDER = {
    **dict.fromkeys(("<", "<=", ">", ">="), frozenset({LONG})),
    **dict.fromkeys(("lessThan", "lessThanOrEqual", "greaterThan", "greaterThanOrEqual"), ANY_DECIMAL),
}
"""What an ordering needs on both sides; anything else is an error each time it is evaluated."""
_ARITHMETIC = ("+", "-", "*", "neg")


def clash(conditions: object, arguments: Shape) -> str | None:
    """Return the first comparison that could never mean what it says for arguments of this shape, or None."""
    context = Shape(kinds=CONTEXT_SHAPE.kinds, properties={**CONTEXT_SHAPE.properties, "args": arguments})
    for node in nodes(conditions):
        for operator, operands in node.items():
            found = _found(operator, operands, context)
            if found is not None:
                return found
    return None


def _found(operator: str, operands: object, context: Shape) -> str | None:
    sides = _sides(operands)
    if sides is None:
        return None
    if operator in _ORDER:
        return _disordered(operator, [_shape(side, context) for side in sides])
    if operator in _EQUALITY or operator in _MEMBERSHIP:
        for left, right in _pairs(operator, *sides, context):
            if left is not None and right is not None and _never_equal(left, right):
                found = f"{_spelled(left.kinds)} with {_spelled(right.kinds)}"
                return f"`{operator}` compares {found}, which are never equal; {_HINT}"
    return None


_HINT = 'what a schema calls number is compared with decimal("50.0"), what it calls integer with 50'


def _sides(operands: object) -> tuple[object, object] | None:
    """Return the two operands of an operator (`left` and `right`) or of a method (a list of two)."""
    if isinstance(operands, dict):
        given = cast("dict[str, object]", operands)
        return (given["left"], given["right"]) if given.keys() == {"left", "right"} else None
    several = cast("list[object]", operands) if isinstance(operands, list) else []
    return (several[0], several[1]) if len(several) == 2 else None


def _disordered(operator: str, shapes: list[Shape | None]) -> str | None:
    wanted = _ORDER[operator]
    wrong = next((each for each in shapes if each is not None and each.kinds.isdisjoint(wanted)), None)
    return None if wrong is None else f"`{operator}` orders {_spelled(wanted)}, not {_spelled(wrong.kinds)}; {_HINT}"


def _pairs(operator: str, left: object, right: object, context: Shape) -> Iterator[tuple[Shape | None, Shape | None]]:
    """Yield what is compared: the operands of an equality, and the elements of sets where one of them is written out."""
    if operator in _EQUALITY:
        yield _shape(left, context), _shape(right, context)
        if _members(left) is not None or _members(right) is not None:
            yield from product(_elements(left, context), _elements(right, context))
    elif operator == "contains":
        yield from product(_elements(left, context), [_shape(right, context)])
    else:
        yield from product(_elements(left, context), _elements(right, context))


def _never_equal(left: Shape, right: Shape) -> bool:
    shared = left.kinds & right.kinds
    if len(shared) != 1 or "record" not in shared:
        return not shared
    names = left.properties.keys() & right.properties.keys()
    return any(_never_equal(left.properties[name], right.properties[name]) for name in names)


def _elements(node: object, context: Shape) -> list[Shape | None]:
    members = _members(node)
    if members is not None:
        return [_shape(member, context) for member in members]
    found = _shape(node, context)
    return [None if found is None else found.items or UNSHAPED]


def _members(node: object) -> list[object] | None:
    """Return the elements of a set that is written out."""
    return cast("dict[str, list[object]]", node)["Set"] if isinstance(node, dict) and "Set" in node else None


def _shape(node: object, context: Shape) -> Shape | None:
    """Return what an expression may become; None when this module cannot tell."""
    match cast("Any", node):
        case {"Var": "context"}:
            return context
        case {".": {"left": owner, "attr": str(name)}}:
            holder = _shape(owner, context)
            return None if holder is None else holder.properties.get(name, UNSHAPED)
        case {"Value": value}:
            return _literal(value)
        case {"decimal": [{"Value": str(text)}]}:
            return Shape(kinds=frozenset({FRACTION if text.partition(".")[2].strip("0") else WHOLE}))
        case {"Set": _}:
            return Shape(kinds=frozenset({"set"}))
        case {"Record": dict(fields)}:
            return _record(cast("dict[str, object]", fields), context)
        case dict(other) if not cast("dict[str, object]", other).keys().isdisjoint(_ARITHMETIC):
            return Shape(kinds=frozenset({LONG}))
        case _:
            return None


def _literal(value: object) -> Shape:
    match value:
        case bool():
            kind = "boolean"
        case int():
            kind = LONG
        case str():
            kind = "string"
        case _:
            kind = "entity"
    return Shape(kinds=frozenset({kind}))


def _record(fields: dict[str, object], context: Shape) -> Shape:
    known = ((name, _shape(part, context)) for name, part in fields.items())
    return Shape(kinds=frozenset({"record"}), properties={name: shape for name, shape in known if shape is not None})


def _spelled(kinds: Iterable[str]) -> str:
    return " or ".join(sorted(kinds)) or "null"

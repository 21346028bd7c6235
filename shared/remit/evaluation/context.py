"""What a Cedar policy sees in `context`. This list is a contract: policies in the field are written against it.

    human               record {iss, sub}
    remit               record {id, task, environment, max_calls}
    grant               record {number, max_calls?}: the grant that covers the call, 1-based
    risk                "T1" | "T2" | "T3" | "T4"
    effect              "read" | "write" | "destructive"
    reversibility       "reversible" | "compensable" | "irreversible"
    environment         environment of the tool
    args                record of the call's arguments, by name
    unnamed_sinks       set of the names of arguments whose destination nobody named
    unnamed_sink_count  long: how many those are
    session             the agent's session
    time                record {epoch: seconds, hour: 0-23 UTC, weekday: 1 Monday - 7 Sunday}
    approval            record {count, groups}, present only when people approved these exact arguments, or while Remit asks
                        whether their approval would be enough; every counted person holds one of the groups

Principal is `Agent::"<name>"`, action `Action::"<tool>.<action>"` inside the groups `Action::"effect:<effect>"`,
`Action::"tool:<tool>"` and `Action::"risk:<tier>"`, resource `Resource::"<value of the x-remit-resource argument, else the
tool's name>"` inside `Tool::"<tool>"`.

Arguments become Cedar values by their *schema*, because `100` and `100.0` are one JSON number with one digest: what the
schema calls `number` is a decimal with four digits, what it calls `integer` a long; where it says neither, a whole number
is a long and any other a decimal. A number that is no such decimal becomes its JSON text: it equals no decimal, which is true,
and ordering it (`lessThan`) is an error, which denies. Between different kinds `==`, `!=` and `contains` are no error: they
answer as for any two different values. So a comparison of kinds that never meet, such as `context.args.amount == 50` with a
`number`, refuses the bundle (`remit.evaluation.kinds`). Nulls are absent. An argument a caller may leave out must be tested
first: `context.args has amount && ...`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from remit.canonical import canonical
from remit.errors import RemitError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from remit.evaluation.grants import CompiledGrant
    from remit.remits import RemitDocument

RESERVED = frozenset({"__entity", "__extn", "__expr"})
"""Cedar's JSON escapes: an argument with such a key would become an entity or a call instead of data."""
MAX_DECIMAL_WHOLE = 922_337_203_685_476
"""Largest whole part that fits every fraction: Cedar's decimal is a 64-bit integer of ten-thousandths."""
DECIMAL_DIGITS = 4


class ReservedKeyError(RemitError):
    """An argument uses a key that Cedar's JSON form reserves; the value cannot be shown to policy as data."""


LONG, WHOLE, FRACTION = "long", "whole decimal", "fractional decimal"
"""Kinds of numbers: where a schema says neither number nor integer, a whole number never becomes a decimal."""
ANY_DECIMAL = frozenset({WHOLE, FRACTION})
UNTYPED = frozenset({LONG, FRACTION, "string", "boolean", "set", "record"})
_KINDS_OF: dict[object, frozenset[str]] = {
    "number": ANY_DECIMAL,
    "integer": frozenset({LONG}),
    "string": frozenset({"string"}),
    "boolean": frozenset({"boolean"}),
    "array": frozenset({"set"}),
    "object": frozenset({"record"}),
}


@dataclass(frozen=True, slots=True)
class Shape:
    """What a schema says about the Cedar value of a JSON value, its numbers above all."""

    number: bool = False
    kinds: frozenset[str] = UNTYPED
    """Kinds it may become."""
    properties: Mapping[str, Shape] = field(default_factory=dict[str, "Shape"])
    items: Shape | None = None


UNSHAPED = Shape()


def shape_of(schema: object) -> Shape:
    """Return the number typing of a schema; only `type`, `properties` and `items` are followed."""
    if not isinstance(schema, dict):
        return UNSHAPED
    part = cast("dict[str, Any]", schema)
    types = part.get("type")
    names = cast("list[object]", types) if isinstance(types, list) else [types]
    properties = part.get("properties")
    return Shape(
        number="number" in names,
        kinds=_kinds(names),
        properties={
            name: shape_of(inner)
            for name, inner in (cast("dict[str, Any]", properties) if isinstance(properties, dict) else {}).items()
        },
        items=shape_of(part["items"]) if "items" in part else None,
    )


def _kinds(types: Sequence[object]) -> frozenset[str]:
    if None in types:
        return UNTYPED
    # Beside `number`, `integer` adds nothing: every number of the value is shown as a decimal.
    named = [name for name in types if name != "integer" or "number" not in types]
    return frozenset[str]().union(*(_KINDS_OF.get(name, frozenset()) for name in named))


def cedar_value(value: object, shape: Shape) -> Any:  # noqa: ANN401  (JSON in, Cedar JSON out)
    """Return the Cedar JSON form of an argument value.

    Raises:
        ReservedKeyError: a record holds one of Cedar's escapes.

    """
    if isinstance(value, str | bool):
        return value
    if isinstance(value, int | float):
        return _number(value, shape)
    if isinstance(value, list):
        inner = shape.items or UNSHAPED
        return [cedar_value(item, inner) for item in cast("list[object]", value) if item is not None]
    return cedar_record(cast("Mapping[str, object]", value), shape)


def cedar_record(values: Mapping[str, object], shape: Shape) -> dict[str, Any]:
    """Return the Cedar JSON form of an object: escapes refused, nulls absent.

    Raises:
        ReservedKeyError: a key is one of Cedar's escapes.

    """
    if not RESERVED.isdisjoint(values):
        raise ReservedKeyError("an argument uses one of the reserved keys __entity, __extn, __expr")
    known = shape.properties
    return {key: cedar_value(value, known.get(key, UNSHAPED)) for key, value in values.items() if value is not None}


def _number(value: float, shape: Shape) -> Any:  # noqa: ANN401  (long, decimal escape or text)
    if not shape.number and (isinstance(value, int) or value.is_integer()):
        return int(value)
    text = f"{value}.0" if isinstance(value, int) else repr(value + 0.0)
    whole, _, fraction = text.partition(".")
    # repr() turns to exponents below 1e-4 and from 1e16 on, where no four-digit decimal exists either.
    if "e" in text or len(fraction) > DECIMAL_DIGITS or abs(int(whole)) > MAX_DECIMAL_WHOLE:
        return canonical(value).decode()
    return {"__extn": {"fn": "decimal", "arg": text}}


def time_record(now: datetime) -> dict[str, int]:
    """Return `context.time`; `now` is UTC."""
    return {"epoch": int(now.timestamp()), "hour": now.hour, "weekday": now.isoweekday()}


def remit_record(document: RemitDocument) -> dict[str, Any]:
    """Return `context.remit`."""
    return {
        "id": document.remit_id,
        "task": document.task,
        "environment": document.environment,
        "max_calls": document.max_calls,
    }


def grant_record(grant: CompiledGrant) -> dict[str, int]:
    """Return `context.grant`."""
    limit = grant.grant.max_calls
    return {"number": grant.number} if limit is None else {"number": grant.number, "max_calls": limit}


_TEXT, _COUNT = Shape(kinds=_KINDS_OF["string"]), Shape(kinds=_KINDS_OF["integer"])
_TEXTS = Shape(kinds=_KINDS_OF["array"], items=_TEXT)


def _record_of(**properties: Shape) -> Shape:
    return Shape(kinds=_KINDS_OF["object"], properties=properties)


CONTEXT_SHAPE = _record_of(
    human=_record_of(iss=_TEXT, sub=_TEXT),
    remit=_record_of(id=_TEXT, task=_TEXT, environment=_TEXT, max_calls=_COUNT),
    grant=_record_of(number=_COUNT, max_calls=_COUNT),
    risk=_TEXT,
    effect=_TEXT,
    reversibility=_TEXT,
    environment=_TEXT,
    args=_record_of(),
    unnamed_sinks=_TEXTS,
    unnamed_sink_count=_COUNT,
    session=_TEXT,
    time=_record_of(epoch=_COUNT, hour=_COUNT, weekday=_COUNT),
    approval=_record_of(count=_COUNT, groups=_TEXTS),
)
"""The kinds of everything in `context`; those of `args` come from the action's schema."""
KEYS = frozenset(CONTEXT_SHAPE.properties)
"""Everything a policy may read; another key is refused when the bundle is compiled."""

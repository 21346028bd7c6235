"""A grant's schema as its human means it, where JSON Schema alone says less.

JSON Schema lets a limit pass whatever it does not speak of: `maximum` passes every text, and a constraint on an argument passes
a call that leaves the argument out, so that the tool's default applies instead. Under a remit a constrained argument must be
there, and be of the type its constraint speaks of; null passes only where the constraint itself names null.
"""

from __future__ import annotations

from typing import Any, cast

_SPEAKS_OF = {
    "number": ("maximum", "minimum", "exclusiveMaximum", "exclusiveMinimum", "multipleOf"),
    "string": ("pattern", "maxLength", "minLength", "format"),
    "array": ("items", "prefixItems", "contains", "maxItems", "minItems", "uniqueItems", "unevaluatedItems"),
    "object": (
        "properties", "patternProperties", "additionalProperties", "propertyNames", "required", "maxProperties",
        "minProperties", "dependentRequired", "dependentSchemas", "unevaluatedProperties",
    ),
}  # fmt: skip
"""Keywords that say nothing about values of another type (JSON Schema 2020-12, validation section 6)."""
_ANNOTATIONS = frozenset(
    {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment", "$id", "$anchor"}
)
_MAPS = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SINGLES = ("items", "additionalProperties", "contains", "then", "else", "unevaluatedItems", "unevaluatedProperties")
# `if` and `not` are left as they stand: a stricter question there would be a laxer answer.


def as_meant(schema: object) -> Any:  # noqa: ANN401  (a JSON Schema, object or boolean)
    """Return the stricter reading of a schema; the caller holds arguments against both, so that nothing gets laxer."""
    if not isinstance(schema, dict):
        return schema
    given = cast("dict[str, Any]", schema)
    part = {keyword: _inside(keyword, value) for keyword, value in given.items()}
    constrained = _constrained(_mapping(given.get("properties")))
    if constrained:
        declared: list[str] = given.get("required", [])
        part["required"] = [*declared, *(name for name in constrained if name not in declared)]
    return _typed(part)


def _inside(keyword: str, value: object) -> object:
    if keyword in _MAPS:
        return {name: as_meant(each) for name, each in _mapping(value).items()}
    if keyword in _LISTS and isinstance(value, list):
        return [as_meant(each) for each in cast("list[object]", value)]
    return as_meant(value) if keyword in _SINGLES else value


def _mapping(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _constrained(properties: dict[str, Any]) -> list[str]:
    """Return the names a schema really limits; `false` demands absence, and `true` or a description limits nothing."""
    return [name for name, part in properties.items() if not _ANNOTATIONS.issuperset(_mapping(part))]


def _typed(part: dict[str, Any]) -> Any:  # noqa: ANN401  (an object or `false`)
    """Return the schema with the types its keywords speak of, or `false` when it declares only others."""
    spoken = {kind for kind, keywords in _SPEAKS_OF.items() if not part.keys().isdisjoint(keywords)}
    if not spoken:
        return part
    declared: object = part.get("type")
    if declared is None:
        return {**part, "type": sorted(spoken)}
    wider = spoken | {"null"} | ({"integer"} if "number" in spoken else set[str]())
    kinds = cast("list[str]", declared) if isinstance(declared, list) else [cast("str", declared)]
    kept = [kind for kind in kinds if kind in wider]
    return {**part, "type": kept} if kept else False

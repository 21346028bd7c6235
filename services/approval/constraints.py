"""Whether a constraint written by a person limits what they think it limits, pure.

JSON Schema ignores what it does not know, so a misspelt keyword or argument would limit nothing. Constraints therefore
consist of a closed list of keywords, speak only of arguments the action has, and of values of the kind those have.
Source: design, standards section 2.2; JSON Schema 2020-12, core section 6.5 and validation section 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from remit.evaluation.schemas import pointer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

ANNOTATIONS = frozenset({"$schema", "$comment", "title", "description"})
GENERAL = frozenset({"type", "enum", "const"})
BY_KIND: dict[str, frozenset[str]] = {
    "number": frozenset({"maximum", "minimum", "exclusiveMaximum", "exclusiveMinimum", "multipleOf"}),
    "string": frozenset({"pattern", "maxLength", "minLength", "format"}),
    "array": frozenset(
        {"items", "prefixItems", "contains", "maxContains", "minContains", "maxItems", "minItems", "uniqueItems"}
    ),
    "object": frozenset(
        {"properties", "additionalProperties", "required", "dependentRequired", "maxProperties", "minProperties"}
    ),
}
"""Keywords by the only kind of value they limit."""
KIND_OF = {keyword: kind for kind, keywords in BY_KIND.items() for keyword in keywords}
LISTS, SINGLES = frozenset({"allOf", "anyOf", "oneOf"}), frozenset({"not", "if", "then", "else"})
KEYWORDS = ANNOTATIONS | GENERAL | KIND_OF.keys() | LISTS | SINGLES
FORMATS = frozenset(
    {"date", "date-time", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uri-reference", "uuid"}
)
"""An unknown format is ignored by every validator."""
NEEDS = {
    "then": ("if",),
    "else": ("if",),
    "if": ("then", "else"),
    "minContains": ("contains",),
    "maxContains": ("contains",),
}
"""Keywords that say nothing alone."""
MAX_REFERENCES = 32

Schema = dict[str, Any]


class _FlawError(Exception):
    """Found on the way down, answered at the top."""

    def __init__(self, path: list[str | int], what: str) -> None:
        super().__init__(what)
        self.where, self.what = pointer(path), what


@dataclass(frozen=True, slots=True)
class _Registered:
    """What the action's schema says of one place; `options` are the schemas that may apply there, none if unknown."""

    root: Schema
    options: tuple[Schema, ...]

    @classmethod
    def at(cls, root: Schema, schema: object) -> _Registered:
        return cls(root, tuple(_options(root, schema, MAX_REFERENCES)))

    def kinds(self) -> frozenset[str] | None:
        """Return the kinds of value possible here, or None when the schema does not say."""
        found: set[str] = set()
        for option in self.options:
            declared = option.get("type")
            if declared is None:
                return None
            found.update(cast("list[str]", declared) if isinstance(declared, list) else [str(declared)])
        return frozenset("number" if kind == "integer" else kind for kind in found) or None

    def names(self) -> frozenset[str] | None:
        """Return the members an object here may have, or None when any is possible."""
        known: set[str] = set()
        objects = [option for option in self.options if option.get("type", "object") == "object"]
        for option in objects:
            listed = "properties" in option or option.get("additionalProperties") is False
            if not listed or option.get("additionalProperties", False) is not False:
                return None
            if "patternProperties" in option or "allOf" in option:
                return None
            known.update(_mapping(option.get("properties")))
        return frozenset(known) if objects else None

    def member(self, name: str) -> _Registered:
        parts = [_mapping(option.get("properties")).get(name) for option in self.options]
        return self._joined([part for part in parts if part is not None])

    def element(self) -> _Registered:
        return self._joined([option["items"] for option in self.options if "items" in option])

    def _joined(self, parts: list[object]) -> _Registered:
        found = [option for part in parts for option in _options(self.root, part, MAX_REFERENCES)]
        return _Registered(self.root, tuple(found))


def _options(root: Schema, schema: object, left: int) -> list[Schema]:
    """Return the alternatives of a registered schema, its local references followed.

    A schema that says type or members itself is one alternative, whatever else it demands.
    """
    if not isinstance(schema, dict) or left == 0:
        return []
    part = cast("Schema", schema)
    reference = part.get("$ref")
    if isinstance(reference, str):
        return _options(root, _referred(root, reference), left - 1)
    branches: list[object] = [branch for name in ("anyOf", "oneOf") for branch in part.get(name, [])]
    if not branches or not part.keys().isdisjoint({"type", "properties"}):
        return [part]
    return [option for branch in branches for option in _options(root, branch, left - 1)]


def _referred(root: Schema, reference: str) -> object:
    found: object = root
    for token in reference.removeprefix("#").strip("/").split("/"):
        found = _mapping(found).get(token.replace("~1", "/").replace("~0", "~")) if token else found
    return found


def _mapping(value: object) -> Schema:
    return cast("Schema", value) if isinstance(value, dict) else {}


def constraint_flaw(constraint: object, arguments: Schema) -> tuple[str, str] | None:
    """Return (JSON pointer, what is wrong) of the first part that would not limit, or None.

    `constraint` must be a valid JSON Schema; `arguments` is the action's schema in the registry.
    """
    try:
        _check(constraint, _Registered.at(arguments, arguments), [])
    except _FlawError as flaw:
        return flaw.where, flaw.what
    return None


def _check(constraint: object, place: _Registered, path: list[str | int]) -> None:
    part = _mapping(constraint)
    for keyword, value in part.items():
        here = [*path, keyword]
        flaw = _useless(keyword, part, place.kinds())
        if flaw is not None or (keyword == "$schema" and path):
            raise _FlawError(here, flaw or "stands at the top only")
        for name in _named(keyword, value):
            _known(name, place, [*here, name] if keyword == "properties" else here)
        for further, inner, where in _parts(keyword, value, place):
            _check(inner, where, [*here, *further])


def _useless(keyword: str, part: Schema, kinds: frozenset[str] | None) -> str | None:
    """Return why a keyword limits nothing where it stands, or None."""
    if keyword not in KEYWORDS:
        return "is no keyword that constraints may use; compare its spelling"
    kind = KIND_OF.get(keyword)
    if kind is not None and kinds is not None and kind not in kinds:
        return f"limits only a value of type {kind}, here it is {' or '.join(sorted(kinds))}"
    if keyword == "format" and part[keyword] not in FORMATS:
        return f"is no format that is checked; known: {', '.join(sorted(FORMATS))}"
    needed = NEEDS.get(keyword, (keyword,))
    return None if any(other in part for other in needed) else f"says nothing without {' or '.join(needed)}"


def _named(keyword: str, value: Any) -> Iterable[str]:  # noqa: ANN401  (JSON of the keyword's own shape)
    """Return the members of an object that a keyword speaks of by name."""
    if keyword == "dependentRequired":
        return [*value, *(other for others in value.values() for other in others)]
    return value if keyword in {"properties", "required"} else ()


def _parts(keyword: str, value: Any, place: _Registered) -> Iterator[tuple[Sequence[str | int], object, _Registered]]:  # noqa: ANN401  (as above)
    """Yield the constraints inside a keyword: where they stand, and the registered place they are about."""
    if keyword == "properties":
        yield from (([name], part, place.member(name)) for name, part in value.items())
    elif keyword == "prefixItems":
        yield from (([number], part, place.element()) for number, part in enumerate(value))
    elif keyword in LISTS:
        yield from (([number], part, place) for number, part in enumerate(value))
    elif keyword in {"items", "contains"}:
        yield [], value, place.element()
    elif keyword == "additionalProperties":
        yield [], value, _Registered(place.root, ())
    elif keyword in SINGLES:
        yield [], value, place


def _known(name: str, place: _Registered, path: list[str | int]) -> None:
    names = place.names()
    if names is not None and name not in names:
        known = ", ".join(sorted(names)) or "none"
        raise _FlawError(path, f"speaks of {name}, which the action does not have; known: {known}")

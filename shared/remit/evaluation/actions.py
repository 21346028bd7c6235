"""One registered action, ready to judge calls: validators, sinks, resource, pin and its slice of the policies."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from remit.bundle import schema_digest
from remit.canonical import canonical
from remit.errors import BundleError
from remit.evaluation.context import RESERVED, Shape, shape_of
from remit.evaluation.schemas import SchemaRefusedError, compile_schema, violation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jsonschema_rs import Validator

    from remit.bundle import ActionEntry, ToolEntry

MARKS = ("x-remit-sink", "x-remit-sensitive", "x-remit-resource")
OPENINGS = ("patternProperties", "propertyNames")
"""Keywords that let in arguments, or seem to judge them, which no entry of `properties` describes or marks."""
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_POINTER = re.compile(r"(?:/(?:[^~/]|~[01])*)*")
"""RFC 6901 section 3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledAction:
    """What services ask about an action; built once per bundle."""

    id: str
    """`tool.action`, also the Cedar action and the scope."""
    name: str
    tool: ToolEntry
    entry: ActionEntry
    schema_digest: str
    """Registry pin that tokens carry; drift refuses."""
    location: str
    """Where the call goes: the tool's endpoint, or its resource identifier when nothing is called."""
    arguments: Validator
    result: Validator | None
    shape: Shape
    sinks: tuple[str, ...]
    """Arguments that name a destination."""
    sensitive: frozenset[str]
    """Arguments whose values are redacted on display."""
    resource_argument: str | None

    def violation(self, arguments: object) -> str | None:
        """Return `/path: keyword` of the first rule of the arguments schema that is broken, or None."""
        return violation(self.arguments, arguments)

    def result_violation(self, result: object) -> str | None:
        """Return `/path: keyword` of the first rule of the result schema that is broken, or None."""
        return None if self.result is None else violation(self.result, result)

    def resource_id(self, arguments: Mapping[str, object]) -> str | None:
        """Return the value of the argument that names the resource, as text, or None when nothing names one."""
        value = None if self.resource_argument is None else arguments.get(self.resource_argument)
        if value is None or isinstance(value, str):
            return value
        return canonical(value).decode()


def compile_action(tool: ToolEntry, name: str) -> CompiledAction:
    """Compile one action of a tool.

    Raises:
        BundleError: naming the entry, what was found and what was expected.

    """
    entry = tool.actions[name]
    where = f"tools/{tool.tool}: action {name}"
    properties = _properties(where, entry)
    _check_http(where, tool, entry, properties)
    _check_templates(where, entry, properties)
    marked = {mark: _marked(where, properties, mark) for mark in MARKS}
    resources = marked["x-remit-resource"]
    if len(resources) > 1:
        raise BundleError(f"{where}: x-remit-resource on {', '.join(resources)}; expected at most one argument")
    return CompiledAction(
        id=f"{tool.tool}.{name}",
        name=name,
        tool=tool,
        entry=entry,
        schema_digest=schema_digest(tool, name),
        location=tool.endpoint or tool.resource,
        arguments=_compiled(where, "arguments", entry.arguments),
        result=None if entry.result is None else _compiled(where, "result", entry.result),
        shape=shape_of(entry.arguments),
        sinks=marked["x-remit-sink"],
        sensitive=frozenset(marked["x-remit-sensitive"]),
        resource_argument=resources[0] if resources else None,
    )


def _compiled(where: str, which: str, schema: dict[str, Any]) -> Validator:
    try:
        return compile_schema(schema)
    except SchemaRefusedError as refusal:
        raise BundleError(f"{where}: {which}: {refusal}") from None


def _properties(where: str, entry: ActionEntry) -> dict[str, dict[str, Any]]:
    schema: dict[str, Any] = entry.arguments
    if schema.get("type") != "object":
        raise BundleError(f"{where}: arguments: type is {schema.get('type')!r}; expected 'object'")
    if schema.get("additionalProperties") is not False:
        raise BundleError(f"{where}: arguments: additionalProperties is not false; unknown arguments must be refused")
    opening = next((keyword for keyword in OPENINGS if keyword in schema), None)
    if opening is not None:
        raise BundleError(f"{where}: arguments: {opening} is set; describe each argument by its name in properties")
    found: object = schema.get("properties", {})
    properties = cast("dict[str, object]", found) if isinstance(found, dict) else {}
    reserved = sorted(RESERVED.intersection(properties))
    if reserved:
        raise BundleError(f"{where}: arguments: {reserved[0]} is reserved by Cedar; rename the argument")
    result = {name: cast("dict[str, Any]", part) if isinstance(part, dict) else {} for name, part in properties.items()}
    stray = _stray_mark({**schema, "properties": {n: _without_marks(p) for n, p in result.items()}})
    if stray:
        raise BundleError(f"{where}: arguments: {stray} stands below a property; mark the top-level argument instead")
    return result


def _without_marks(part: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in part.items() if key not in MARKS}


def _stray_mark(value: object) -> str | None:
    """Return a mark that nothing would honour: a forgotten sink is worse than a refused bundle."""
    level: list[object] = [value]
    while level:
        item = level.pop()
        if isinstance(item, dict):
            mapping = cast("dict[str, object]", item)
            found = next((key for key in mapping if key.startswith("x-remit-")), None)
            if found is not None:
                return found
            level.extend(mapping.values())
        elif isinstance(item, list):
            level.extend(cast("list[object]", item))
    return None


def _marked(where: str, properties: dict[str, dict[str, Any]], mark: str) -> tuple[str, ...]:
    names: list[str] = []
    for name, part in properties.items():
        flag = part.get(mark, False)
        if not isinstance(flag, bool):
            raise BundleError(f"{where}: argument {name}: {mark} is {flag!r}; expected true or false")
        if flag:
            names.append(name)
    return tuple(names)


def _check_http(where: str, tool: ToolEntry, entry: ActionEntry, properties: Mapping[str, object]) -> None:
    if tool.connector != "http":
        return
    if entry.http is None:
        raise BundleError(f"{where}: http is missing; an action of an http tool needs method and path")
    declared: object = entry.arguments.get("required", [])
    required = cast("list[object]", declared) if isinstance(declared, list) else []
    for name in _PLACEHOLDER.findall(entry.http.path):
        if name not in properties or name not in required:
            raise BundleError(f"{where}: http.path names {{{name}}}; expected a required argument")


def _check_templates(where: str, entry: ActionEntry, properties: Mapping[str, object]) -> None:
    for name in _PLACEHOLDER.findall(entry.summary or ""):
        if name not in properties:
            raise BundleError(f"{where}: summary names {{{name}}}; expected one of {', '.join(sorted(properties))}")
    for path in entry.redact:
        if not _POINTER.fullmatch(path):
            raise BundleError(f"{where}: redact: {path!r} is not a JSON pointer (RFC 6901)")

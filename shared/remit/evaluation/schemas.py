"""JSON Schema 2020-12 as Remit uses it: compiled once, no reference is ever fetched, patterns run in linear time.

A refusal names where and which keyword; it never quotes a value, because values are the agent's or the tool's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jsonschema_rs

from remit.canonical import canonical
from remit.errors import CanonicalError, RemitError

if TYPE_CHECKING:
    from jsonschema_rs import Validator

DIALECT = "https://json-schema.org/draft/2020-12/schema"
MAX_SCHEMA_BYTES = 65_536
"""A larger schema is nobody's readable contract, and compiling is the attack surface (design, standards section 2.2)."""
MAX_WHERE = 120
"""Characters of a path in a message; below free-form objects the keys are the agent's text."""


class SchemaRefusedError(RemitError):
    """A JSON Schema cannot be used; the message says why, without the place, which the caller adds."""


def compile_schema(schema: object) -> Validator:
    """Return a validator that asserts formats, resolves only local references and matches patterns in linear time.

    Raises:
        SchemaRefusedError: another dialect, too large, invalid, or a reference that leaves the document.

    """
    if not isinstance(schema, dict):
        raise SchemaRefusedError("a schema is an object here")
    document: dict[str, Any] = schema  # pyright: ignore[reportUnknownVariableType]  (checked by the compiler below)
    if document.get("$schema", DIALECT) != DIALECT:
        raise SchemaRefusedError(f"$schema must be absent or {DIALECT}")
    try:
        if len(canonical(document)) > MAX_SCHEMA_BYTES:
            raise SchemaRefusedError(f"larger than {MAX_SCHEMA_BYTES} bytes")
        return jsonschema_rs.Draft202012Validator(
            document,
            offline=True,
            validate_formats=True,
            # The back-tracking engine gives up on hostile input, and under `not` giving up would read as a match.
            pattern_options=jsonschema_rs.RegexOptions(),
        )
    except (CanonicalError, jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
        reason = str(error).split("\n", 1)[0]
        raise SchemaRefusedError(f"not a usable JSON Schema 2020-12: {reason}") from None


def violation(validator: Validator, value: object) -> str | None:
    """Return `/path: keyword` of the first rule that `value` breaks, or None; what is missing is named, the schema names it."""
    if validator.is_valid(value):
        return None
    for error in validator.iter_errors(value):
        where, kind = pointer(error.instance_path), error.kind
        missing = f" {kind.property}" if isinstance(kind, jsonschema_rs.ValidationErrorKind.Required) else ""
        return f"{where or '/'}: {kind.name}{missing}"
    return "/: invalid"


def pointer(path: list[str | int]) -> str:
    """Return the JSON pointer of a path, cut to a readable length (RFC 6901)."""
    text = "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)
    return text if len(text) <= MAX_WHERE else text[:MAX_WHERE] + "…"

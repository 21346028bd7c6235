"""Delegation on the screen: reads the terms a person typed, and says in plain words what would be enforced.

The words come from the grants, never from the form. Source: design, dashboard section 3.2.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import yaml
from pydantic import ValidationError

from remit.canonical import canonical, strict_loads
from remit.errors import CanonicalError, RemitError
from remit.remits import RemitTerms

if TYPE_CHECKING:
    from datetime import datetime

    from remit.remits import Grant

MAX_TEXT = 100_000


class TermsError(RemitError):
    """The typed terms cannot be read; the message names the place and quotes no value."""


class _Loader(yaml.SafeLoader):
    """YAML without timestamps (strict models parse their own) and without a second value for a key."""

    yaml_implicit_resolvers = {  # noqa: RUF012  (pyyaml's own spelling)
        first: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:timestamp"]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT002  (pyyaml)
        """Refuse duplicate keys: a grant must not have two readings."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if len(keys) != len({str(key) for key in keys}):
            raise yaml.constructor.ConstructorError(None, None, "a key appears twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)


def parse_terms(text: str) -> RemitTerms:
    """Return the terms of YAML or JSON text.

    Raises:
        TermsError: not readable, ambiguous, or not what a remit consists of.

    """
    if len(text) > MAX_TEXT:
        raise TermsError(f"the terms have {len(text)} characters; at most {MAX_TEXT} are read")
    try:
        value = strict_loads(text.encode()) if text.lstrip().startswith("{") else yaml.load(text, Loader=_Loader)  # noqa: S506  (a SafeLoader)
        return RemitTerms.model_validate_json(json.dumps(value))
    except CanonicalError as error:
        raise TermsError(str(error)) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark is not None else ""
        raise TermsError(f"this is not YAML{where}: {getattr(error, 'problem', None) or 'unreadable'}") from None
    except ValidationError as error:
        raise TermsError(_first(error)) from None
    except (TypeError, ValueError, RecursionError):
        raise TermsError("the terms must be one mapping of plain values") from None


def _first(error: ValidationError) -> str:
    rows = error.errors(include_url=False, include_input=False, include_context=False)
    named = [f"{'.'.join(str(part) for part in row['loc']) or 'terms'}: {row['msg']}" for row in rows[:4]]
    return "; ".join(named)


@dataclass(frozen=True, slots=True)
class Clause:
    """One grant in words: the action and each bound; `raw` holds constraints that have no words yet."""

    name: str
    bounds: tuple[str, ...]
    calls: str
    raw: str | None


def explain(grant: Grant) -> Clause:
    """Return one grant in plain words; values stand in the bounds, so they are shown as code spans."""
    bounds: list[str] = []
    rest: dict[str, Any] = dict(grant.arguments or {})
    properties = rest.pop("properties", {})
    unexplained: dict[str, Any] = {}
    for argument, schema in cast("dict[str, Any]", properties).items():
        words, left = _bounds(schema) if isinstance(schema, dict) else ([], schema)
        bounds.extend(f"{argument} {word}" for word in words)
        if left:
            unexplained[argument] = left
    rest = {key: value for key, value in rest.items() if (key, value) != ("type", "object")}
    raw = {**rest, **({"properties": unexplained} if unexplained else {})}
    return Clause(
        name=f"{grant.tool}.{grant.action}",
        bounds=tuple(bounds) or (("any arguments",) if not raw else ()),
        calls="no limit of its own"
        if grant.max_calls is None
        else "once"
        if grant.max_calls == 1
        else f"{grant.max_calls} times",
        raw=canonical(raw).decode() if raw else None,
    )


def _bounds(schema: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    left = {key: value for key, value in schema.items() if key not in {*_WORDS, "type"}}
    said = [_WORDS[key].format(_value(schema[key])) for key in _WORDS if key in schema]
    return said, left


_WORDS = {
    "const": "exactly {}",
    "enum": "one of {}",
    "minimum": "at least {}",
    "maximum": "at most {}",
    "exclusiveMinimum": "more than {}",
    "exclusiveMaximum": "less than {}",
    "pattern": "matching {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
}


def _value(value: object) -> str:
    return value if isinstance(value, str) else canonical(value).decode()


def example(agent_id: str, environment: str, now: datetime, until: datetime) -> str:
    """Return terms to start from; nothing in them fits by accident."""
    return f"""\
agent_id: {agent_id}
task: "Describe the task in your own words"
environment: {environment}
not_before: "{now:%Y-%m-%dT%H:%M:%SZ}"
expires_at: "{until:%Y-%m-%dT%H:%M:%SZ}"
max_calls: 1
grants:
  - type: tool_call
    tool: bank
    action: read_file
    arguments:
      properties:
        file_path: {{const: "bill-december-2023.txt"}}
    max_calls: 1
"""

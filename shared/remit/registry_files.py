"""The registry directory: `tools/*.yaml`, `agents.yaml` and `policies/*.cedar` become one `BundleContent`.

A directory is accepted whole or refused whole; a refusal names file, entry, and what was expected there.
Values may hold `${NAME}`, filled in from what the caller allows, after parsing: a value can never become structure.
Source: design, section 5.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, TypeVar, cast

import yaml
from pydantic import BaseModel, ValidationError

from remit.bundle import AgentEntry, BundleContent, ToolEntry
from remit.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PLACEHOLDER = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
MAX_FILE_BYTES = 1_000_000

_Entry = TypeVar("_Entry", bound=BaseModel)


_SCALARS = {
    "bool": (r"^(?:true|false)$", "tf"),
    "null": (r"^(?:null|~|)$", "n~"),
    "int": (r"^-?(?:0|[1-9][0-9]*)$", "-0123456789"),
    "float": (r"^-?(?:0|[1-9][0-9]*)(?:\.[0-9]+(?:[eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+)$", "-0123456789"),
}
"""YAML 1.2 core scalars (JSON's numbers) by their possible first characters: `no` stays text, a date too."""


class _Loader(yaml.SafeLoader):
    """The safe loader with those scalars and unique keys."""


def _mapping(loader: Any, node: yaml.MappingNode) -> dict[str, Any]:  # noqa: ANN401  (PyYAML has no types)
    found: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        problem = None if isinstance(key, str) else "a key is not text; quote it"
        if key in found:
            problem = f"the key {key} appears twice"
        if problem is not None:
            raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
        found[key] = loader.construct_object(value_node, deep=True)
    return found


def _prepare(loader: Any) -> None:  # noqa: ANN401  (PyYAML has no types)
    loader.yaml_implicit_resolvers = {}
    for kind, (pattern, first) in _SCALARS.items():
        starts = [*first, ""] if kind == "null" else list(first)
        loader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(pattern), starts)
    loader.add_constructor("tag:yaml.org,2002:map", _mapping)


_prepare(_Loader)


def load_registry(directory: Path, environment: Mapping[str, str]) -> BundleContent:
    """Return the content of a registry directory; `environment` holds everything that `${NAME}` may stand for.

    Raises:
        BundleError: naming file, entry and what was expected.

    """
    if not directory.is_dir():
        raise BundleError(f"{directory} is no directory; expected one with tools/, agents.yaml and policies/")
    return BundleContent(
        tools=_tools(directory, environment),
        agents=_agents(directory, environment),
        policies=_policies(directory),
    )


def load_document(path: Path) -> Any:  # noqa: ANN401  (whatever the file holds)
    """Return the content of one YAML or JSON file, by the same strict rules.

    Raises:
        BundleError: unreadable, not YAML, or too large.

    """
    try:
        text = _text(path)
        return yaml.load(text, Loader=_Loader)  # noqa: S506  (a subclass of SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise BundleError(f"{path}{line}: {error.problem or 'not YAML'}") from None
    except (yaml.YAMLError, RecursionError):
        raise BundleError(f"{path}: not YAML") from None


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise BundleError(f"{path}: larger than {MAX_FILE_BYTES} bytes")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise BundleError(f"{path}: not UTF-8 text") from None


def _tools(directory: Path, environment: Mapping[str, str]) -> dict[str, ToolEntry]:
    found: dict[str, ToolEntry] = {}
    origin: dict[str, Path] = {}
    for path in sorted((directory / "tools").glob("*.yaml")):
        tool = _entry(ToolEntry, _expanded(load_document(path), environment, path), path, "")
        if tool.tool in found:
            raise BundleError(f"{path}: tool {tool.tool} is defined in {origin[tool.tool]} already")
        found[tool.tool], origin[tool.tool] = tool, path
    if not found:
        raise BundleError(f"{directory / 'tools'}: no *.yaml found; expected one file for each tool")
    return found


def _agents(directory: Path, environment: Mapping[str, str]) -> dict[str, AgentEntry]:
    path = directory / "agents.yaml"
    entries = _expanded(load_document(path), environment, path)
    if not isinstance(entries, dict):
        raise BundleError(f"{path}: found {_kind(entries)}, expected agents by name")
    found: dict[str, AgentEntry] = {}
    for name, entry in cast("dict[str, object]", entries).items():
        agent = _entry(AgentEntry, entry, path, f": {name}")
        if agent.name != name:
            raise BundleError(f"{path}: {name}: name is {agent.name}, expected {name}")
        found[name] = agent
    return found


def _policies(directory: Path) -> dict[str, str]:
    found = {path.name: _text(path) for path in sorted((directory / "policies").glob("*.cedar"))}
    if not found:
        raise BundleError(f"{directory / 'policies'}: no *.cedar found; without policies everything is denied")
    return found


def _expanded(value: object, environment: Mapping[str, str], path: Path) -> object:
    if isinstance(value, str):
        return PLACEHOLDER.sub(lambda match: _variable(match[1], environment, path), value)
    if isinstance(value, list):
        return [_expanded(item, environment, path) for item in cast("list[object]", value)]
    if isinstance(value, dict):
        entries = cast("dict[str, object]", value)
        return {key: _expanded(item, environment, path) for key, item in entries.items()}
    return value


def _variable(name: str, environment: Mapping[str, str], path: Path) -> str:
    found = environment.get(name)
    if found is None:
        raise BundleError(f"{path}: ${{{name}}} is not set; give --set {name}=value or export REMIT_REGISTRY_{name}")
    return found


def _entry(model: type[_Entry], value: object, path: Path, where: str) -> _Entry:
    if not isinstance(value, dict):
        raise BundleError(f"{path}{where}: found {_kind(value)}, expected a mapping")
    try:
        return model.model_validate_json(json.dumps(value))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{path}{where}: {field}: {first['msg']}") from None


def _kind(value: object) -> str:
    return "nothing" if value is None else type(value).__name__

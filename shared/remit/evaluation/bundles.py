"""A registry and policy bundle, checked whole and compiled once, so that a decision only looks things up."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import cedarpy

from remit.errors import BundleError, CanonicalError
from remit.evaluation.actions import CompiledAction, compile_action
from remit.evaluation.grants import CompiledGrant, compile_grants
from remit.evaluation.policies import Policy, PolicySlice, groups_of, read_policies, slice_for
from remit.nkey import verify_key

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nacl.signing import VerifyKey

    from remit.bundle import AgentEntry, BundleContent
    from remit.fold import RemitState
    from remit.remits import RemitDocument

MAX_REMEMBERED_REMITS = 2048


@dataclass(frozen=True, slots=True)
class _Judged:
    """An action with its rules and the entities they may look at; the resource is added when it is not the tool."""

    action: CompiledAction
    rules: PolicySlice
    entities: cedarpy.Entities


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledBundle:
    """What decisions depend on; immutable but for a bounded memory of compiled grants, which changes no answer."""

    content: BundleContent
    version: int
    digest: str
    """Policy version: the digest of the whole content."""
    policies: tuple[Policy, ...]
    _judged: Mapping[tuple[str, str], _Judged]
    """By tool and action: joined by a dot, other pairs would spell the same id."""
    _agent_keys: Mapping[str, VerifyKey]
    _grants: dict[tuple[str, str, int], tuple[CompiledGrant, ...]] = field(
        default_factory=dict[tuple[str, str, int], tuple[CompiledGrant, ...]], repr=False
    )

    @classmethod
    def compile(cls, content: BundleContent, *, version: int) -> CompiledBundle:
        """Check and compile a bundle, whole or not at all.

        Raises:
            BundleError: naming file, entry, what was found and what was expected.

        """
        try:
            digest = content.digest()
        except CanonicalError as error:
            raise BundleError(f"the bundle has {error}; expected I-JSON numbers throughout") from None
        _check_tools(content)
        _check_agents(content)
        actions = {
            action.id: action
            for tool in content.tools.values()
            for action in (compile_action(tool, name) for name in tool.actions)
        }
        policies = read_policies(content, actions)
        judged = {_pair(a): _Judged(a, slice_for(a, policies), _entities(a)) for a in actions.values()}
        keys = _agent_keys(content)
        return cls(content=content, version=version, digest=digest, policies=policies, _judged=judged, _agent_keys=keys)

    def agent(self, name: str) -> AgentEntry | None:
        """Return a registered agent."""
        return self.content.agents.get(name)

    def agent_key(self, name: str) -> VerifyKey | None:
        """Return the key a registered agent signs with; None when there is no such agent, or its entry names no key."""
        return self._agent_keys.get(name)

    def has_tool(self, tool: str) -> bool:
        """Return whether a tool is registered."""
        return tool in self.content.tools

    def action(self, tool: str, action: str) -> CompiledAction | None:
        """Return a registered action."""
        found = self._judged.get((tool, action))
        return None if found is None else found.action

    def actions(self) -> tuple[CompiledAction, ...]:
        """Return every registered action, in the registry's order."""
        return tuple(judged.action for judged in self._judged.values())

    def rules(self, action: CompiledAction) -> PolicySlice:
        """Return the policies that can apply to an action."""
        return self._judged[_pair(action)].rules

    def entities(self, action: CompiledAction, resource_id: str | None) -> cedarpy.Entities:
        """Return the entities that the action's policies may look at."""
        judged = self._judged[_pair(action)]
        if resource_id is None or resource_id == action.tool.tool or not judged.rules.needs_hierarchy:
            return judged.entities
        return judged.entities.with_added_json_str(json.dumps([_resource(action, resource_id)]))

    def grants(self, remit: RemitState, document: RemitDocument) -> tuple[CompiledGrant, ...]:
        """Return a remit's grants compiled; remembered for this version of the remit."""
        key = (remit.remit_id, remit.digest or "", remit.seq)
        found = self._grants.get(key)
        if found is None:
            found = compile_grants(document)
            while len(self._grants) >= MAX_REMEMBERED_REMITS:
                self._grants.pop(next(iter(self._grants)))
            if remit.seq:  # without a sequence nothing tells two versions of a remit apart
                self._grants[key] = found
        return found


def _pair(action: CompiledAction) -> tuple[str, str]:
    return action.tool.tool, action.name


def _agent_keys(content: BundleContent) -> dict[str, VerifyKey]:
    """Decode every agent's key once; an entry that is no nkey gets none, so that nothing verifies under its name."""
    found: dict[str, VerifyKey] = {}
    for name, agent in content.agents.items():
        with suppress(ValueError):
            found[name] = verify_key(agent.public_key)
    return found


def _check_tools(content: BundleContent) -> None:
    owners: dict[str, str] = {}
    for name, tool in content.tools.items():
        where = f"tools/{name}"
        if tool.tool != name:
            raise BundleError(f"{where}: tool is {tool.tool!r}; expected {name!r}")
        if tool.connector != "noop" and not tool.endpoint:
            raise BundleError(f"{where}: connector {tool.connector} has no endpoint; say where the executor reaches it")
        if not tool.actions:
            raise BundleError(f"{where}: no actions; expected at least one")
        other = owners.setdefault(tool.resource, name)
        if other != name:
            # The resource is the token's audience: two tools with one would accept each other's tokens.
            raise BundleError(f"{where}: resource {tool.resource} already belongs to {other}")


def _check_agents(content: BundleContent) -> None:
    seen: dict[tuple[str, str], str] = {}
    for name, agent in content.agents.items():
        if agent.name != name:
            raise BundleError(f"agents: {name}: name is {agent.name!r}; expected {name!r}")
        for attribute in ("id", "client_id", "public_key"):
            other = seen.setdefault((attribute, getattr(agent, attribute)), name)
            if other != name:
                raise BundleError(f"agents: {name}: {attribute} already belongs to {other}; each agent needs its own")


def _uid(kind: str, name: str) -> dict[str, str]:
    # Structured ids only: the string form has spellings that Cedar refuses, and a refusal is a silent deny.
    return {"type": kind, "id": name}


def _entities(action: CompiledAction) -> cedarpy.Entities:
    parents = [_uid("Action", group) for group in groups_of(action)]
    own = {"uid": _uid("Action", action.id), "attrs": {}, "parents": parents}
    return cedarpy.Entities.from_json_str(json.dumps([own, _resource(action, action.tool.tool)]))


def _resource(action: CompiledAction, resource_id: str) -> dict[str, object]:
    return {
        "uid": _uid("Resource", resource_id),
        "attrs": {},
        "parents": [_uid("Tool", action.tool.tool)],
    }

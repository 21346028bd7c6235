"""Cedar policies as Remit uses them: named, linted, and sliced by action so that cost stays flat as rules grow.

A policy that could never match, that reads what nobody provides, or that compares an argument with a value of a kind its schema
never becomes, refuses the whole bundle: at run time Cedar answers such a comparison with false, and a forbid would be skipped.
Source: design, section 6.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from functools import reduce
from typing import TYPE_CHECKING, Any, cast

import cedarpy

from remit.errors import BundleError
from remit.evaluation.approvals import Requirement
from remit.evaluation.conditions import Reads, nodes, reads_of
from remit.evaluation.context import KEYS
from remit.evaluation.kinds import clash

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from remit.bundle import BundleContent
    from remit.evaluation.actions import CompiledAction

EFFECTS = ("read", "write", "destructive")
RISKS = ("T1", "T2", "T3", "T4")
ANNOTATIONS = frozenset({"id", "approvers", "quorum", "description"})
MAX_QUORUM = 10
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}")
_GROUP = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,62}")


@dataclass(frozen=True, slots=True)
class Policy:
    """One rule: its name, whom it asks, and the parsed form that Cedar evaluates."""

    id: str
    forbids: bool
    requirement: Requirement | None
    """Whose approval satisfies it, from @approvers and @quorum; None when it does not look at approvals."""
    actions: frozenset[str] | None
    """Actions and groups of its scope; None means every action."""
    reads: Reads
    needs_hierarchy: bool
    """Whether it asks what the resource is *in*; if no rule does, the resource entity need not be built."""
    parsed: dict[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class PolicySlice:
    """The rules that can apply to one action."""

    handle: cedarpy.PolicySet
    by_id: Mapping[str, Policy]
    asking: tuple[Policy, ...]
    """Permits that need an approval."""
    needs_hierarchy: bool
    keys: tuple[str, ...]
    """Keys of `context` that some rule reads, without `approval`, which is added when there is one."""
    arguments: frozenset[str] | None
    """Names in `context.args` that some rule reads; None means all."""


def groups_of(action: CompiledAction) -> tuple[str, ...]:
    """Return the Cedar action groups an action belongs to."""
    return (f"effect:{action.entry.effect}", f"tool:{action.tool.tool}", f"risk:{action.entry.risk}")


def read_policies(content: BundleContent, actions: Mapping[str, CompiledAction]) -> tuple[Policy, ...]:
    """Parse and lint every policy file.

    Raises:
        BundleError: naming file and policy, what was found and what was expected.

    """
    known = _Known.of(content, actions)
    found: dict[str, Policy] = {}
    for file, text in sorted(content.policies.items()):
        for where, parsed in _parsed(file, text):
            policy = _policy(where, parsed, known)
            if policy.id in found:
                raise BundleError(f'{file}: @id("{policy.id}") appears twice; ids are unique over all files')
            found[policy.id] = policy
    return tuple(found.values())


def slice_for(action: CompiledAction, policies: tuple[Policy, ...]) -> PolicySlice:
    """Return the rules whose action scope can match; rules keep their @id as Cedar's policy id."""
    names = {action.id, *groups_of(action)}
    chosen = [policy for policy in policies if policy.actions is None or not names.isdisjoint(policy.actions)]
    reads = reduce(Reads.joined, (policy.reads for policy in chosen), Reads(frozenset(), frozenset()))
    document = {"templates": {}, "staticPolicies": {p.id: p.parsed for p in chosen}, "templateLinks": []}
    return PolicySlice(
        handle=cedarpy.PolicySet.from_json_str(json.dumps(document)),
        by_id={policy.id: policy for policy in chosen},
        asking=tuple(p for p in chosen if p.requirement is not None and not p.forbids),
        needs_hierarchy=any(policy.needs_hierarchy for policy in chosen),
        keys=tuple(sorted((KEYS if reads.keys is None else reads.keys) - {"approval"})),
        arguments=None if reads.keys is None else reads.arguments,
    )


@dataclass(frozen=True, slots=True)
class _Known:
    """Everything a policy's scope and conditions may name."""

    actions: Mapping[str, CompiledAction]
    groups: frozenset[str]
    agents: frozenset[str]
    tools: frozenset[str]

    @staticmethod
    def of(content: BundleContent, actions: Mapping[str, CompiledAction]) -> _Known:
        groups = {f"effect:{e}" for e in EFFECTS} | {f"risk:{r}" for r in RISKS} | {f"tool:{t}" for t in content.tools}
        return _Known(actions, frozenset(groups), frozenset(content.agents), frozenset(content.tools))

    def in_scope(self, names: frozenset[str] | None) -> list[CompiledAction]:
        return [a for a in self.actions.values() if names is None or not names.isdisjoint({a.id, *groups_of(a)})]


def _parsed(file: str, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        document = cast("dict[str, Any]", json.loads(cedarpy.policies_to_json_str(text)))
    except ValueError as error:
        raise BundleError(f"{file}: not valid Cedar: {str(error).splitlines()[0]}") from None
    if document["templates"] or document["templateLinks"]:
        raise BundleError(f"{file}: holds a policy template (?principal, ?resource); write the policy out")
    for parsed in cast("dict[str, dict[str, Any]]", document["staticPolicies"]).values():
        identifier = parsed.get("annotations", {}).get("id")
        if not isinstance(identifier, str) or not _ID.fullmatch(identifier):
            raise BundleError(f'{file}: a policy has no usable @id; write @id("name") of letters, digits and _ . : -')
        yield f"{file}: policy {identifier}", parsed


def _policy(where: str, parsed: dict[str, Any], known: _Known) -> Policy:
    actions = _action_scope(where, parsed["action"], known)
    _check_principal(where, parsed["principal"], known)
    _check_resource(where, parsed["resource"], known)
    reads = reads_of(parsed["conditions"])
    scope = known.in_scope(actions)
    _check_reads(where, reads, scope)
    _check_kinds(where, parsed["conditions"], scope)
    asks = reads.keys is None or "approval" in reads.keys
    requirement = _requirement(where, parsed["annotations"])
    if asks and requirement is None:
        raise BundleError(f'{where}: reads context.approval but names nobody; add @approvers("group")')
    if requirement is not None and not asks:
        raise BundleError(f"{where}: has @approvers but no condition on context.approval, so it would never ask")
    return Policy(
        id=parsed["annotations"]["id"],
        forbids=parsed["effect"] == "forbid",
        requirement=requirement,
        actions=actions,
        reads=reads,
        needs_hierarchy=_looks_up(parsed),
        parsed=parsed,
    )


def _requirement(where: str, annotations: Mapping[str, str | None]) -> Requirement | None:
    unknown = sorted(set(annotations) - ANNOTATIONS)
    if unknown:
        raise BundleError(f"{where}: unknown annotation @{unknown[0]}; expected {', '.join(sorted(ANNOTATIONS))}")
    if "approvers" not in annotations:
        if "quorum" in annotations:
            raise BundleError(f"{where}: @quorum without @approvers")
        return None
    groups = frozenset(part.strip() for part in (annotations["approvers"] or "").split(","))
    quorum = annotations.get("quorum", "1") or ""
    if not all(_GROUP.fullmatch(group) for group in groups):
        raise BundleError(f'{where}: @approvers is not a list of groups; write @approvers("payments, security")')
    if not (quorum.isascii() and quorum.isdecimal() and 1 <= int(quorum) <= MAX_QUORUM):
        raise BundleError(f"{where}: @quorum is {quorum!r}; expected 1 to {MAX_QUORUM}")
    return Requirement(count=int(quorum), groups=groups)


def _uids(scope: Mapping[str, Any]) -> list[dict[str, str]]:
    nested = cast("Mapping[str, Any]", scope.get("in", {}))
    single = [part["entity"] for part in (scope, nested) if "entity" in part]
    return [*single, *scope.get("entities", [])]


def _action_scope(where: str, scope: Mapping[str, Any], known: _Known) -> frozenset[str] | None:
    if scope["op"] == "All":
        return None
    uids = _uids(scope)
    for uid in uids:
        name = uid["id"]
        is_group = name in known.groups and scope["op"] == "in"
        if uid["type"] != "Action" or not (name in known.actions or is_group):
            raise BundleError(
                f'{where}: action scope names {uid["type"]}::"{name}", which is no registered action and no group '
                f'(Action::"tool:<tool>", "effect:<effect>" or "risk:<tier>", used with `in`); it could never match'
            )
    if not uids:
        raise BundleError(f"{where}: action scope is empty; it could never match")
    return frozenset(uid["id"] for uid in uids)


def _check_principal(where: str, scope: Mapping[str, Any], known: _Known) -> None:
    if scope.get("entity_type", "Agent") != "Agent":
        raise BundleError(f"{where}: principal is {scope['entity_type']}; principals are Agents, it could never match")
    for uid in _uids(scope):
        if uid["type"] != "Agent" or uid["id"] not in known.agents:
            raise BundleError(f'{where}: principal {uid["type"]}::"{uid["id"]}" is no registered agent')


def _check_resource(where: str, scope: Mapping[str, Any], known: _Known) -> None:
    if scope.get("entity_type", "Resource") != "Resource":
        raise BundleError(f"{where}: resource is {scope['entity_type']}; expected Resource, it could never match")
    for uid in _uids(scope):
        is_tool = uid["type"] == "Tool" and uid["id"] in known.tools and scope["op"] != "=="
        if not is_tool and uid["type"] != "Resource":
            raise BundleError(
                f'{where}: resource {uid["type"]}::"{uid["id"]}" could never match; expected Resource::"..." or '
                '`in` Tool::"<registered tool>"'
            )


def _check_reads(where: str, reads: Reads, scope: list[CompiledAction]) -> None:
    """Refuse attributes that nobody provides."""
    unknown = sorted((reads.keys or frozenset()) - KEYS)
    if unknown:
        raise BundleError(f"{where}: reads context.{unknown[0]}; expected one of {', '.join(sorted(KEYS))}")
    provided = {name for action in scope for name in action.shape.properties}
    missing = sorted((reads.arguments or frozenset()) - provided)
    if missing:
        raise BundleError(f"{where}: reads context.args.{missing[0]}, which no action of its scope has")


def _check_kinds(where: str, conditions: object, scope: list[CompiledAction]) -> None:
    for action in scope:
        found = clash(conditions, action.shape)
        if found is not None:
            raise BundleError(f"{where}: for {action.id} {found}")


def _looks_up(parsed: Mapping[str, Any]) -> bool:
    scope = parsed["resource"]
    return scope["op"] == "in" or "in" in scope or any("in" in node for node in nodes(parsed["conditions"]))

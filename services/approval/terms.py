"""Whether a remit can mean what its human thinks it means, pure: checked against the registry in force.

A grant for something that does not exist, or a constraint on such an argument, would be silently
empty; both are refused and the field is named. Source: design, sections 3 and 4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from remit.canonical import digest
from remit.evaluation.schemas import SchemaRefusedError, compile_schema
from remit.ids import remit_id
from remit.remits import RemitDocument
from services.approval.answers import invalid
from services.approval.constraints import constraint_flaw

if TYPE_CHECKING:
    from datetime import datetime

    from remit.commands import Reply
    from remit.evaluation.actions import CompiledAction
    from remit.evaluation.bundles import CompiledBundle
    from remit.remits import Grant, Human, RemitTerms


def remit_document(terms: RemitTerms, human: Human, idempotency_key: str) -> RemitDocument:
    """Return the remit a command would grant; the same command always makes the same document."""
    identity = remit_id(human.iss, human.sub, idempotency_key)
    return RemitDocument(
        **{name: getattr(terms, name) for name in type(terms).model_fields}, remit_id=identity, human=human
    )


def remit_digest(document: RemitDocument) -> str:
    """Return the digest that events and previews carry."""
    return digest(document.model_dump(mode="json", exclude_none=True))


def check_terms(terms: RemitTerms, bundle: CompiledBundle, now: datetime) -> Reply | None:
    """Return the first field that cannot be granted, or None."""
    if terms.expires_at <= now:
        return invalid("terms.expires_at", f"{terms.expires_at.isoformat()} lies in the past")
    if not any(agent.id == terms.agent_id for agent in bundle.content.agents.values()):
        known = ", ".join(sorted(agent.id for agent in bundle.content.agents.values()))
        return invalid("terms.agent_id", f"no agent {terms.agent_id} is registered; known: {known or 'none'}")
    for number, grant in enumerate(terms.grants):
        refusal = _check_grant(grant, f"terms.grants.{number}", terms, bundle)
        if refusal is not None:
            return refusal
    return None


def _check_grant(grant: Grant, field: str, terms: RemitTerms, bundle: CompiledBundle) -> Reply | None:
    tool = bundle.content.tools.get(grant.tool)
    if tool is None:
        return invalid(f"{field}.tool", f"no tool {grant.tool} is registered; known: {', '.join(bundle.content.tools)}")
    action = bundle.action(grant.tool, grant.action)
    if action is None:
        return invalid(
            f"{field}.action",
            f"tool {grant.tool} has no action {grant.action}; known: {', '.join(tool.actions)}",
        )
    if tool.environment != terms.environment:
        return invalid("terms.environment", f"is {terms.environment}, but tool {grant.tool} is in {tool.environment}")
    if grant.locations is not None and action.location not in grant.locations:
        return invalid(f"{field}.locations", f"does not hold {action.location}, where {action.id} is called")
    return _check_arguments(grant, f"{field}.arguments", action)


def _check_arguments(grant: Grant, field: str, action: CompiledAction) -> Reply | None:
    if grant.arguments is None:
        return None
    try:
        compile_schema(grant.arguments)
    except SchemaRefusedError as error:
        return invalid(field, str(error))
    return flawed(grant.arguments, field, action)


def flawed(constraint: dict[str, Any], field: str, action: CompiledAction) -> Reply | None:
    """Return the part of a valid schema over an action's arguments that would limit nothing, or None."""
    flaw = constraint_flaw(constraint, action.entry.arguments)
    if flaw is None:
        return None
    where, what = flaw
    return invalid(f"{field}{where.replace('/', '.')}", f"{action.id}: {where or 'the constraint'} {what}")

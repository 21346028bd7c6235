"""Which grant of a remit covers a call: equal tool and action, location inside, arguments valid, time inside.

Calls that remain are not judged here: budgets are counted in the executor's claim. Source: design, standards section 2.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from remit.evaluation.denial import Denial
from remit.evaluation.meant import as_meant
from remit.evaluation.schemas import SchemaRefusedError, compile_schema, violation
from remit.evaluation.sinks import NOTHING, is_named, namings
from remit.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from jsonschema_rs import Validator

    from remit.evaluation.actions import CompiledAction
    from remit.evaluation.sinks import Naming
    from remit.remits import Grant, RemitDocument


@dataclass(frozen=True, slots=True)
class CompiledGrant:
    """One grant with its schema compiled; `refused` says why the schema cannot be used, and then it covers nothing.

    `validators` are the schema as it stands and as it is meant; arguments must satisfy both.
    """

    number: int
    grant: Grant
    validators: tuple[Validator, ...]
    namings: Mapping[str, Naming]
    refused: str | None = None

    def violation(self, arguments: Mapping[str, object]) -> str | None:
        """Return what keeps the arguments outside this grant, or None."""
        if self.refused is not None:
            return self.refused
        found = (violation(validator, arguments) for validator in self.validators)
        return next((broken for broken in found if broken is not None), None)


@dataclass(frozen=True, slots=True)
class Cover:
    """The covering grant and the sink arguments that it leaves unnamed."""

    grant: CompiledGrant
    unnamed_sinks: tuple[str, ...]


def compile_grants(document: RemitDocument) -> tuple[CompiledGrant, ...]:
    """Compile every grant of a remit; one that cannot be compiled stays, and covers nothing."""
    return tuple(_compile(number, grant) for number, grant in enumerate(document.grants, 1))


def _compile(number: int, grant: Grant) -> CompiledGrant:
    schema = grant.arguments
    if schema is None:
        return CompiledGrant(number, grant, (), {})
    try:
        # As it stands comes first: only a schema that compiles is known to be well formed, as the other reading needs.
        validators = compile_schema(schema), compile_schema(as_meant(schema))
    except SchemaRefusedError as refusal:
        return CompiledGrant(number, grant, (), {}, refused=str(refusal))
    return CompiledGrant(number, grant, validators, namings(schema))


def cover(
    grants: tuple[CompiledGrant, ...],
    action: CompiledAction,
    arguments: Mapping[str, object],
    *,
    task: str,
    now: datetime,
) -> Cover | Denial:
    """Return the covering grant that leaves the fewest sinks unnamed, the first of equals, or why there is none."""
    candidates = [grant for grant in grants if _applies(grant.grant, action, now)]
    if not candidates:
        return Denial(Reason.NO_GRANT, f"no grant of the remit is for {action.id} here and now")
    covering: list[Cover] = []
    found: list[str] = []
    for grant in candidates:
        outside = grant.violation(arguments)
        if outside is None:
            covering.append(Cover(grant, _unnamed(grant, action, arguments, task)))
        else:
            found.append(f"grant {grant.number}: {outside}")
    if not covering:
        return Denial(Reason.ARGUMENTS_OUTSIDE_GRANT, "; ".join(found[:3]))
    return min(covering, key=lambda each: len(each.unnamed_sinks))


def _applies(grant: Grant, action: CompiledAction, now: datetime) -> bool:
    return (
        grant.tool == action.tool.tool
        and grant.action == action.name
        and (grant.locations is None or action.location in grant.locations)
        and (grant.expires_at is None or now < grant.expires_at)
    )


def _unnamed(
    grant: CompiledGrant, action: CompiledAction, arguments: Mapping[str, object], task: str
) -> tuple[str, ...]:
    return tuple(
        name for name in action.sinks if not is_named(arguments.get(name), grant.namings.get(name, NOTHING), task)
    )

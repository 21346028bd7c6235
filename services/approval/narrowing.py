"""Approving with a stricter grant: a conjunction that must still accept the arguments. Pure.

Source: design, standards section 2.2 (narrowing is conjunction, a reference is never fetched).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from remit.canonical import strict_loads
from remit.errors import CanonicalError
from remit.evaluation.schemas import SchemaRefusedError, compile_schema, violation
from remit.events import ActionProposed
from services.approval.answers import invalid, stale
from services.approval.terms import flawed

if TYPE_CHECKING:
    from pydantic import JsonValue

    from remit.commands import Reply
    from remit.evaluation.actions import CompiledAction
    from remit.fold import ActionState


def narrowing_refusal(
    state: ActionState, narrowing: dict[str, JsonValue], *, complete: bool, action: CompiledAction | None
) -> Reply | None:
    """Return why a narrowing cannot be taken, or None.

    Earlier votes carry no schema: a narrowing by any but the last voter would be lost, so it is refused.
    """
    if not complete:
        return invalid("narrowing", "more votes are needed: approve now, and narrow with the last vote")
    if action is None:
        return stale("the action is not registered any more; deny instead")
    try:
        broken = violation(compile_schema(narrowing), arguments_of(state))
    except (SchemaRefusedError, CanonicalError) as error:
        return invalid("narrowing", str(error))
    if broken is not None:
        return invalid("narrowing", f"the proposed arguments do not fit it ({broken}); deny instead")
    return flawed(narrowing, "narrowing", action)


def arguments_of(state: ActionState) -> dict[str, Any]:
    """Return the arguments the agent proposed, from its own signed bytes.

    Raises:
        CanonicalError: the bytes are not I-JSON; intake would not have let them in.

    """
    proposal = strict_loads(state.must(ActionProposed).data.proposal.encode())
    return dict(proposal["arguments"])

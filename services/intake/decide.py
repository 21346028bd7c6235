"""Which proposals become actions, and what an agent is told: pure rules of intake.

A proposal is refused by the first check that fails, cheapest first; no message ever quotes an argument value.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from nacl.exceptions import BadSignatureError
from pydantic import ValidationError

from remit.canonical import b64url_decode, digest, strict_loads
from remit.errors import CanonicalError, PermanentError
from remit.events import ActionProposed, ActionRef, AgentIdentity, Principal, Proposed
from remit.ids import REMIT_ID, action_id
from remit.proposal import MAX_PROPOSAL_BYTES, SIGNATURE_HEADER, Proposal, signed_bytes
from remit.reasons import Reason
from remit.runtime.sealing import OversizeError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from remit.evaluation import CompiledAction
    from remit.fold import ActionState
    from services.intake.catalogue import Catalogue, RegisteredAgent

SIGNATURE_BYTES = 64
MAX_SUGGESTIONS = 3
MAX_NAME = 64
"""Characters of an agent's own word that a message repeats."""
MAX_RESOURCE = 512
"""Characters of an argument value that every event of the action repeats; of a longer one its digest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One message on `in.propose.<agent>`; nothing in it is believed yet."""

    agent: str
    body: bytes
    signature: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """The proposal does not become an action; `proposal` is there once it could be read."""

    reason: Reason
    detail: str
    proposal: Proposal | None = None
    alternatives: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """The proposal may become this action."""

    action_id: str
    proposed: Proposed
    proposals_per_minute: int


def admit(submission: Submission, catalogue: Catalogue, *, tenant: str) -> Admitted | Rejected:
    """Check one submission: size, agent, signature, JSON, contract, tool, action, arguments."""
    if len(submission.body) > MAX_PROPOSAL_BYTES:
        found = f"the proposal has {len(submission.body)} bytes, the limit is {MAX_PROPOSAL_BYTES}"
        return Rejected(reason=Reason.OVERSIZE, detail=f"{found}; pass large content by reference")
    agent = catalogue.agents.get(submission.agent)
    if agent is None:
        detail = (
            f"agent {submission.agent[:MAX_NAME]} is not in registry bundle {catalogue.bundle.version}; register it"
        )
        return Rejected(reason=Reason.UNKNOWN_AGENT, detail=detail)
    doubt = _signature_doubt(submission, agent)
    if doubt is not None:
        return Rejected(reason=Reason.BAD_SIGNATURE, detail=doubt)
    proposal = read_proposal(submission.body)
    if isinstance(proposal, Rejected):
        return proposal
    action = _find_action(proposal, catalogue)
    if isinstance(action, Rejected):
        return action
    broken = action.violation(proposal.arguments)
    if broken is not None:
        detail = f"{broken}{_hint(action, proposal.arguments)}"
        return Rejected(reason=Reason.SCHEMA_VIOLATION, detail=detail, proposal=proposal)
    return _admitted(submission, proposal, action, catalogue, tenant=tenant)


def _signature_doubt(submission: Submission, agent: RegisteredAgent) -> str | None:
    if agent.key is None:
        return f"the registry's public_key of agent {submission.agent} is no user nkey; correct agents.yaml"
    if not submission.signature:
        return (
            f"header {SIGNATURE_HEADER} is missing; sign the bytes `propose.<agent>`, NUL, body with the agent's nkey"
        )
    try:
        signature = b64url_decode(submission.signature)
    except CanonicalError:
        return f"header {SIGNATURE_HEADER} is not unpadded base64url"
    if len(signature) != SIGNATURE_BYTES:
        return f"header {SIGNATURE_HEADER} holds {len(signature)} bytes, expected {SIGNATURE_BYTES}"
    try:
        agent.key.verify(signed_bytes(submission.agent, submission.body), signature)
    except BadSignatureError:
        return f"the signature is not by the registered key of agent {submission.agent} over these bytes"
    return None


def read_proposal(body: bytes) -> Proposal | Rejected:
    """Return the proposal of a body, or why it cannot be read; the field is named, its value never."""
    try:
        value: Any = strict_loads(body)
    except CanonicalError as error:
        return Rejected(reason=Reason.MALFORMED, detail=str(error))
    if isinstance(value, dict):
        version = cast("dict[str, object]", value).get("v", 1)
        if type(version) is not int or version != 1:
            detail = "v: this intake reads version 1 of the proposal contract; update the SDK or intake"
            return Rejected(reason=Reason.UNSUPPORTED_VERSION, detail=detail)
    try:
        proposal = Proposal.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:MAX_NAME] or "body"
        return Rejected(reason=Reason.MALFORMED, detail=f"{where}: {first['type']}")
    # The remit id becomes part of a subject further on, so a foreign spelling ends here (design, bus section 2).
    if not REMIT_ID.fullmatch(proposal.remit_id):
        detail = "remit_id: not a remit id; expected rem_ and 32 hexadecimal digits, as the grant returned it"
        return Rejected(reason=Reason.MALFORMED, detail=detail, proposal=proposal)
    return proposal


def _find_action(proposal: Proposal, catalogue: Catalogue) -> CompiledAction | Rejected:
    content = catalogue.bundle.content
    # The tool comes first: action ids are joined by a dot, and actions may hold dots themselves.
    tool = content.tools.get(proposal.tool)
    if tool is None:
        close = _close(proposal.tool, content.tools)
        detail = f"no tool {proposal.tool!r} in registry bundle {catalogue.bundle.version}{_did_you_mean(close)}"
        return Rejected(reason=Reason.UNKNOWN_TOOL, detail=detail, proposal=proposal, alternatives=close)
    action = catalogue.bundle.action(tool.tool, proposal.action)
    if action is not None:
        return action
    close = tuple(f"{tool.tool}.{name}" for name in _close(proposal.action, tool.actions))
    detail = f"tool {tool.tool} has no action {proposal.action!r}{_did_you_mean(close)}"
    return Rejected(reason=Reason.UNKNOWN_ACTION, detail=detail, proposal=proposal, alternatives=close)


def _close(word: str, known: Iterable[str]) -> tuple[str, ...]:
    return tuple(difflib.get_close_matches(word, known, n=MAX_SUGGESTIONS))


def _did_you_mean(close: tuple[str, ...]) -> str:
    return f"; did you mean {', '.join(close)}?" if close else ""


def _hint(action: CompiledAction, arguments: dict[str, Any]) -> str:
    """Return which top-level arguments are unknown or missing: names only."""
    schema: dict[str, Any] = action.entry.arguments
    known: dict[str, object] = schema.get("properties", {})
    unknown = [name[:MAX_NAME] for name in arguments if name not in known]
    if unknown:
        return f"; unknown argument {unknown[0]!r}, {action.id} takes {', '.join(known) or 'none'}"
    missing = [name for name in schema.get("required", ()) if name not in arguments]
    return f"; missing {', '.join(missing)}" if missing else ""


def _admitted(
    submission: Submission, proposal: Proposal, action: CompiledAction, catalogue: Catalogue, *, tenant: str
) -> Admitted:
    agent = catalogue.agents[submission.agent].entry
    name = action_id(tenant, agent.name, proposal.idempotency_key)
    identity = AgentIdentity(
        id=agent.id, name=agent.name, client_id=agent.client_id, **proposal.identity.model_dump()
    )  # fmt: skip
    reference = ActionRef(
        name=action.id,
        args_digest=digest(proposal.arguments),
        resource_id=_bounded(action.resource_id(proposal.arguments)),
        environment=action.tool.environment,
        risk=action.entry.risk,
        effect=action.entry.effect,
    )
    proposed = Proposed(
        txn=name,
        remit_id=proposal.remit_id,
        principal=Principal(agent=identity, tool=catalogue.tools[action.id]),
        action=reference,
        proposal=submission.body.decode(),
        proposal_sig=submission.signature or "",
        idempotency_key=proposal.idempotency_key,
        scopes_requested=[action.id],
        bundle_digest=catalogue.bundle.digest,
    )
    return Admitted(action_id=name, proposed=proposed, proposals_per_minute=agent.proposals_per_minute)


def _bounded(resource: str | None) -> str | None:
    return resource if resource is None or len(resource) <= MAX_RESOURCE else digest(resource)


def cannot_be_stored(error: PermanentError) -> Rejected:
    """Return the refusal of a proposal whose event the ledger does not take."""
    if isinstance(error, OversizeError):
        detail = "the event made of the proposal would be too large; pass large content by reference"
        return Rejected(reason=Reason.OVERSIZE, detail=detail)
    return Rejected(reason=Reason.UNPROCESSABLE, detail="the ledger does not take this proposal; tell the operator")


def given_up() -> Rejected:
    """Return the refusal of a proposal that could not be worked on in all its deliveries."""
    detail = "the proposal could not be taken in, again and again; propose it again with the same key later"
    return Rejected(reason=Reason.UNPROCESSABLE, detail=detail)


def over_quota(wait_s: float, per_minute: int) -> Rejected:
    """Return the refusal of an agent that proposes faster than its registry entry allows."""
    detail = f"more than {per_minute} proposals a minute; propose again with the same key in {wait_s:.1f} s"
    return Rejected(reason=Reason.QUOTA_EXCEEDED, detail=detail)


def conflict(action: str) -> Rejected:
    """Return the refusal of a second, different call under a used key; the first action stays as it is."""
    detail = f"this idempotency_key already names action {action} with another call; use a new key for a new call"
    return Rejected(reason=Reason.IDEMPOTENCY_CONFLICT, detail=detail)


def is_same_call(state: ActionState, *, remit_id: str, action: str, args_digest: str) -> bool:
    """Return whether an action was proposed for exactly this call: same remit, action and canonical arguments.

    Identity, rationale and spelling may differ: an agent that restarted asks again in a new session.
    """
    proposed = state.must(ActionProposed).data
    known = (proposed.remit_id, proposed.action.name, proposed.action.args_digest)
    return known == (remit_id, action, args_digest)

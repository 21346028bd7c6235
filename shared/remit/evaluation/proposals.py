"""The agent's signed proposal, read out of `proposed` and held against what intake said about it.

Intake's word is not enough to make authority: whoever judges or mints asks the agent's own signature again, so that a stolen
intake key can neither invent a call nor put one into another agent's mouth.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nacl.exceptions import BadSignatureError
from pydantic import ValidationError

from remit.canonical import b64url_decode, digest, strict_loads
from remit.errors import CanonicalError, PermanentError
from remit.evaluation.denial import Denial
from remit.ids import action_id
from remit.proposal import PresentedIdentity, Proposal, signed_bytes
from remit.reasons import Reason

if TYPE_CHECKING:
    from nacl.signing import VerifyKey

    from remit.bundle import AgentEntry
    from remit.evaluation.bundles import CompiledBundle
    from remit.events import AgentIdentity, Proposed

SIGNATURE_BYTES = 64


def read_proposal(proposed: Proposed) -> Proposal:
    """Return the proposal that `proposed` carries verbatim.

    Whether the event's summary is true to these bytes is checked here, because everything later is bound to the summary's
    argument digest; whether they are the agent's is `disowned`.

    Raises:
        PermanentError: the bytes are no proposal, or say something else than the event.

    """
    where = f"action {proposed.txn}"
    try:
        proposal = Proposal.model_validate(strict_loads(proposed.proposal.encode()))
        args_digest = digest(proposal.arguments)
    except (CanonicalError, ValidationError, UnicodeEncodeError) as error:
        raise PermanentError(f"{where}: the carried proposal cannot be read ({type(error).__name__})") from None
    told = proposed.action
    if args_digest != told.args_digest:
        raise PermanentError(f"{where}: args_digest is not that of the proposed arguments")
    if told.name != f"{proposal.tool}.{proposal.action}" or proposed.remit_id != proposal.remit_id:
        raise PermanentError(f"{where}: names another action or remit than the proposal")
    return proposal


def disowned(proposed: Proposed, proposal: Proposal, bundle: CompiledBundle, *, tenant: str) -> Denial | None:
    """Return why the registered agent does not stand behind this event: signature, identity, action id; None when it does."""
    said = proposed.principal.agent
    agent, key = bundle.agent(said.name), bundle.agent_key(said.name)
    if agent is None:
        return Denial(Reason.UNKNOWN_AGENT, "the agent is not in the registry")
    if key is None or not _is_signed(proposed, agent.name, key):
        detail = "the proposal is not signed by the key that is registered for the agent; propose again with that key"
        return Denial(Reason.BAD_SIGNATURE, detail)
    differing = _differing(said, agent, proposal.identity)
    if differing is not None:
        return Denial(
            Reason.IDENTITY_DRIFT, f"{differing}: the event names another agent than proposal and registry do"
        )
    key_in_use = proposal.idempotency_key
    if proposed.idempotency_key != key_in_use or proposed.txn != action_id(tenant, agent.name, key_in_use):
        return Denial(Reason.ARGS_MISMATCH, "the action is not the one that this agent's idempotency key names")
    return None


def _is_signed(proposed: Proposed, agent: str, key: VerifyKey) -> bool:
    try:
        signature = b64url_decode(proposed.proposal_sig)
        if len(signature) != SIGNATURE_BYTES:
            return False  # PyNaCl would raise another error for it.
        key.verify(signed_bytes(agent, proposed.proposal.encode()), signature)
    except (BadSignatureError, CanonicalError, UnicodeEncodeError):
        return False
    return True


def _differing(said: AgentIdentity, agent: AgentEntry, presented: PresentedIdentity) -> str | None:
    """Return the first field of the event's agent that is neither the registry's nor the proposal's own."""
    for field in ("id", "name", "client_id"):
        if getattr(said, field) != getattr(agent, field):
            return field
    return next(
        (name for name in PresentedIdentity.model_fields if getattr(said, name) != getattr(presented, name)), None
    )

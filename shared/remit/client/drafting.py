"""The exact bytes of a proposal, or why it cannot be one: pure.

The body is canonical JSON, so the same call under the same key is the same bytes in every process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from remit.canonical import canonical
from remit.client.outcomes import Refusal
from remit.errors import CanonicalError
from remit.proposal import MAX_PROPOSAL_BYTES, Proposal
from remit.reasons import Reason, Stage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from remit.client.settings import Identity


def draft(identity: Identity, fields: Mapping[str, Any]) -> bytes | Refusal:
    """Return the body of a proposal with these fields, or the refusal that intake would answer."""
    presented = {
        "runtime": identity.runtime,
        "model_family": identity.model_family,
        "model_version": identity.model_version,
        "config_digest": identity.config_digest,
        "session": identity.session,
    }
    proposal = {name: value for name, value in fields.items() if value is not None}
    key = fields["idempotency_key"]
    try:
        body = canonical({**proposal, "v": 1, "identity": presented})
        Proposal.model_validate_json(body)
    except CanonicalError as error:
        return local_refusal(Reason.MALFORMED, f"{error}; arguments hold JSON values only", key)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        return local_refusal(Reason.MALFORMED, f"{where}: {first['msg']}", key)
    if len(body) > MAX_PROPOSAL_BYTES:
        found = f"the proposal has {len(body)} bytes, the limit is {MAX_PROPOSAL_BYTES}"
        return local_refusal(Reason.OVERSIZE, f"{found}; pass large content by reference", key)
    return body


def local_refusal(reason: Reason, detail: str, key: str | None) -> Refusal:
    """Return a refusal that needed no round trip: the proposal was not taken in, so there is no action."""
    return Refusal(reason=reason, stage=Stage.INTAKE, detail=detail, idempotency_key=key)

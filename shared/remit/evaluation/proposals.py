"""The agent's signed proposal, read out of `proposed` and held against what intake said about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ValidationError

from remit.canonical import digest, strict_loads
from remit.errors import CanonicalError, PermanentError
from remit.proposal import Proposal

if TYPE_CHECKING:
    from remit.events import Proposed


def read_proposal(proposed: Proposed) -> Proposal:
    """Return the proposal that `proposed` carries verbatim.

    The agent's signature was checked by intake, whose own signature covers these bytes; whether the event's summary is
    true to them is checked here, because everything later is bound to the summary's argument digest.

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

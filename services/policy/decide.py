"""From an evaluation to the event: pure, so that the same facts always say the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from remit.canonical import digest
from remit.evaluation import Evaluation
from remit.events import Decision, Evaluated
from remit.ids import derive
from remit.reasons import Reason, Verdict

if TYPE_CHECKING:
    from datetime import datetime

    from remit.events import Proposed
    from remit.fold import RemitState


@dataclass(frozen=True, slots=True)
class Judged:
    """Which bundle judged, by which version of the remit (None when no remit was looked at), and when."""

    policy_version: str
    bundle_version: int
    at: datetime
    remit: RemitState | None = None


STALE = Evaluation(
    verdict=Verdict.DENY,
    reason=Reason.STALE_BUNDLE,
    detail="the registry bundle could not be read for too long; propose again later",
)
UNPROCESSABLE = Evaluation(
    verdict=Verdict.DENY,
    reason=Reason.UNPROCESSABLE,
    detail="this action could not be evaluated; operators were told",
)


def evaluated(proposed: Proposed, evaluation: Evaluation, judged: Judged) -> Evaluated:
    """Return the event data of one evaluation; the human is known from here on."""
    document = None if judged.remit is None else judged.remit.document
    human = None if document is None else document.human
    return Evaluated(
        txn=proposed.txn,
        remit_id=proposed.remit_id,
        principal=proposed.principal.model_copy(update={"human": human}),
        action=proposed.action,
        decision=Decision(
            evaluation_id=f"eval_{derive('evaluation', proposed.txn, 'policy').hex}",
            verdict=evaluation.verdict,
            reason=evaluation.reason,
            policy_version=judged.policy_version,
            bundle_version=judged.bundle_version,
            evaluated_at=judged.at,
        ),
        matched_policies=list(evaluation.matched_policies),
        unnamed_sinks=list(evaluation.unnamed_sinks),
        approvers=list(evaluation.approvers),
        quorum=evaluation.quorum,
        grant_no=evaluation.grant_no,
        remit_version=None if judged.remit is None else judged.remit.seq or None,
        task_digest=None if document is None else digest(document.task),
        scopes_grantable=list(evaluation.scopes_grantable),
        detail=evaluation.detail,
    )

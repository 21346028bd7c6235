"""Thin shell of intake: look up, decide, append or refuse, tell the agent."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from remit.canonical import digest, digest_bytes
from remit.errors import PermanentError, TransientError
from remit.events import ActionProposed
from remit.fold import ActionState
from remit.ids import ACTION_ID, AGENT_NAME, action_id
from remit.proposal import SIGNATURE_HEADER
from remit.reasons import Reason
from remit.runtime.ledger import Draft, Superseded
from services.intake.decide import (
    Admitted,
    Rejected,
    Submission,
    admit,
    cannot_be_stored,
    conflict,
    given_up,
    is_same_call,
    over_quota,
)
from services.intake.notices import no_such_action, notice_for, notice_of, rejection
from services.intake.quota import Quota

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Protocol

    from remit.envelope import Recorded
    from remit.events import ActionEvent
    from remit.proposal import Notice, Proposal
    from remit.runtime.delivery import Inbound
    from services.intake.catalogue import Catalogue

    class DeadLetter(Protocol):
        """Keep a message as evidence; returns when it is stored."""

        def __call__(self, inbound: Inbound, *, code: str, detail: str, keep: int) -> Awaitable[None]:
            """Keep `keep` bytes of the body; raise TransientError when it could not be stored."""
            ...


PROPOSE_ROOT = "in.propose."
TRACEPARENT = re.compile(r"^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$")
"""W3C Trace Context, version 00; anything else from an agent is dropped."""
STRANGER = "?"
"""Evidence budget shared by all senders that the registry does not know."""
EVIDENCE_BURST = 60
EVIDENCE_PER_MINUTE = 1
EVIDENCE_BYTES = 1024
"""Refusals of one agent that become dead letters, and how much of each: 3 MB a day of the stream that all services share."""
STATUS_PER_MINUTE = 600
STATUS_BURST = 64
"""Questions of one agent that are answered, each by a read of the whole action; a burst fills a part of the queue only."""
REGISTRY_MOVED = frozenset({Reason.UNKNOWN_TOOL, Reason.UNKNOWN_ACTION, Reason.SCHEMA_VIOLATION})
"""Refusals that an action accepted under an earlier bundle could meet when its proposal is repeated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IntakeHandlers:
    """Everything intake needs from outside, built once in app.py."""

    tenant: str
    catalogue: Callable[[], Catalogue]
    read: Callable[[str], Awaitable[ActionState]]
    append: Callable[[ActionState, Draft], Awaitable[ActionState]]
    publish: Callable[[str, bytes], Awaitable[None]]
    dead_letter: DeadLetter
    alarm: Callable[[str], None]
    monotonic: Callable[[], float]
    proposals: Quota = field(default_factory=Quota)
    evidence: Quota = field(default_factory=Quota)
    questions: Quota = field(default_factory=Quota)

    async def on_proposal(self, inbound: Inbound) -> None:
        """Turn one agent's message into an action, or tell the agent why not."""
        submission = _submission(inbound)
        decided = admit(submission, self.catalogue(), tenant=self.tenant)
        if isinstance(decided, Admitted):
            decided = self._within_quota(submission, decided, inbound) or decided
        if isinstance(decided, Admitted):
            await self._accept(inbound, submission, decided)
        elif not await self._already_an_action(submission, decided):
            await self._refuse(inbound, submission, decided)

    async def on_exhausted(self, inbound: Inbound) -> None:
        """Give up a proposal that could not be worked on; the agent hears of it and may ask again."""
        await self._refuse(inbound, _submission(inbound), given_up())

    async def on_event(self, recorded: Recorded) -> None:
        """Tell the agent what became of its action; best effort, `status` has the truth."""
        event = cast("ActionEvent", recorded.event)
        notice = notice_of(event)
        if notice is not None:
            await self._tell(event.data.principal.agent.name, event.subject, notice)

    def may_ask(self, subject: str) -> bool:
        """Return whether `status.<agent>.<action_id>` is within its agent's rate; the broker vouches for the agent's name."""
        agent = subject.split(".")[1]
        return self.questions.take(agent, STATUS_PER_MINUTE, self.monotonic(), burst=STATUS_BURST) == 0

    async def on_status(self, inbound: Inbound) -> bytes:
        """Answer where an action stands, to the agent that proposed it and to nobody else."""
        _, agent, action = inbound.subject.split(".")
        state = await self.read(action) if ACTION_ID.fullmatch(action) else ActionState(action_id=action)
        proposed = state.find(ActionProposed)
        if proposed is None or proposed.data.principal.agent.name != agent:
            return _wire(no_such_action(agent, action), agent)
        return _wire(notice_for(state), agent)

    def _within_quota(self, submission: Submission, admitted: Admitted, inbound: Inbound) -> Rejected | None:
        if inbound.delivered > 1:
            return None  # Redelivery is the broker's doing, so it costs the agent nothing.
        rate = admitted.proposals_per_minute
        wait_s = self.proposals.take(submission.agent, rate, self.monotonic())
        return over_quota(wait_s, rate) if wait_s else None

    async def _accept(self, inbound: Inbound, submission: Submission, admitted: Admitted) -> None:
        try:
            state = await self._append_proposed(admitted, inbound.headers.get("traceparent"))
        except PermanentError as error:
            await self._refuse(inbound, submission, cannot_be_stored(error))
            return
        action = admitted.proposed.action
        if is_same_call(state, remit_id=admitted.proposed.remit_id, action=action.name, args_digest=action.args_digest):
            told = notice_for(state, proposal_digest=digest_bytes(submission.body))
            await self._tell(submission.agent, state.action_id, told)
        else:
            await self._refuse(inbound, submission, conflict(state.action_id))

    async def _append_proposed(self, admitted: Admitted, traceparent: str | None) -> ActionState:
        trace = traceparent if traceparent and TRACEPARENT.fullmatch(traceparent) else None
        draft = Draft(event=ActionProposed, data=admitted.proposed, traceparent=trace)
        state = ActionState(action_id=admitted.action_id)
        while True:
            try:
                return await self.append(state, draft)
            except Superseded as lost:
                if lost.state.chain:
                    return lost.state
                # Only junk stands on the action's subjects: its sequence counts, its content does not.
                state = lost.state

    async def _already_an_action(self, submission: Submission, rejected: Rejected) -> bool:
        """Answer a repeated proposal by its action even when the registry no longer knows the call."""
        proposal = rejected.proposal
        if proposal is None or rejected.reason not in REGISTRY_MOVED:
            return False
        state = await self.read(action_id(self.tenant, submission.agent, proposal.idempotency_key))
        if not state.chain or not _is_proposed_by(state, proposal):
            return False
        told = notice_for(state, proposal_digest=digest_bytes(submission.body))
        await self._tell(submission.agent, state.action_id, told)
        return True

    async def _refuse(self, inbound: Inbound, submission: Submission, rejected: Rejected) -> None:
        name = STRANGER if rejected.reason is Reason.UNKNOWN_AGENT else submission.agent
        if self.evidence.take(name, EVIDENCE_PER_MINUTE, self.monotonic(), burst=EVIDENCE_BURST):
            self.alarm("refusal_evidence_left_out")
        else:
            await self._keep(inbound, rejected)
        if AGENT_NAME.fullmatch(submission.agent):
            told = rejection(rejected, proposal_digest=digest_bytes(submission.body), seq=inbound.seq or 0)
            await self._tell(submission.agent, "rejected", told)

    async def _keep(self, inbound: Inbound, rejected: Rejected) -> None:
        # A full DLQ must not turn refusals into proposals that are delivered for ever.
        try:
            await self.dead_letter(inbound, code=rejected.reason, detail=rejected.detail, keep=EVIDENCE_BYTES)
        except (TransientError, PermanentError):
            self.alarm("refusal_evidence_lost")

    async def _tell(self, agent: str, token: str, notice: Notice) -> None:
        await self.publish(f"results.{agent}.{token}", _wire(notice, agent))


def _submission(inbound: Inbound) -> Submission:
    return Submission(
        agent=inbound.subject.removeprefix(PROPOSE_ROOT),
        body=inbound.body,
        signature=inbound.headers.get(SIGNATURE_HEADER),
    )


def _is_proposed_by(state: ActionState, proposal: Proposal) -> bool:
    return is_same_call(
        state,
        remit_id=proposal.remit_id,
        action=f"{proposal.tool}.{proposal.action}",
        args_digest=digest(proposal.arguments),
    )


def _wire(notice: Notice, agent: str) -> bytes:
    # Whoever asks chooses where the answer goes, so it says whom it is meant for.
    return notice.model_copy(update={"agent": agent}).model_dump_json(exclude_none=True).encode()

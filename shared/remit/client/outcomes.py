"""What a proposal comes to: a result, a refusal, or a pending handle that survives restarts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from remit.client.errors import HandleError
from remit.ids import ACTION_ID
from remit.reasons import Outcome, Reason, Stage

if TYPE_CHECKING:
    from datetime import datetime

    from pydantic import JsonValue

    from remit.client.agent import Agent
    from remit.proposal import Notice

_BOUND = "bound"
_HANDLE_PARTS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The call was made, or it is not known whether it was: look at `outcome` before `value`."""

    outcome: Outcome
    value: JsonValue = None
    """The tool's answer after redaction; None when `omitted` says why."""
    action_id: str
    idempotency_key: str | None = None
    detail: str | None = None
    """Class of the error when the outcome is failed or unknown."""
    omitted: str | None = None
    redacted_paths: tuple[str, ...] = ()
    """JSON pointers that were removed from `value`."""

    @property
    def succeeded(self) -> bool:
        """Whether the effect is certain."""
        return self.outcome is Outcome.SUCCEEDED


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Nothing was called, and nothing will be under this proposal."""

    reason: Reason | None
    stage: Stage | None
    detail: str | None = None
    """What was found, what was expected, what to do."""
    alternatives: tuple[str, ...] = ()
    action_id: str | None = None
    """Absent when intake refused, because then there is no action."""
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Handle:
    """What another process needs to ask again; nothing in it is secret, and it works only with the agent's own key.

    `proposal_digest` is there while intake has not answered: then only an action made from those bytes counts.
    """

    agent: str
    action_id: str
    idempotency_key: str | None = None
    proposal_digest: str | None = None

    def __str__(self) -> str:
        """Return `agent/action id/digest or "bound"/key`; the key comes last because it may hold slashes."""
        return "/".join((self.agent, self.action_id, self.proposal_digest or _BOUND, self.idempotency_key or ""))

    @classmethod
    def parse(cls, text: str, *, agent: str) -> Self:
        """Return the handle of a text that `str` made, or of a bare action id.

        Raises:
            HandleError: it is neither, or it belongs to another agent.

        """
        if ACTION_ID.fullmatch(text):
            return cls(agent=agent, action_id=text)
        parts = text.split("/", _HANDLE_PARTS - 1)
        if len(parts) != _HANDLE_PARTS or not ACTION_ID.fullmatch(parts[1]):
            raise HandleError("not a handle; expected the text of `Pending.handle` or an action id")
        if parts[0] != agent:
            raise HandleError(f"the handle belongs to agent {parts[0]!r}, this is agent {agent!r}")
        binding = None if parts[2] == _BOUND else parts[2]
        return cls(agent=agent, action_id=parts[1], proposal_digest=binding, idempotency_key=parts[3] or None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """Not decided or not finished yet. Keep `handle`; `Pending.resume(agent, handle)` goes on in another process."""

    handle: str
    action_id: str
    idempotency_key: str | None
    expires_at: datetime | None = None
    """When people have not decided by then, the answer is a refusal; None while nobody is asked."""
    agent: Agent = field(repr=False, compare=False)
    body: bytes | None = field(default=None, repr=False, compare=False)
    """The proposal while intake has not answered it; stays in this process."""

    @property
    def awaits_approval(self) -> bool:
        """Whether people were asked and have until `expires_at`."""
        return self.expires_at is not None

    async def wait(self, timeout: float | None = None) -> Result | Refusal | Pending:  # noqa: ASYNC109  (a wait, not a cancellation)
        """Wait up to `timeout` seconds (None: as long as it takes) and return what is known then.

        Give a timeout to a handle that was stored before intake answered: should intake have refused the proposal
        meanwhile, only proposing again with the same key tells.
        """
        handle = Handle.parse(self.handle, agent=self.agent.name)
        return await self.agent.follow(handle, wait=timeout, body=self.body)

    @staticmethod
    def resume(agent: Agent, handle: str) -> Pending:
        """Return the pending action of a stored handle.

        Raises:
            HandleError: not a handle of this agent.

        """
        return agent.pending(handle)


def conclude(notice: Notice, *, action_id: str, idempotency_key: str | None) -> Result | Refusal:
    """Return what a final notice means to the agent."""
    if notice.outcome is not None:
        return Result(
            outcome=notice.outcome,
            value=notice.result,
            action_id=action_id,
            idempotency_key=idempotency_key,
            detail=notice.detail,
            omitted=notice.result_omitted,
            redacted_paths=tuple(notice.redacted_paths),
        )
    return Refusal(
        reason=notice.reason,
        stage=notice.stage,
        detail=notice.detail,
        alternatives=tuple(notice.alternatives),
        action_id=notice.action_id,
        idempotency_key=idempotency_key,
    )

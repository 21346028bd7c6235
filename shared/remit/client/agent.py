"""The agent's side of Remit: propose one call, get a result, a refusal, or a pending handle.

Proposing the same idempotency key again is always safe: the second proposal finds the action of the first. Source: design,
bus section 7 (agent SDK).
"""

from __future__ import annotations

import logging
import secrets
from typing import TYPE_CHECKING, Any, Self

import orjson
from pydantic import ValidationError

from remit.canonical import b64url, digest_bytes
from remit.client.drafting import draft, local_refusal
from remit.client.errors import NotConnectedError, UndeliveredError
from remit.client.link import Link
from remit.client.outcomes import Handle, Pending, Refusal, Result, conclude
from remit.client.settings import AgentSettings, Identity, read_environment
from remit.client.tracking import Desk, Tracked
from remit.clock import monotonic
from remit.ids import action_id, fresh_key
from remit.nkey import signing_key
from remit.proposal import SIGNATURE_HEADER, Notice, signed_bytes
from remit.reasons import Reason

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping, Sequence
    from types import TracebackType

log = logging.getLogger("remit.client")

ACK_TIMEOUT_S = 5.0
DELIVERY_S = 10.0
"""Least time given to deliver a proposal, however short the wait for its outcome."""
FIRST_PAUSE_S = 0.2
MAX_PAUSE_S = 5.0
FIRST_POLL_S = 2.0
MAX_POLL_S = 10.0
"""Notices come by best-effort delivery; `status` is asked at this pace in case one was lost."""


class Agent:
    """One registered agent's connection; use as `async with Agent(...) as agent`."""

    def __init__(  # noqa: PLR0913  (keyword-only: what an agent has to say about itself)
        self,
        *,
        name: str,
        nkey_seed: str,
        identity: Identity,
        servers: str | Sequence[str] = ("nats://127.0.0.1:4222",),
        tls: ssl.SSLContext | None = None,
        tenant: str = "default",
    ) -> None:
        """Check name and seed; nothing is connected yet.

        Raises:
            ConfigurationError: the name or the seed cannot be one.

        """
        urls = (servers,) if isinstance(servers, str) else tuple(servers)
        self._settings = AgentSettings(
            name=name, nkey_seed=nkey_seed, identity=identity, servers=urls, tls=tls, tenant=tenant
        )
        self._key = signing_key(nkey_seed)
        self._desk = Desk()
        self._link = Link(self._settings, self._on_notice)

    @classmethod
    def from_env(cls) -> Self:
        """Return the agent that the environment describes (see `remit.client.settings.read_environment`).

        Raises:
            ConfigurationError: a variable is missing or unusable; the message names it.

        """
        found = read_environment()
        return cls(
            name=found.name, nkey_seed=found.nkey_seed, identity=found.identity, servers=found.servers, tls=found.tls,
            tenant=found.tenant,
        )  # fmt: skip

    @property
    def name(self) -> str:
        """The registry's name of this agent."""
        return self._settings.name

    async def __aenter__(self) -> Self:
        """Connect; raises what `remit.client.link.Link.open` raises."""
        await self._link.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect; pending actions go on without the agent."""
        await self._link.close()

    async def propose(  # noqa: PLR0913  (call, arguments and what bounds them; the rest is optional and named)
        self,
        call: str,
        arguments: Mapping[str, Any],
        *,
        remit: str,
        idempotency_key: str | None = None,
        wait: float = 30.0,
        rationale: str | None = None,
    ) -> Result | Refusal | Pending:
        """Ask for one call `tool.action` under a remit and wait up to `wait` seconds for what becomes of it.

        Without an idempotency key each call is a new one. `rationale` is shown to approvers as unverified.

        Raises:
            UndeliveredError: it is not known whether the proposal arrived; propose again with the error's key.
            NotConnectedError, AgentKeyError, NotPermittedError: the broker cannot be used.

        """
        key = idempotency_key or fresh_key()
        tool, _, action = call.partition(".")
        fields = {
            "idempotency_key": key, "remit_id": remit, "tool": tool, "action": action, "arguments": arguments,
            "rationale": rationale,
        }  # fmt: skip
        body = draft(self._settings.identity, fields)
        if isinstance(body, Refusal):
            return body
        started = monotonic()
        guess = action_id(self._settings.tenant, self.name, key)
        tracked = Tracked(action_id=guess, idempotency_key=key, digest=digest_bytes(body), body=body)
        with self._desk.watching(tracked):
            refused = await self._deliver(tracked, deadline=started + max(wait, DELIVERY_S))
            return refused or await self._follow(tracked, deadline=started + wait)

    def pending(self, handle: str) -> Pending:
        """Return the pending action of a stored handle or of an action id.

        Raises:
            HandleError: the text is neither, or belongs to another agent.

        """
        parsed = Handle.parse(handle, agent=self.name)
        return Pending(
            handle=str(parsed), action_id=parsed.action_id, idempotency_key=parsed.idempotency_key, agent=self
        )

    async def follow(
        self, handle: Handle, *, wait: float | None, body: bytes | None = None
    ) -> Result | Refusal | Pending:
        """Wait up to `wait` seconds (None: as long as it takes) for an action that was proposed before.

        With the proposal's `body` it is proposed again should intake not know it.
        """
        tracked = Tracked(
            action_id=handle.action_id,
            idempotency_key=handle.idempotency_key,
            digest=handle.proposal_digest,
            body=body,
        )
        with self._desk.watching(tracked):
            await self._ask(tracked)
            return await self._follow(tracked, deadline=None if wait is None else monotonic() + wait)

    async def _deliver(self, tracked: Tracked, *, deadline: float) -> Refusal | None:
        """Send until the broker stored it or a notice shows that it did; the same bytes each time."""
        pause, certain = FIRST_PAUSE_S, True
        while True:
            answer = await self._send(tracked, timeout_s=min(ACK_TIMEOUT_S, max(0.1, deadline - monotonic())))
            if answer == "" or tracked.answered:
                return None
            certain = certain and answer is not None
            if monotonic() + pause >= deadline:
                break
            await tracked.moved(_jittered(pause))
            if tracked.answered:
                return None
            pause = min(MAX_PAUSE_S, pause * 2)
        key = tracked.idempotency_key or ""
        if certain:
            return local_refusal(Reason.QUOTA_EXCEEDED, f"the broker takes no more proposals now: {answer}", key)
        detail = (
            f"agent {self.name}: no acknowledgement of the proposal ({self._link.problem}); propose again with the same "
            "idempotency_key, which is safe"
        )
        raise UndeliveredError(detail, idempotency_key=key)

    async def _send(self, tracked: Tracked, *, timeout_s: float) -> str | None:
        """Publish once: "" when stored, the broker's words when it refused, None when nobody knows."""
        body = tracked.body or b""
        signature = self._key.sign(signed_bytes(self.name, body)).signature
        headers = {SIGNATURE_HEADER: b64url(signature)}
        try:
            reply = await self._link.request(f"propose.{self.name}", body, headers=headers, timeout_s=timeout_s)
        except NotConnectedError:
            return None
        return None if reply is None else _refused_by_broker(reply)

    async def _follow(self, tracked: Tracked, *, deadline: float | None) -> Result | Refusal | Pending:
        poll, pause = FIRST_POLL_S, FIRST_PAUSE_S
        while tracked.final is None:
            left = MAX_POLL_S if deadline is None else deadline - monotonic()
            if left <= 0:
                break
            if tracked.throttled is not None:
                pause = min(MAX_PAUSE_S, pause * 2)
                if pause > left:
                    break
                await tracked.moved(_jittered(pause))
                tracked.throttled = None
                await self._send(tracked, timeout_s=ACK_TIMEOUT_S)
            elif not await tracked.moved(min(left, _jittered(poll))):
                await self._ask(tracked)
                poll = min(MAX_POLL_S, poll * 1.5)
        return self._conclusion(tracked)

    async def _ask(self, tracked: Tracked) -> None:
        """Ask `status`; intake alive but without such an action means that its refusal was lost: propose again."""
        try:
            reply = await self._link.request(
                f"status.{self.name}.{tracked.action_id}", b"", headers=None, timeout_s=ACK_TIMEOUT_S
            )
        except NotConnectedError:
            return
        notice = None if reply is None else self._parse(reply)
        if notice is None:
            return
        if notice.status == "rejected":
            tracked.absences += 1
            # The proposal may still lie in INTAKE, so only every second absence is taken for a lost refusal.
            if tracked.body is not None and not tracked.bound and tracked.absences % 2 == 0:
                await self._send(tracked, timeout_s=ACK_TIMEOUT_S)
        else:
            self._desk.deliver(notice)

    def _conclusion(self, tracked: Tracked) -> Result | Refusal | Pending:
        final = tracked.final or tracked.throttled
        if final is not None:
            return conclude(final, action_id=tracked.action_id, idempotency_key=tracked.idempotency_key)
        handle = Handle(
            agent=self.name,
            action_id=tracked.action_id,
            idempotency_key=tracked.idempotency_key,
            proposal_digest=None if tracked.bound else tracked.digest,
        )
        latest = tracked.latest
        return Pending(
            handle=str(handle),
            action_id=tracked.action_id,
            idempotency_key=tracked.idempotency_key,
            expires_at=latest.expires_at if latest is not None else None,
            agent=self,
            body=None if tracked.bound else tracked.body,
        )

    def _on_notice(self, body: bytes) -> None:
        notice = self._parse(body)
        if notice is not None:
            self._desk.deliver(notice)

    def _parse(self, body: bytes) -> Notice | None:
        """Return a notice that is meant for this agent; another agent may have its own answers sent here."""
        try:
            notice = Notice.model_validate_json(body)
        except ValidationError:
            log.warning("a notice does not fit version 1 of the contract; update the SDK")
            return None
        if notice.agent != self.name:
            log.warning("a notice for another agent was sent here and is not believed")
            return None
        return notice


def _refused_by_broker(reply: bytes) -> str | None:
    """Return "" for a PubAck, the broker's words for its refusal, None for something else."""
    try:
        answer: Any = orjson.loads(reply)
        error = answer.get("error")
        if error is None:
            return "" if "seq" in answer else None
        return f"{error.get('code')} {error.get('description')}"
    except (orjson.JSONDecodeError, AttributeError):
        return None


def _jittered(seconds: float) -> float:
    """Spread many agents' retries: between half and the whole of it."""
    return seconds * (0.5 + secrets.randbelow(1000) / 2000)

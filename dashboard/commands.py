"""Sends people's commands to approval and returns its answer: one request a press, on the server's own event loop.

NATS lives in Uvicorn's loop; pages run in script threads and only wait here. No answer is never success.
Source: design, dashboard section 2 (Commands) and section 4 (Async).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from typing import TYPE_CHECKING, Protocol

import nats
import nats.errors
import structlog

from remit import ids
from remit.commands import (
    REPLY_TIMEOUT_S,
    ApproveCommand,
    DenyCommand,
    GrantCommand,
    Reply,
    RevokeCommand,
    parse_reply,
)

if TYPE_CHECKING:
    from nats.aio.client import Client
    from pydantic import SecretStr

    from dashboard.model.rows import ActionRow
    from dashboard.model.viewer import Viewer
    from dashboard.settings import DashboardSettings
    from remit.commands import Command, RevokeKind
    from remit.remits import RemitTerms

BRIDGE_TIMEOUT_S = REPLY_TIMEOUT_S + 1
"""How long a script thread waits for the loop; the request itself gives up before."""
NOT_KNOWN = (
    "no answer within 3 s, so it is not known whether this happened; press again, which repeats the same request"
)
UNREACHABLE = "approval cannot be reached, so nothing was done; try again, or use the remit command line"

_log = structlog.get_logger("dashboard.commands")


class Sender(Protocol):
    """What pages need of the bus."""

    def send(self, command: Command) -> Reply:
        """Ask approval and wait for its answer."""
        ...


class BusSender:
    """Requests over NATS as principal `dashboard`; its inbox is its own, and it may publish commands and nothing else."""

    def __init__(self, settings: DashboardSettings) -> None:
        self._servers, self._seed = settings.nats_url.split(","), settings.nkey_seed_file
        self._tls = settings.tls()
        self._client: Client | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def is_connected(self) -> bool:
        """Whether the broker is there right now."""
        return self._client is not None and self._client.is_connected

    async def start(self) -> None:
        """Connect, and keep reconnecting; the dashboard serves reads meanwhile."""
        self._loop = asyncio.get_running_loop()
        self._client = await nats.connect(
            self._servers,
            name="dashboard",
            nkeys_seed_str=self._seed.read_text().strip(),
            inbox_prefix=b"_IBX.dashboard",
            tls=self._tls,
            tls_handshake_first=self._tls is not None,
            error_cb=_report,
            allow_reconnect=True,
            max_reconnect_attempts=-1,
            reconnect_time_wait=1,
            connect_timeout=5,
        )

    async def stop(self) -> None:
        """Close the connection."""
        if self._client is not None:
            await self._client.close()

    def send(self, command: Command) -> Reply:
        """Ask approval from a script thread and wait for its answer."""
        if self._loop is None or not self.is_connected:
            return Reply(status="unavailable", detail=UNREACHABLE)
        future = asyncio.run_coroutine_threadsafe(self._request(command), self._loop)
        try:
            return future.result(BRIDGE_TIMEOUT_S)
        except concurrent.futures.TimeoutError:
            future.cancel()
            return Reply(status="unavailable", detail=NOT_KNOWN)

    async def _request(self, command: Command) -> Reply:
        if self._client is None:
            return Reply(status="unavailable", detail=UNREACHABLE)
        try:
            answer = await self._client.request(command.subject(), command.to_wire(), timeout=REPLY_TIMEOUT_S)
        except nats.errors.NoRespondersError:
            return Reply(status="unavailable", detail=UNREACHABLE)
        except (nats.errors.Error, TimeoutError) as error:
            _log.warning("command_unanswered", command=command.name, error=type(error).__name__)
            return Reply(status="unavailable", detail=NOT_KNOWN)
        reply = parse_reply(answer.data)
        _log.info("command_answered", command=command.name, status=reply.status)
        return reply


async def _report(error: Exception) -> None:
    _log.warning("nats_error", error=type(error).__name__)


def approve(row: ActionRow, viewer: Viewer, token: SecretStr) -> ApproveCommand:
    """Return the approval of exactly what was shown; the same person and card always make the same key.

    A second click, a retry after no answer and a second tab therefore repeat one question instead of asking two.
    """
    return ApproveCommand(
        id_token=token,
        idempotency_key=_key("approve", row, viewer),
        action_id=row.action_id,
        args_digest=row.args_digest,
        version=row.round,
        shown_digest=row.shown_digest,
    )


def deny(row: ActionRow, viewer: Viewer, token: SecretStr, reason: str | None) -> DenyCommand:
    """Return the refusal of one action; the reason goes back to the agent as data."""
    return DenyCommand(
        id_token=token,
        idempotency_key=_key("deny", row, viewer),
        action_id=row.action_id,
        version=row.round,
        reason=reason,
    )


def grant(terms: RemitTerms, token: SecretStr, *, key: str, preview_digest: str | None = None) -> GrantCommand:
    """Return the preview of a delegation, or with the preview's digest the delegation itself; `key` names the draft."""
    return GrantCommand(
        id_token=token,
        idempotency_key=key,
        terms=terms,
        phase=None if preview_digest else "preview",
        remit_digest=preview_digest,
    )


def revoke(kind: RevokeKind, target: str, reason: str, token: SecretStr, *, lift: bool = False) -> RevokeCommand:
    """Return the stop (or, with `lift`, the release) of whatever stands behind one target."""
    return RevokeCommand(
        id_token=token, idempotency_key=ids.fresh_key(), kind=kind, target=target, reason=reason, lift=lift
    )


def _key(decision: str, row: ActionRow, viewer: Viewer) -> str:
    return ids.derive("dashboard", decision, row.action_id, str(row.round), row.args_digest, viewer.key).hex

"""The people of the demonstration and what they do: real logins, real commands to approval, nothing by the back door."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import nats.errors
from pydantic import TypeAdapter

from infra.demo.identity import id_token
from remit.commands import REPLY_TIMEOUT_S, Command, GrantCommand, Reply, parse_reply
from remit.errors import RemitError
from remit.ids import fresh_key
from remit.remits import RemitTerms

if TYPE_CHECKING:
    from nats.aio.client import Client

CLIENT_ID = "remit-cli"
REDIRECT_URI = "http://localhost/callback"
"""Never visited: the scripted login reads the code from the redirect."""
ATTEMPTS = 20


class CommandRefusedError(RemitError):
    """Approval did not carry out what the demonstration needs; the message holds its answer."""


@dataclass(slots=True)
class People:
    """Logged-in people and the command line's connection."""

    client: Client
    issuer: str
    _tokens: dict[str, str] = field(default_factory=dict[str, str], repr=False)

    async def token(self, person: str) -> str:
        """Return a person's ID token, logging in at the first use."""
        if person not in self._tokens:
            self._tokens[person] = await id_token(self.issuer, person, CLIENT_ID, REDIRECT_URI)
        return self._tokens[person]

    async def command(self, person: str, kind: type[Command], /, **fields: Any) -> Reply:  # noqa: ANN401  (the command's own)
        """Send one command as a person; no answer is not known, so the same key is sent again."""
        command = kind(id_token=await self.token(person), idempotency_key=fresh_key(), **fields)  # type: ignore[arg-type]
        body = command.to_wire()
        for _ in range(ATTEMPTS):
            try:
                message = await self.client.request(kind.subject(), body, timeout=REPLY_TIMEOUT_S)
            except (nats.errors.TimeoutError, nats.errors.NoRespondersError):
                await asyncio.sleep(0.5)
                continue
            reply = parse_reply(message.data)
            if reply.status != "unavailable":
                return reply
            await asyncio.sleep(0.5)
        raise CommandRefusedError(f"approval did not answer {kind.subject()} in {ATTEMPTS} attempts")

    async def grant(self, terms: dict[str, Any]) -> str:
        """Let Emma delegate a task and return the remit's id.

        Raises:
            CommandRefusedError: approval did not grant it.

        """
        raw = TypeAdapter(dict[str, Any]).dump_json(terms)
        reply = await self.command("emma", GrantCommand, terms=RemitTerms.model_validate_json(raw))
        if reply.status != "ok" or reply.remit_id is None:
            raise CommandRefusedError(f"the remit was not granted: {reply.status}: {reply.detail}")
        return reply.remit_id

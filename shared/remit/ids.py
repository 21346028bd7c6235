"""Typed ids. A child id derives from its parent and its step, so redelivery repeats it instead of inventing a new one."""

from __future__ import annotations

import json
import re
import secrets
import uuid
from typing import NewType

ActionId = NewType("ActionId", str)
RemitId = NewType("RemitId", str)
EventId = NewType("EventId", str)
Jti = NewType("Jti", str)

NAMESPACE = uuid.UUID("6f1a2a6e-7d0f-5b8e-9b1a-3a4c0d5e7f21")
"""Root of every derived id; changing it would break the idempotency of everything stored."""

ACTION_ID = re.compile(r"^[0-9a-f]{32}$")
REMIT_ID = re.compile(r"^rem_[0-9a-f]{32}$")
AGENT_NAME = re.compile(r"^[a-z][a-z0-9-]{0,62}$")
"""One NATS subject token; agents are named by the registry, never by themselves."""
SLUG = re.compile(r"^[a-z][a-z0-9_-]{0,62}$")
"""Tool, action and credential names."""


def derive(*parts: str) -> uuid.UUID:
    """Return the uuid5 of the parts; JSON framing keeps ("a", "bc") apart from ("ab", "c")."""
    return uuid.uuid5(NAMESPACE, json.dumps(parts, ensure_ascii=True, separators=(",", ":")))


def action_id(tenant: str, agent: str, idempotency_key: str) -> ActionId:
    """Return the action of one proposal: an agent's retries collide on purpose (design, bus section 2)."""
    return ActionId(derive("action", tenant, agent, idempotency_key).hex)


def remit_id(iss: str, sub: str, idempotency_key: str) -> RemitId:
    """Return the remit of one grant command; a repeated command names the same remit."""
    return RemitId("rem_" + derive("remit", iss, sub, idempotency_key).hex)


def event_id(subject_id: str, event_type: str, discriminator: str = "1") -> EventId:
    """Return the id of an event: subject id, type and what tells repetitions apart.

    The discriminator is the attempt of `tokenized` and `executed`, the round of `approval_requested`, and the command's
    idempotency key wherever a person decides, so that two people racing never share an event id.
    """
    return EventId(str(derive("event", subject_id, event_type, discriminator)))


def jti(action: str, attempt: int) -> Jti:
    """Return the token id of one minting attempt (design, bus section 7: deterministic per action and attempt)."""
    return Jti("tok_" + derive("jti", action, str(attempt)).hex)


def human_subject(iss: str, sub: str) -> str:
    """Return a human as tokens name them: stable and opaque, because a provider's own subject may be an e-mail address."""
    return "usr_" + derive("human", iss, sub).hex


def fresh_key() -> str:
    """Return an unguessable idempotency key for callers that brought none."""
    return secrets.token_urlsafe(18)

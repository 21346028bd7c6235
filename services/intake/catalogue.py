"""What intake looks up per proposal, derived once per bundle: agents' public keys and tools' identities."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import TYPE_CHECKING

import nkeys
from nacl.signing import VerifyKey

from remit.events import ToolIdentity

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from remit.bundle import AgentEntry
    from remit.evaluation import CompiledBundle

KEY_BYTES = 32
NKEY_BYTES = 1 + KEY_BYTES + 2
"""Prefix byte, Ed25519 public key, CRC-16 (NATS nkeys)."""


@dataclass(frozen=True, slots=True)
class RegisteredAgent:
    """A registry entry with its key decoded; no key means the entry's spelling is broken, so nothing verifies."""

    entry: AgentEntry
    key: VerifyKey | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """One bundle as intake sees it."""

    bundle: CompiledBundle
    agents: Mapping[str, RegisteredAgent]
    tools: Mapping[str, ToolIdentity]
    """By action id (`tool.action`)."""

    @classmethod
    def of(cls, bundle: CompiledBundle) -> Catalogue:
        """Derive the look-ups of a bundle."""
        agents = {e.name: RegisteredAgent(e, decode_user_key(e.public_key)) for e in bundle.content.agents.values()}
        tools = {
            action.id: ToolIdentity(
                kind=action.tool.connector,
                resource=action.tool.resource,
                name=action.tool.tool,
                schema_digest=action.schema_digest,
            )
            for action in bundle.actions()
        }
        return cls(bundle=bundle, agents=agents, tools=tools)


class CatalogueReader:
    """Follows the bundle in force and derives again only when it changed."""

    def __init__(self, current: Callable[[], CompiledBundle]) -> None:
        self._current = current
        self._catalogue: Catalogue | None = None

    def __call__(self) -> Catalogue:
        """Return the catalogue in force.

        Raises:
            StaleBundleError: no bundle may be trusted right now; proposals wait.

        """
        bundle = self._current()
        if self._catalogue is None or self._catalogue.bundle is not bundle:
            self._catalogue = Catalogue.of(bundle)
        return self._catalogue


def decode_user_key(text: str) -> VerifyKey | None:
    """Return the Ed25519 key of a public user nkey, or None when prefix, length or checksum is wrong."""
    try:
        raw = base64.b32decode(text + "=" * (-len(text) % 8))
    except (binascii.Error, ValueError):
        return None
    body, checksum = raw[:-2], raw[-2:]
    if len(raw) != NKEY_BYTES or body[0] != nkeys.PREFIX_BYTE_USER:
        return None
    if bytes(nkeys.crc16_checksum(body)) != checksum:
        return None
    return VerifyKey(body[1:])

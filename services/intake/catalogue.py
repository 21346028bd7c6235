"""What intake looks up per proposal, derived once per bundle: agents' public keys and tools' identities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from remit.events import ToolIdentity
from remit.nkey import verify_key

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nacl.signing import VerifyKey

    from remit.bundle import AgentEntry
    from remit.evaluation import CompiledBundle


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
        agents = {e.name: RegisteredAgent(e, _key_of(e)) for e in bundle.content.agents.values()}
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


def _key_of(entry: AgentEntry) -> VerifyKey | None:
    try:
        return verify_key(entry.public_key)
    except ValueError:
        return None

"""Who looks at the screen, as far as the sign-in says. Display only: approval verifies the ID token on every command."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Viewer:
    """The signed-in person; `roles` are approver groups and the roles delegator, operator and admin."""

    iss: str
    sub: str
    name: str
    roles: frozenset[str]
    expires_at: datetime

    @property
    def key(self) -> str:
        """The person as the read model and the human kill switch spell it."""
        return f"{self.iss}|{self.sub}"

    @property
    def is_operator(self) -> bool:
        """Whether kill switches are likely to answer."""
        return "operator" in self.roles

    @property
    def is_delegator(self) -> bool:
        """Whether a grant is likely to be accepted."""
        return "delegator" in self.roles

    def is_in(self, groups: Iterable[str]) -> bool:
        """Return whether the person belongs to one of the approver groups."""
        return not self.roles.isdisjoint(groups)


def viewer_of(claims: Mapping[str, object], roles_claim: str) -> Viewer | None:
    """Return the person of an ID token's claims, or None when they name nobody or no end."""
    iss, sub, expires = claims.get("iss"), claims.get("sub"), claims.get("exp")
    if not isinstance(iss, str) or not isinstance(sub, str) or not isinstance(expires, int | float):
        return None
    name = claims.get("name")
    return Viewer(
        iss=iss,
        sub=sub,
        name=name if isinstance(name, str) and name else sub,
        roles=_roles(claims.get(roles_claim)),
        expires_at=datetime.fromtimestamp(expires, UTC),
    )


def _roles(found: object) -> frozenset[str]:
    # A claim of another shape grants nothing; a plain string is never split.
    if not isinstance(found, list | tuple):
        return frozenset()
    return frozenset(role for role in cast("list[object]", found) if isinstance(role, str))

"""What the claims of an ID token must say before they name a person.

Pure: the signature was checked before. Roles that are not a plain list of strings grant nothing.
Source: design, standards section 2.5 rule 7; OpenID Connect Core sections 2 and 3.1.3.7.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, Field

from remit.errors import RemitError
from remit.remits import Human

LEEWAY = timedelta(seconds=5)
"""Tolerated difference of clocks (design, standards section 2.5 rule 7)."""
MAX_ROLES = 200
MAX_SUBJECT = 255
"""OpenID Connect Core section 2."""


class IdentityError(RemitError):
    """The token proves nobody; `code` is one of `form typ alg kid signature issuer audience time claims`."""

    def __init__(self, code: str, message: str) -> None:
        """Keep the closed code for counters; the message is safe to show."""
        super().__init__(message)
        self.code = code


class TrustedIssuer(BaseModel):
    """An OpenID provider whose word on people counts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    issuer: str = Field(description="Exactly as in the `iss` claim.")
    client_ids: list[str] = Field(min_length=1, description="Audiences accepted: the dashboard's and the CLI's client.")
    roles_claim: str = "roles"
    allowed_roles: list[str] | None = Field(
        default=None, description="Roles this provider may give; others are dropped. Required beside another issuer."
    )
    require_nonce: bool = Field(default=True, description="ID tokens of a login carry one; access tokens do not.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """A verified human; `roles` are approver groups and the roles delegator, operator and admin."""

    human: Human
    roles: frozenset[str]
    name: str | None
    authenticated_at: datetime | None
    expires_at: datetime
    email: str | None = None
    """Address that the provider does not call unverified; it only ever takes a right away."""

    def has(self, *roles: str) -> bool:
        """Return whether the person holds at least one of the roles."""
        return not self.roles.isdisjoint(roles)


def is_text(value: object) -> bool:
    """Return whether a claim is a string that says something."""
    return isinstance(value, str) and bool(value)


def person_of(claims: dict[str, Any], issuer: TrustedIssuer, now: datetime) -> Person:
    """Return the person whom claims with a valid signature name at `now`.

    Raises:
        IdentityError: `audience`, `time` or `claims`.

    """
    _check_audience(claims, issuer)
    expires_at = _check_times(claims, now)
    subject = claims.get("sub")
    if not isinstance(subject, str) or not 1 <= len(subject) <= MAX_SUBJECT:
        raise IdentityError("claims", "the ID token names no subject")
    if "events" in claims or (issuer.require_nonce and not is_text(claims.get("nonce"))):
        raise IdentityError("claims", "this is not the ID token of a login: it carries no nonce")
    name = claims.get("name")
    return Person(
        human=Human(iss=issuer.issuer, sub=subject),
        roles=_roles(claims.get(issuer.roles_claim), issuer.allowed_roles),
        name=name if isinstance(name, str) else None,
        authenticated_at=_instant(claims.get("auth_time")),
        expires_at=expires_at,
        email=_email(claims),
    )


def _email(claims: dict[str, Any]) -> str | None:
    found, verified = claims.get("email"), claims.get("email_verified", True)
    # Some providers spell the boolean as text.
    unverified = verified is not True and str(verified).lower() != "true"
    return None if unverified or not isinstance(found, str) or not found.strip() else found.strip().casefold()


def _check_audience(claims: dict[str, Any], issuer: TrustedIssuer) -> None:
    audience = claims.get("aud")
    named: list[object] = cast("list[object]", audience) if isinstance(audience, list) else [audience]
    # A token for several parties can be replayed by any of them, so exactly one audience counts.
    if len(named) != 1 or named[0] not in issuer.client_ids:
        raise IdentityError("audience", "the ID token was issued for another client; log in with this one")
    if claims.get("azp", named[0]) != named[0]:
        raise IdentityError("audience", "the ID token was issued to another party than its audience")


def _check_times(claims: dict[str, Any], now: datetime) -> datetime:
    expires_at, issued_at = _instant(claims.get("exp")), _instant(claims.get("iat"))
    if expires_at is None or issued_at is None:
        raise IdentityError("time", "the ID token carries no exp or no iat")
    if expires_at <= now - LEEWAY:
        raise IdentityError("time", "the ID token has expired; log in again")
    not_before = _instant(claims.get("nbf")) if "nbf" in claims else issued_at
    if issued_at > now + LEEWAY or not_before is None or not_before > now + LEEWAY:
        raise IdentityError("time", "the ID token is not valid yet; check the clocks")
    return expires_at


def _instant(value: object) -> datetime | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return datetime.fromtimestamp(value, UTC)
    except (OverflowError, OSError, ValueError):
        return None


def _roles(value: object, allowed: list[str] | None) -> frozenset[str]:
    """Return the roles of a list of strings that the provider may give; anything else grants nothing."""
    if not isinstance(value, list):
        return frozenset()
    entries = cast("list[object]", value)
    if len(entries) > MAX_ROLES or not all(isinstance(entry, str) for entry in entries):
        return frozenset()
    found = frozenset(cast("list[str]", entries))
    return found if allowed is None else found.intersection(allowed)

"""Offline verification of action tokens: one module for the executor and for tools that understand Remit.

Every check stands before or around the JOSE library, because libraries let padding, `typ`, `use` and foreign algorithms pass.
Single use is not decided here: the caller keeps a store keyed on `txn`. Source: design, standards sections 2.1, 2.2 and 2.5.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import jwt

from remit.canonical import b64url_decode, strict_loads
from remit.errors import CanonicalError
from remit.jwks import KID, Kid, RemoteKeys, TokenError, TokenFault, TokenKey, parse_jwks

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

__all__ = [
    "Expected",
    "Kid",
    "RemoteKeys",
    "TokenError",
    "TokenFault",
    "TokenKey",
    "VerifiedToken",
    "kid_of",
    "parse_jwks",
    "verify_action_token",
]

MAX_TOKEN_BYTES = 8_192
MAX_LIFETIME_S = 300
"""No action token lives longer, whatever its issuer thought (design, standards section 2.1)."""
LEEWAY_S = 5
MAX_ACTORS = 4
TOKEN_TYPE = "at+jwt"  # noqa: S105  (RFC 9068 section 2.1, a media type)
SCOPE = "tool:execute"
DETAIL_FIELDS = frozenset({"type", "tool", "action", "locations", "args_digest", "tool_schema_digest"})
"""The token form of `tool_call`, all of it: a grant's fields here would be a wider permission (standards section 2.2)."""
_SEGMENT = re.compile(r"[A-Za-z0-9_-]+")
_DIGEST = re.compile(r"sha-256:[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What this verifier accepts: one issuer, its own resource identifier, and the key that must present the token.

    `key_thumbprint` is the RFC 7638 thumbprint to find in `cnf.jkt`; None leaves the comparison to the caller.
    """

    issuer: str
    audience: str
    key_thumbprint: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedToken:
    """What a token says once every rule held; times are NumericDate seconds. Nested actors are history and absent."""

    issuer: str
    subject: str
    client_id: str
    agent: str
    """The acting party: `act.sub`, a SPIFFE id."""
    audience: str
    jti: str
    txn: str
    """Action id: the key of single use."""
    issued_at: int
    expires_at: int
    tool: str
    action: str
    location: str
    args_digest: str
    schema_digest: str
    key_thumbprint: str


def verify_action_token(
    token: str, keys: Mapping[str, TokenKey], expected: Expected, *, now: datetime
) -> VerifiedToken:
    """Return what the token says, or refuse it: form, header, signature, issuer, audience, time, possession, details.

    Raises:
        TokenError: with the code of the first rule that failed.

    """
    header = _header(token)
    key = _key(header, keys)
    claims = _claims(token, key)
    _check_parties(claims, expected)
    issued_at, expires_at = _check_times(claims, now.timestamp())
    thumbprint = _confirmation(claims, expected)
    detail = _detail(claims)
    return VerifiedToken(
        issuer=claims["iss"],
        subject=_text(claims, "sub"),
        client_id=_text(claims, "client_id"),
        agent=_actor(claims),
        audience=claims["aud"],
        jti=_text(claims, "jti"),
        txn=_text(claims, "txn"),
        issued_at=issued_at,
        expires_at=expires_at,
        tool=detail["tool"],
        action=detail["action"],
        location=detail["locations"][0],
        args_digest=detail["args_digest"],
        schema_digest=detail["tool_schema_digest"],
        key_thumbprint=thumbprint,
    )


def kid_of(token: str) -> Kid | None:
    """Return the kid a token names, unverified: only good for deciding whether to fetch keys.

    Raises:
        TokenError: `form` or `header` when it cannot be read.

    """
    kid = _header(token).get("kid")
    return Kid(kid) if isinstance(kid, str) and KID.fullmatch(kid) else None


def _header(token: str) -> dict[str, Any]:
    if len(token) > MAX_TOKEN_BYTES:
        raise TokenError(TokenFault.FORM, f"longer than {MAX_TOKEN_BYTES} bytes")
    segments = token.split(".")
    if len(segments) != 3 or not all(_SEGMENT.fullmatch(segment) for segment in segments):
        raise TokenError(TokenFault.FORM, "not three base64url segments")
    try:
        first, *_ = [b64url_decode(segment) for segment in segments]
        header = strict_loads(first)
    except CanonicalError as error:
        raise TokenError(TokenFault.FORM, f"not canonically encoded: {error}") from None
    if not isinstance(header, dict) or "crit" in header or "b64" in header:
        raise TokenError(TokenFault.HEADER, "the header is no object, or demands an extension nobody here understands")
    return cast("dict[str, Any]", header)


def _key(header: dict[str, Any], keys: Mapping[str, TokenKey]) -> TokenKey:
    kind = header.get("typ")
    if not isinstance(kind, str) or kind.lower().removeprefix("application/") != TOKEN_TYPE:
        raise TokenError(TokenFault.TYPE, f"typ is not {TOKEN_TYPE}")
    kid = header.get("kid")
    key = keys.get(kid) if isinstance(kid, str) and KID.fullmatch(kid) else None
    if key is None:
        raise TokenError(TokenFault.KEY, "the kid names no key of the issuer")
    # The key decides the algorithm, never the token: so `none` and HS256 over a public key have no way in.
    if header.get("alg") != key.algorithm:
        raise TokenError(TokenFault.ALGORITHM, f"alg is not the key's {key.algorithm}")
    return key


def _claims(token: str, key: TokenKey) -> dict[str, Any]:
    try:
        payload = _JWS.decode(token, key.key, algorithms=[key.algorithm])
        claims = strict_loads(cast("bytes", payload))
    except jwt.PyJWTError:
        raise TokenError(TokenFault.SIGNATURE, "the signature does not hold") from None
    except CanonicalError as error:
        raise TokenError(TokenFault.CLAIMS, f"the claims are no unambiguous JSON: {error}") from None
    if not isinstance(claims, dict):
        raise TokenError(TokenFault.CLAIMS, "the claims are no object")
    return cast("dict[str, Any]", claims)


_JWS = jwt.PyJWS(algorithms=["ES256", "RS256"])


def _text(claims: dict[str, Any], name: str) -> str:
    value = claims.get(name)
    if not isinstance(value, str) or not value:
        raise TokenError(TokenFault.CLAIMS, f"{name} is missing or no text")
    return value


def _check_parties(claims: dict[str, Any], expected: Expected) -> None:
    if claims.get("iss") != expected.issuer:
        raise TokenError(TokenFault.ISSUER, "minted by another issuer")
    if claims.get("aud") != expected.audience:
        raise TokenError(TokenFault.AUDIENCE, "minted for another audience; aud must be one string, mine")
    if claims.get("scope") != SCOPE:
        raise TokenError(TokenFault.CLAIMS, f"scope is not {SCOPE}")


def _check_times(claims: dict[str, Any], now: float) -> tuple[int, int]:
    times: list[int] = []
    for name in ("iat", "nbf", "exp"):
        value = claims.get(name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise TokenError(TokenFault.CLAIMS, f"{name} is missing or no whole number of seconds")
        times.append(value)
    issued_at, not_before, expires_at = times
    if not 0 < expires_at - issued_at <= MAX_LIFETIME_S:
        raise TokenError(TokenFault.LIFETIME, f"lives longer than {MAX_LIFETIME_S} s, or not at all")
    if now >= expires_at + LEEWAY_S:
        raise TokenError(TokenFault.EXPIRED, "expired")
    if max(issued_at, not_before) > now + LEEWAY_S:
        raise TokenError(TokenFault.NOT_YET_VALID, "not valid yet; compare the clocks")
    return issued_at, expires_at


def _confirmation(claims: dict[str, Any], expected: Expected) -> str:
    confirmation = claims.get("cnf")
    thumbprint = cast("dict[str, Any]", confirmation).get("jkt") if isinstance(confirmation, dict) else None
    if not isinstance(thumbprint, str) or len(cast("dict[str, Any]", confirmation)) != 1:
        raise TokenError(TokenFault.CONFIRMATION, "cnf holds not exactly one jkt")
    if expected.key_thumbprint is not None and thumbprint != expected.key_thumbprint:
        raise TokenError(TokenFault.CONFIRMATION, "bound to another key")
    return thumbprint


def _actor(claims: dict[str, Any]) -> str:
    """Return the acting party; nested actors are history and only their number and their kind of claims are looked at."""
    actor, depth = claims.get("act"), 0
    while actor is not None:
        depth += 1
        if not isinstance(actor, dict) or depth > MAX_ACTORS or not {"exp", "nbf", "aud"}.isdisjoint(actor):
            raise TokenError(TokenFault.CLAIMS, f"act is no chain of at most {MAX_ACTORS} actors")
        actor = cast("dict[str, Any]", actor).get("act")
    if depth == 0:
        raise TokenError(TokenFault.CLAIMS, "act is missing")
    outermost = cast("dict[str, Any]", claims["act"])
    # (iss, sub) names an actor: the same sub of another issuer is somebody else.
    if outermost.get("iss") != claims["iss"]:
        raise TokenError(TokenFault.CLAIMS, "act names an actor of another issuer than the token's")
    return _text(outermost, "sub")


def _detail(claims: dict[str, Any]) -> dict[str, Any]:
    details = claims.get("authorization_details")
    rows = cast("list[object]", details) if isinstance(details, list) else []
    detail = cast("dict[str, Any]", rows[0]) if len(rows) == 1 and isinstance(rows[0], dict) else {}
    locations = detail.get("locations")
    texts = [detail.get(name) for name in ("tool", "action")]
    digests = [detail.get(name) for name in ("args_digest", "tool_schema_digest")]
    if (
        frozenset(detail) != DETAIL_FIELDS
        or detail["type"] != "tool_call"
        or not all(isinstance(text, str) and text for text in texts)
        or not (isinstance(locations, list) and len(locations) == 1 and isinstance(locations[0], str))
        or not all(isinstance(each, str) and _DIGEST.fullmatch(each) for each in digests)
    ):
        raise TokenError(TokenFault.DETAILS, "authorization_details is not exactly one tool_call in token form")
    return detail

"""Verification of OpenID Connect ID tokens: who the person behind a command is, and which roles they hold.

A token is believed only if its form, typ, algorithm, key, signature, issuer, audience and times all hold; the
message of a refusal never quotes it.
Source: design, standards section 2.5; OpenID Connect Core section 3.1.3.7.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import httpx
import jwt

from remit.canonical import b64url_decode, strict_loads
from remit.clock import monotonic
from remit.commands import MAX_ID_TOKEN
from remit.errors import CanonicalError, ConfigurationError, TransientError
from remit.identity_claims import IdentityError, Person, TrustedIssuer, is_text, person_of
from remit.identity_keys import PinnedKey, keys_of
from remit.jwks import ALGORITHMS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime

FORM = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
KID = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""Checked before a kid is used for anything (design, standards section 2.5 rule 5)."""
ID_TOKEN_TYPES = frozenset({"jwt"})
"""`typ` of an ID token when present; every other kind names itself (design, standards section 2.4)."""
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
MAX_DOCUMENT_BYTES = 262_144
FETCH_TIMEOUT_S = 5.0
"""For both documents together; the client's own timeout counts from byte to byte."""


@dataclass(slots=True)
class _Cache:
    keys: tuple[PinnedKey, ...] = ()
    fetched_at: float | None = None
    tried_at: float | None = None
    fetching: asyncio.Task[None] | None = None


@dataclass(frozen=True, slots=True)
class _Parts:
    header: dict[str, Any]
    claims: dict[str, Any]


class IdTokenVerifier:
    """Checks ID tokens of the configured issuers, whose keys it fetches over HTTP and keeps for `key_ttl_s`.

    An unknown kid leads to one refetch per `refetch_interval_s`, however many tokens name it. Whoever needs the keys of a
    running fetch waits for it; a token that the keys at hand verify never does.
    """

    def __init__(
        self,
        issuers: Iterable[TrustedIssuer],
        *,
        http: httpx.AsyncClient,
        key_ttl_s: float = 3600.0,
        refetch_interval_s: float = 30.0,
        elapsed: Callable[[], float] = monotonic,
    ) -> None:
        """Know the issuers; nothing is fetched before the first token.

        Raises:
            ConfigurationError: one issuer stands there twice, or one of several may give any role.

        """
        self._issuers = _by_name(issuers)
        self._caches = {name: _Cache() for name in self._issuers}
        self._http, self._key_ttl_s, self._refetch_interval_s = http, key_ttl_s, refetch_interval_s
        self._elapsed = elapsed

    async def verify(self, token: str, *, now: datetime) -> Person:
        """Return the person a token proves at `now`.

        Raises:
            IdentityError: the token proves nobody.
            TransientError: the issuer's keys cannot be had right now.

        """
        parts = _parse(token)
        issuer = self._issuers.get(cast("str", parts.claims.get("iss"))) if is_text(parts.claims.get("iss")) else None
        if issuer is None:
            raise IdentityError("issuer", "the ID token comes from an issuer that is not configured; log in again")
        await self._check_signature(token, parts.header, issuer.issuer)
        return person_of(parts.claims, issuer, now)

    async def _check_signature(self, token: str, header: dict[str, Any], issuer: str) -> None:
        kid, algorithm = header.get("kid"), cast("str", header["alg"])
        if _valid(token, self._candidate(await self._keys(issuer), kid, algorithm)):
            return
        # Also when a key was found: without a kid only the signature tells that the provider changed its key.
        if _valid(token, self._candidate(await self._refetched(issuer), kid, algorithm)):
            return
        raise IdentityError("signature", "the ID token is not signed by a current key of its issuer; log in again")

    @staticmethod
    def _candidate(keys: tuple[PinnedKey, ...], kid: str | None, algorithm: str) -> PinnedKey | None:
        fitting = [key for key in keys if key.algorithm == algorithm and (kid is None or key.kid == kid)]
        # Without a kid the key must be beyond doubt (OpenID Connect Core section 10.1).
        return fitting[0] if len(fitting) == 1 else None

    async def _keys(self, issuer: str) -> tuple[PinnedKey, ...]:
        cache = self._caches[issuer]
        if cache.fetched_at is None or self._elapsed() - cache.fetched_at > self._key_ttl_s:
            await self._fetched(issuer, cache)
        return cache.keys

    async def _refetched(self, issuer: str) -> tuple[PinnedKey, ...]:
        cache = self._caches[issuer]
        due = cache.tried_at is None or self._elapsed() - cache.tried_at > self._refetch_interval_s
        if due or cache.fetching is not None:
            await self._fetched(issuer, cache)
        return cache.keys

    async def _fetched(self, issuer: str, cache: _Cache) -> None:
        """Wait for the running fetch, or begin one; a caller that gives up does not end it for the others."""
        if cache.fetching is None:
            cache.fetching = asyncio.create_task(self._fetch(issuer, cache))
            cache.fetching.add_done_callback(lambda task: _finish(cache, task))
        await asyncio.shield(cache.fetching)

    async def _fetch(self, issuer: str, cache: _Cache) -> None:
        if cache.fetched_at is None and cache.tried_at is not None and self._elapsed() - cache.tried_at < 1.0:
            raise TransientError(f"the keys of {issuer} could not be fetched a moment ago")
        cache.tried_at = self._elapsed()
        try:
            async with asyncio.timeout(FETCH_TIMEOUT_S):
                keys = await self._current(issuer)
        except TimeoutError:
            raise TransientError(f"the keys of {issuer} were not there within {FETCH_TIMEOUT_S:g} s") from None
        cache.keys, cache.fetched_at = keys, self._elapsed()

    async def _current(self, issuer: str) -> tuple[PinnedKey, ...]:
        document = await self._get(f"{issuer.rstrip('/')}/.well-known/openid-configuration", issuer)
        if document.get("issuer") != issuer:
            raise TransientError(f"the discovery document of {issuer} names another issuer")
        jwks_uri = document.get("jwks_uri")
        if not isinstance(jwks_uri, str) or not is_safe_url(jwks_uri):
            raise TransientError(f"the discovery document of {issuer} names no https jwks_uri")
        return keys_of(await self._get(jwks_uri, issuer))

    async def _get(self, url: str, issuer: str) -> dict[str, Any]:
        if not is_safe_url(url):
            raise TransientError(f"issuer {issuer} is not https; plain http is for loopback only")
        try:
            response = await self._http.get(url, headers={"Accept": "application/json"}, follow_redirects=False)
            found = strict_loads(response.content) if len(response.content) <= MAX_DOCUMENT_BYTES else None
        except (httpx.HTTPError, CanonicalError) as error:
            raise TransientError(f"the keys of {issuer} cannot be fetched ({type(error).__name__})") from None
        if response.status_code != HTTPStatus.OK or not isinstance(found, dict):
            raise TransientError(f"{issuer} answered {response.status_code} when asked for its keys")
        return cast("dict[str, Any]", found)


def _by_name(issuers: Iterable[TrustedIssuer]) -> dict[str, TrustedIssuer]:
    given = list(issuers)
    found = {issuer.issuer: issuer for issuer in given}
    if len(found) != len(given):
        raise ConfigurationError("an OpenID issuer is configured twice; list each once, with all its client_ids")
    for issuer in given:
        if len(given) > 1 and issuer.allowed_roles is None:
            # Otherwise whoever runs the least of the providers could make themselves an administrator.
            raise ConfigurationError(f"issuer {issuer.issuer} needs allowed_roles, because it is not the only one")
    return found


def _finish(cache: _Cache, task: asyncio.Task[None]) -> None:
    cache.fetching = None
    if not task.cancelled():
        task.exception()  # Whoever still waits gets it; nobody waiting is no error.


def is_safe_url(url: str) -> bool:
    """Return whether keys may be fetched from there: https, or http that never leaves this machine."""
    parts = urlsplit(url)
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK)


def _parse(token: str) -> _Parts:
    if len(token) > MAX_ID_TOKEN or not FORM.fullmatch(token):
        raise IdentityError("form", "the ID token is not a compact JWS; log in again")
    try:
        # Every segment must be spelled canonically: libraries accept padding and stray bits.
        segments = [b64url_decode(segment) for segment in token.split(".")]
        header, claims = strict_loads(segments[0]), strict_loads(segments[1])
    except CanonicalError:
        raise IdentityError("form", "the ID token is not a compact JWS; log in again") from None
    if not isinstance(header, dict) or not isinstance(claims, dict):
        raise IdentityError("form", "the ID token holds no JSON objects; log in again")
    parts = _Parts(cast("dict[str, Any]", header), cast("dict[str, Any]", claims))
    _check_header(parts.header)
    return parts


def _check_header(header: dict[str, Any]) -> None:
    typ = header.get("typ", "JWT")
    if not isinstance(typ, str) or typ.lower().removeprefix("application/") not in ID_TOKEN_TYPES:
        raise IdentityError("typ", "this is a token of another kind than an ID token")
    if "crit" in header or "b64" in header:
        raise IdentityError("form", "the ID token demands an extension that is not understood")
    if header.get("alg") not in ALGORITHMS:
        raise IdentityError("alg", "the ID token is signed with another algorithm than RS256 or ES256")
    kid = header.get("kid")
    if kid is not None and not (isinstance(kid, str) and KID.fullmatch(kid)):
        raise IdentityError("kid", "the ID token has a misspelt kid")


def _valid(token: str, key: PinnedKey | None) -> bool:
    if key is None:
        return False
    try:
        jwt.api_jws.decode(token, key=key.jwk, algorithms=[key.algorithm])
    except jwt.PyJWTError:
        return False
    return True

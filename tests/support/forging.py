"""An attacker's workshop: compact tokens over any header and payload bytes, any key, and verifiers to show them to."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from remit.canonical import b64url, digest
from remit.identity import IdTokenVerifier
from remit.identity_claims import IdentityError, TrustedIssuer
from remit.verify import Expected, TokenError, parse_jwks, verify_action_token
from tests.support.factories import NOW

if TYPE_CHECKING:
    from collections.abc import Mapping

AT = int(NOW.timestamp())
ISSUER = "https://remit.example"
BANK = f"{ISSUER}/tools/bank"
PROVIDER = "https://idp.example"
CLIENT = "remit-dashboard"
THUMBPRINT = "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"
CURVE_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""Order n of the base point of P-256 (SP 800-186 section 3.2.1.3)."""
ALGORITHMS = ("ES256", "RS256")
ACTION_CLAIMS: dict[str, Any] = {
    "iss": ISSUER,
    "sub": "usr_9f3c2a",
    "client_id": "https://agents.example/bookkeeper",
    "act": {"iss": ISSUER, "sub": "spiffe://acme.example/agent/bookkeeper", "sub_profile": "ai_agent"},
    "aud": BANK,
    "iat": AT,
    "nbf": AT,
    "exp": AT + 60,
    "jti": "tok_1",
    "txn": "act_1",
    "scope": "tool:execute",
    "authorization_details": [
        {
            "type": "tool_call",
            "tool": "bank",
            "action": "send_money",
            "locations": ["https://bank.internal.example/mcp"],
            "args_digest": digest({"amount": 1}),
            "tool_schema_digest": digest({"schema": 1}),
        }
    ],
    "cnf": {"jkt": THUMBPRINT},
}
PERSON_CLAIMS: dict[str, Any] = {
    "iss": PROVIDER,
    "sub": "dana",
    "aud": CLIENT,
    "iat": AT,
    "exp": AT + 300,
    "nonce": "n",
    "roles": ["payments"],
}


@dataclass(frozen=True, slots=True)
class Key:
    """A private key with its published name and one algorithm."""

    kid: str
    algorithm: str
    private: Any = field(repr=False)

    @classmethod
    def fresh(cls, kid: str, algorithm: str) -> Key:
        """Return a new key of an algorithm."""
        if algorithm == "RS256":
            return cls(kid, algorithm, rsa.generate_private_key(public_exponent=65537, key_size=2048))
        return cls(kid, algorithm, ec.generate_private_key(ec.SECP256R1()))

    def jwk(self, **changes: Any) -> dict[str, Any]:
        """Return the public key as a good issuer publishes it, with changes; None removes a member."""
        row = json.loads(jwt.get_algorithm_by_name(self.algorithm).to_jwk(self.private.public_key()))
        row = {name: row[name] for name in row if name != "key_ops"}
        row |= {"kid": self.kid, "use": "sig", "alg": self.algorithm} | changes
        return {name: value for name, value in row.items() if value is not None}

    def signature(self, signed: bytes) -> bytes:
        """Return the signature in the form of JWS (RFC 7518 sections 3.3 and 3.4)."""
        return jwt.get_algorithm_by_name(self.algorithm).sign(signed, self.private)

    def sign_text(self, text: str) -> str:
        """Sign two segments exactly as they are spelled."""
        return f"{text}.{b64url(self.signature(text.encode()))}"

    def sign(self, header: Mapping[str, Any] | bytes, payload: Mapping[str, Any] | bytes) -> str:
        """Return the compact token over any header and payload."""
        return self.sign_text(f"{b64url(as_bytes(header))}.{b64url(as_bytes(payload))}")


def as_bytes(value: Mapping[str, Any] | bytes) -> bytes:
    """Return JSON bytes, or the bytes that were given."""
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def changed(claims: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """Return a deep copy with changes; None removes a claim."""
    merged = copy.deepcopy({**claims, **changes})
    return {name: value for name, value in merged.items() if value is not None}


TRUSTED = {name: Key.fresh(f"{name}-1", name) for name in ALGORITHMS}
"""Keys that the issuer, and likewise the provider, really publishes: whoever is stronger than that has already won."""
STRANGER = {name: Key.fresh(f"{name}-1", name) for name in ALGORITHMS}
"""The attacker's own keys, under the names of the trusted ones."""


@dataclass(frozen=True, slots=True)
class ActionVerifier:
    """`remit.verify` as a tool or the executor calls it."""

    published: tuple[dict[str, Any], ...] = tuple(key.jwk() for key in TRUSTED.values())
    name: str = "action token"
    claims: Mapping[str, Any] = field(default_factory=lambda: ACTION_CLAIMS)
    typ: str = "at+jwt"

    async def refusal(self, token: str) -> str | None:
        """Return the code of the refusal, or None for an accepted token."""
        expected = Expected(issuer=ISSUER, audience=BANK, key_thumbprint=THUMBPRINT)
        try:
            verify_action_token(token, parse_jwks({"keys": list(self.published)}), expected, now=NOW)
        except TokenError as error:
            return checked(str(error.code), str(error))
        return None


@dataclass(frozen=True, slots=True)
class PersonVerifier:
    """The verifier of ID tokens as approval builds it, with a provider that answers over HTTP."""

    published: tuple[dict[str, Any], ...] = tuple(key.jwk() for key in TRUSTED.values())
    name: str = "ID token"
    claims: Mapping[str, Any] = field(default_factory=lambda: PERSON_CLAIMS)
    typ: str = "JWT"
    issuers: tuple[TrustedIssuer, ...] = (TrustedIssuer(issuer=PROVIDER, client_ids=[CLIENT]),)

    def verifier(self) -> IdTokenVerifier:
        """Return one with an empty cache."""
        http = httpx.AsyncClient(transport=httpx.MockTransport(self._answer))
        return IdTokenVerifier(self.issuers, http=http, elapsed=lambda: 0.0)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/openid-configuration"):
            return httpx.Response(200, json={"issuer": PROVIDER, "jwks_uri": f"{PROVIDER}/keys"})
        return httpx.Response(200, json={"keys": list(self.published)})

    async def refusal(self, token: str) -> str | None:
        """Return the code of the refusal, or None for an accepted token."""
        try:
            await self.verifier().verify(token, now=NOW)
        except IdentityError as error:
            return checked(error.code, str(error))
        return None


Verifier = ActionVerifier | PersonVerifier
VERIFIERS: tuple[Verifier, ...] = (ActionVerifier(), PersonVerifier())


def header_of(verifier: Verifier, key: Key, **changes: Any) -> dict[str, Any]:
    """Return the header of a good token, with changes; None removes a member."""
    return changed({"alg": key.algorithm, "typ": verifier.typ, "kid": key.kid}, **changes)


def checked(code: str, message: str) -> str:
    """Return a refusal's code; it has one, and its message quotes no token."""
    assert code
    assert "eyJ" not in message
    return code

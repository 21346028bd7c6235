"""An ID token proves a person only if everything about it holds."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from remit.canonical import b64url
from remit.errors import ConfigurationError, TransientError
from remit.identity import IdTokenVerifier
from remit.identity_claims import IdentityError, TrustedIssuer
from remit.identity_keys import keys_of
from tests.support.factories import NOW

ISSUER = "https://idp.example"
KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())


def jwk(key: Any = KEY, kid: str | None = "k1", **more: Any) -> dict[str, Any]:
    algorithm: Any = ECAlgorithm if isinstance(key, ec.EllipticCurvePrivateKey) else RSAAlgorithm
    found = json.loads(algorithm.to_jwk(key.public_key()))
    return {name: found[name] for name in found if name != "key_ops"} | ({"kid": kid} if kid else {}) | more


@dataclass
class Provider:
    """Answers discovery and keys over HTTP, and counts."""

    keys: list[dict[str, Any]] = field(default_factory=lambda: [jwk()])
    issuer: str = ISSUER
    jwks_uri: str = f"{ISSUER}/keys"
    down: bool = False
    asked: int = 0

    def answer(self, request: httpx.Request) -> httpx.Response:
        if self.down:
            raise httpx.ConnectError("refused")
        if request.url.path == "/.well-known/openid-configuration":
            return httpx.Response(200, json={"issuer": self.issuer, "jwks_uri": self.jwks_uri})
        self.asked += 1
        return httpx.Response(200, json={"keys": self.keys})


@dataclass
class Elapsed:
    at: float = 0.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def provider() -> Provider:
    return Provider()


@pytest.fixture
def elapsed() -> Elapsed:
    return Elapsed()


@pytest.fixture
def verifier(provider: Provider, elapsed: Elapsed) -> IdTokenVerifier:
    http = httpx.AsyncClient(transport=httpx.MockTransport(provider.answer))
    trusted = TrustedIssuer(issuer=ISSUER, client_ids=["dashboard", "cli"])
    return IdTokenVerifier([trusted], http=http, elapsed=elapsed)


def claims(**more: Any) -> dict[str, Any]:
    at = int(NOW.timestamp())
    found = {
        "iss": ISSUER,
        "sub": "emma",
        "aud": "cli",
        "iat": at,
        "exp": at + 300,
        "nonce": "n",
        "roles": ["delegator"],
        "name": "Emma",
        **more,
    }
    return {name: value for name, value in found.items() if value is not None}


def token(key: Any = KEY, *, algorithm: str = "RS256", header: dict[str, Any] | None = None, **more: Any) -> str:
    return jwt.encode(claims(**more), key, algorithm=algorithm, headers={"kid": "k1", **(header or {})})


async def test_a_good_token_names_person_and_roles(verifier: IdTokenVerifier) -> None:
    found = await verifier.verify(token(auth_time=int(NOW.timestamp()) - 60), now=NOW)
    assert (found.human.iss, found.human.sub, found.roles, found.name) == (ISSUER, "emma", {"delegator"}, "Emma")
    assert found.authenticated_at == NOW - timedelta(seconds=60)
    assert found.has("delegator", "admin")
    assert not found.has("admin")


@pytest.mark.parametrize(
    "good",
    [
        token(aud=["cli"]),
        token(aud="dashboard", azp="dashboard"),
        token(header={"typ": None}),
        token(header={"typ": "application/JWT"}),
    ],
    ids=["one audience in a list", "authorized party", "no typ", "typ as media type"],
)
async def test_spellings_that_providers_use_are_accepted(verifier: IdTokenVerifier, good: str) -> None:
    assert (await verifier.verify(good, now=NOW)).human.sub == "emma"


async def test_elliptic_curve_keys_are_accepted(verifier: IdTokenVerifier, provider: Provider) -> None:
    provider.keys = [jwk(EC_KEY, alg="ES256", use="sig")]
    assert (await verifier.verify(token(EC_KEY, algorithm="ES256"), now=NOW)).human.sub == "emma"


PUBLIC_PEM = "public key as a secret, forty characters or so"


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        ("", "form"),
        ("a.b", "form"),
        ("a.b.c.d", "form"),
        (token() + "==", "form"),
        (token() + "=", "form"),
        (token()[:-1] + "\n", "form"),
        ("x" * 9000 + "." + token(), "form"),
        (b64url(b"[]") + "." + token().split(".", 1)[1], "form"),
        (token(header={"typ": "at+jwt"}), "typ"),
        (token(header={"typ": "logout+jwt"}), "typ"),
        (token(header={"crit": ["b64"]}), "form"),
        (token(header={"kid": "../keys"}), "kid"),
        (token(header={"kid": "k" * 65}), "kid"),
        (jwt.encode(claims(), "", algorithm="none", headers={"kid": "k1"}), "form"),
        (jwt.encode(claims(), PUBLIC_PEM, algorithm="HS256", headers={"kid": "k1"}), "alg"),
        (token(algorithm="RS512"), "alg"),
        (token(OTHER_KEY), "signature"),
        (token(header={"kid": "k2"}), "signature"),
        (token(EC_KEY, algorithm="ES256"), "signature"),
        (token(iss="https://evil.example"), "issuer"),
        (token(iss=ISSUER + "/"), "issuer"),
        (token(iss=None), "issuer"),
        (token(aud="other"), "audience"),
        (token(aud=["cli", "other"]), "audience"),
        (token(aud=[]), "audience"),
        (token(aud=None), "audience"),
        (token(azp="other"), "audience"),
        (token(exp=None), "time"),
        (token(iat=None), "time"),
        (token(exp=int(NOW.timestamp()) - 6), "time"),
        (token(iat=int(NOW.timestamp()) + 6), "time"),
        (token(nbf=int(NOW.timestamp()) + 6), "time"),
        (token(nbf="now"), "time"),
        (token(exp=True), "time"),
        (token(exp=9_000_000_000_000_000), "time"),
        (token(sub=None), "claims"),
        (token(sub=""), "claims"),
        (token(sub="s" * 256), "claims"),
        (token(sub=7), "claims"),
        (token(nonce=None), "claims"),
        (token(events={"http://schemas.openid.net/event/backchannel-logout": {}}), "claims"),
    ],
)
async def test_everything_else_is_refused(verifier: IdTokenVerifier, bad: str, code: str) -> None:
    with pytest.raises(IdentityError) as refusal:
        await verifier.verify(bad, now=NOW)
    assert refusal.value.code == code
    assert "eyJ" not in str(refusal.value)


async def test_a_changed_claim_breaks_the_signature(verifier: IdTokenVerifier) -> None:
    header, _, signature = token().split(".")
    forged = b64url(json.dumps(claims(roles=["admin"])).encode())
    with pytest.raises(IdentityError) as refusal:
        await verifier.verify(f"{header}.{forged}.{signature}", now=NOW)
    assert refusal.value.code == "signature"


async def test_duplicate_claims_have_no_two_readings(verifier: IdTokenVerifier) -> None:
    header, _, signature = token().split(".")
    twice = b64url(b'{"iss":"https://idp.example","iss":"https://evil.example"}')
    with pytest.raises(IdentityError) as refusal:
        await verifier.verify(f"{header}.{twice}.{signature}", now=NOW)
    assert refusal.value.code == "form"


@pytest.mark.parametrize("roles", [None, "admin", {"admin": True}, ["admin", 7], ["r"] * 201])
async def test_roles_that_are_no_plain_list_grant_nothing(verifier: IdTokenVerifier, roles: Any) -> None:
    assert (await verifier.verify(token(roles=roles), now=NOW)).roles == frozenset()


async def test_keys_are_fetched_once_and_kept(verifier: IdTokenVerifier, provider: Provider, elapsed: Elapsed) -> None:
    for _ in range(5):
        await verifier.verify(token(), now=NOW)
    assert provider.asked == 1
    elapsed.at = 3601
    await verifier.verify(token(), now=NOW)
    assert provider.asked == 2


async def test_a_new_key_is_found_by_one_refetch_an_interval(
    verifier: IdTokenVerifier, provider: Provider, elapsed: Elapsed
) -> None:
    await verifier.verify(token(), now=NOW)
    provider.keys = [jwk(), jwk(OTHER_KEY, kid="k2")]
    rotated = token(OTHER_KEY, header={"kid": "k2"})
    for _ in range(20):
        with pytest.raises(IdentityError):
            await verifier.verify(rotated, now=NOW)
    assert provider.asked == 1
    elapsed.at = 31
    assert (await verifier.verify(rotated, now=NOW)).human.sub == "emma"
    assert provider.asked == 2


@dataclass
class SlowProvider(Provider):
    """Answers only when told to."""

    answering: asyncio.Event = field(default_factory=asyncio.Event)
    waiting: int = 0

    async def answer_later(self, request: httpx.Request) -> httpx.Response:
        self.waiting += 1
        await self.answering.wait()
        return self.answer(request)


def slow_verifier(provider: SlowProvider, elapsed: Elapsed) -> IdTokenVerifier:
    http = httpx.AsyncClient(transport=httpx.MockTransport(provider.answer_later))
    return IdTokenVerifier([TrustedIssuer(issuer=ISSUER, client_ids=["cli"])], http=http, elapsed=elapsed)


async def test_a_bad_token_and_a_slow_provider_hold_up_nobody_with_a_known_key(elapsed: Elapsed) -> None:
    provider = SlowProvider()
    provider.answering.set()
    verifier = slow_verifier(provider, elapsed)
    await verifier.verify(token(), now=NOW)
    provider.answering.clear()
    elapsed.at = 31
    bad = asyncio.create_task(verifier.verify(token(header={"kid": "k9"}), now=NOW))
    await asyncio.sleep(0.01)
    for _ in range(3):
        async with asyncio.timeout(0.5):
            assert (await verifier.verify(token(), now=NOW)).human.sub == "emma"
    assert not bad.done()
    provider.answering.set()
    with pytest.raises(IdentityError):
        await bad


async def test_everybody_who_needs_the_keys_waits_for_one_fetch(elapsed: Elapsed) -> None:
    provider = SlowProvider()
    verifier = slow_verifier(provider, elapsed)
    first, *others = [asyncio.create_task(verifier.verify(token(), now=NOW)) for _ in range(20)]
    await asyncio.sleep(0.01)
    first.cancel()  # A client that gives up takes nobody with it.
    provider.answering.set()
    found = await asyncio.gather(*others)
    assert ({person.human.sub for person in found}, provider.asked, provider.waiting) == ({"emma"}, 1, 2)


async def test_a_provider_that_never_answers_is_given_up(elapsed: Elapsed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remit.identity.FETCH_TIMEOUT_S", 0.05)
    with pytest.raises(TransientError, match="within"):
        await slow_verifier(SlowProvider(), elapsed).verify(token(), now=NOW)


OTHER_ISSUER = "https://partner.example"


def two_issuers(*allowed: list[str] | None) -> IdTokenVerifier:
    http = httpx.AsyncClient(transport=httpx.MockTransport(Provider().answer))
    names = (ISSUER, OTHER_ISSUER)
    trusted = [
        TrustedIssuer(issuer=name, client_ids=["cli"], allowed_roles=roles)
        for name, roles in zip(names, allowed, strict=True)
    ]
    return IdTokenVerifier(trusted, http=http)


@pytest.mark.parametrize("allowed", [(None, None), (["admin"], None), (None, ["payments"])])
def test_beside_another_issuer_each_has_a_list_of_roles(allowed: tuple[Any, Any]) -> None:
    with pytest.raises(ConfigurationError, match="allowed_roles"):
        two_issuers(*allowed)


def test_an_issuer_stands_there_once() -> None:
    same = TrustedIssuer(issuer=ISSUER, client_ids=["cli"], allowed_roles=["admin"])
    with pytest.raises(ConfigurationError, match="twice"):
        IdTokenVerifier([same, same], http=httpx.AsyncClient())


async def test_an_issuer_gives_only_the_roles_it_may_give() -> None:
    found = await two_issuers(["payments"], ["admin"]).verify(token(roles=["admin", "payments"]), now=NOW)
    assert found.roles == {"payments"}


@pytest.mark.parametrize(
    ("more", "email"),
    [
        ({}, None),
        ({"email": "Emma@Acme.example"}, "emma@acme.example"),
        ({"email": " emma@acme.example", "email_verified": True}, "emma@acme.example"),
        ({"email": "emma@acme.example", "email_verified": "true"}, "emma@acme.example"),
        ({"email": "emma@acme.example", "email_verified": False}, None),
        ({"email": "emma@acme.example", "email_verified": "false"}, None),
        ({"email": ["emma@acme.example"]}, None),
        ({"email": " "}, None),
    ],
)
async def test_an_address_counts_unless_its_provider_calls_it_unverified(
    verifier: IdTokenVerifier, more: dict[str, Any], email: str | None
) -> None:
    assert (await verifier.verify(token(**more), now=NOW)).email == email


async def test_without_a_kid_the_key_must_be_beyond_doubt(verifier: IdTokenVerifier, provider: Provider) -> None:
    bare = jwt.encode(claims(), KEY, algorithm="RS256")
    assert (await verifier.verify(bare, now=NOW)).human.sub == "emma"
    doubtful = IdTokenVerifier(
        [TrustedIssuer(issuer=ISSUER, client_ids=["cli"])],
        http=httpx.AsyncClient(transport=httpx.MockTransport(provider.answer)),
    )
    provider.keys = [jwk(), jwk(OTHER_KEY, kid="k2")]
    with pytest.raises(IdentityError):
        await doubtful.verify(bare, now=NOW)


@pytest.mark.parametrize(
    "fault",
    [{"down": True}, {"issuer": "https://evil.example"}, {"jwks_uri": "http://idp.example/keys"}, {"jwks_uri": ""}],
    ids=["unreachable", "other issuer", "plain http", "no keys"],
)
async def test_keys_that_cannot_be_had_are_not_a_yes(
    verifier: IdTokenVerifier, provider: Provider, fault: dict[str, Any]
) -> None:
    for name, value in fault.items():
        setattr(provider, name, value)
    with pytest.raises(TransientError):
        await verifier.verify(token(), now=NOW)


async def test_plain_http_is_for_loopback_only() -> None:
    http = httpx.AsyncClient(transport=httpx.MockTransport(Provider(issuer="http://idp.example").answer))
    plain = IdTokenVerifier([TrustedIssuer(issuer="http://idp.example", client_ids=["cli"])], http=http)
    with pytest.raises(TransientError, match="https"):
        await plain.verify(token(iss="http://idp.example"), now=NOW)
    local = Provider(issuer="http://localhost:9", jwks_uri="http://localhost:9/keys")
    http = httpx.AsyncClient(transport=httpx.MockTransport(local.answer))
    near = IdTokenVerifier([TrustedIssuer(issuer="http://localhost:9", client_ids=["cli"])], http=http)
    assert (await near.verify(token(iss="http://localhost:9"), now=NOW)).human.iss == "http://localhost:9"


@pytest.mark.parametrize(
    "entry",
    [
        jwk(use="enc"),
        jwk(key_ops=["sign"]),
        jwk(key_ops="verify"),
        jwk(alg="RS512"),
        jwk(rsa.generate_private_key(public_exponent=65537, key_size=1024)),  # noqa: S505  (the point)
        jwk(ec.generate_private_key(ec.SECP384R1())),
        {"kty": "oct", "k": "c2VjcmV0", "kid": "k1"},
        {"kty": "RSA", "n": "!", "e": "AQAB"},
        {"kty": "RSA"},
        {},
    ],
)
def test_keys_for_anything_else_are_left_out(entry: dict[str, Any]) -> None:
    assert keys_of({"keys": [entry, "junk"]}) == ()


@pytest.mark.parametrize("document", [{}, {"keys": {}}, {"keys": None}])
def test_a_document_without_keys_has_none(document: dict[str, Any]) -> None:
    assert keys_of(document) == ()

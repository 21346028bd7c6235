"""The verifier of action tokens against everything that is almost a token (design, standards sections 2.4, 2.5, 2.6)."""

from __future__ import annotations

import base64
import copy
import hashlib
import hmac
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from remit.canonical import b64url, digest
from remit.errors import TransientError
from remit.verify import (
    Expected,
    Kid,
    RemoteKeys,
    TokenError,
    TokenFault,
    TokenKey,
    kid_of,
    parse_jwks,
    verify_action_token,
)

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
AT = int(NOW.timestamp())
PRIVATE = ec.generate_private_key(ec.SECP256R1())
OTHER = ec.generate_private_key(ec.SECP256R1())
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
KEYS = {
    "a": TokenKey("a", "ES256", PRIVATE.public_key()),
    "b": TokenKey("b", "ES256", OTHER.public_key()),
    "r": TokenKey("r", "RS256", RSA.public_key()),
}
EXPECTED = Expected(issuer="https://remit.example", audience="https://remit.example/tools/bank")
CLAIMS: dict[str, Any] = {
    "iss": "https://remit.example",
    "sub": "usr_9f3c2a",
    "client_id": "https://agents.example/bookkeeper",
    "act": {"iss": "https://remit.example", "sub": "spiffe://acme.example/agent/bookkeeper", "sub_profile": "ai_agent"},
    "aud": "https://remit.example/tools/bank",
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
    "cnf": {"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"},
}


def token(claims: dict[str, Any] | None = None, key: Any = PRIVATE, alg: str = "ES256", **header: Any) -> str:
    return jwt.encode(claims or CLAIMS, key, algorithm=alg, headers={"typ": "at+jwt", "kid": "a", **header})


def raw(header: dict[str, Any] | bytes, payload: bytes | None = None, key: Any = PRIVATE) -> str:
    """Sign any header bytes, which PyJWT would not."""
    first = header if isinstance(header, bytes) else json.dumps(header).encode()
    signed = f"{b64url(first)}.{b64url(payload or json.dumps(CLAIMS).encode())}"
    signature = jwt.get_algorithm_by_name("ES256").sign(signed.encode(), key)
    return f"{signed}.{b64url(signature)}"


def changed(**changes: Any) -> dict[str, Any]:
    claims = copy.deepcopy(CLAIMS)
    for name, value in changes.items():
        if value is None:
            claims.pop(name)
        else:
            claims[name] = value
    return claims


def detail(**changes: Any) -> dict[str, Any]:
    return changed(authorization_details=[{**CLAIMS["authorization_details"][0], **changes}])


def fault(given_token: str, expected: Expected = EXPECTED, now: datetime = NOW) -> TokenFault:
    with pytest.raises(TokenError) as caught:
        verify_action_token(given_token, KEYS, expected, now=now)
    return caught.value.code


def test_valid_token_says_what_it_says() -> None:
    verified = verify_action_token(token(), KEYS, EXPECTED, now=NOW)
    assert (verified.tool, verified.action, verified.txn, verified.jti) == ("bank", "send_money", "act_1", "tok_1")
    assert verified.agent == "spiffe://acme.example/agent/bookkeeper"
    assert verified.args_digest == digest({"amount": 1})
    assert verified.key_thumbprint == CLAIMS["cnf"]["jkt"]
    assert verified.location == "https://bank.internal.example/mcp"


@pytest.mark.parametrize("kind", ["at+jwt", "AT+JWT", "application/at+jwt", "Application/AT+jwt"])
def test_type_is_compared_without_case_and_prefix(kind: str) -> None:
    assert verify_action_token(token(typ=kind), KEYS, EXPECTED, now=NOW).jti == "tok_1"


@pytest.mark.parametrize(
    "kind",
    [
        "JWT", "", None, "dpop+jwt", "arap-binding+jwt", "arap-approval+jwt", "secevent+jwt", "statuslist+jwt",
        "txntoken+jwt", "oauth-id-jag+jwt", "JOSE", "application/application/at+jwt",
    ],
)  # fmt: skip
def test_every_other_kind_of_token_is_refused(kind: str | None) -> None:
    assert fault(token(typ=kind)) is TokenFault.TYPE


def test_rsa_key_verifies_rs256() -> None:
    assert verify_action_token(token(key=RSA, alg="RS256", kid="r"), KEYS, EXPECTED, now=NOW).jti == "tok_1"


def test_algorithm_attacks_are_refused() -> None:
    unsigned = f"{b64url(json.dumps({'alg': 'none', 'typ': 'at+jwt', 'kid': 'a'}).encode())}.{b64url(b'{}')}."
    assert fault(unsigned) is TokenFault.FORM
    assert fault(unsigned + "AA") is TokenFault.ALGORITHM
    pem = PRIVATE.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    header = b64url(json.dumps({"alg": "HS256", "typ": "at+jwt", "kid": "a"}).encode())
    signed = f"{header}.{b64url(json.dumps(CLAIMS).encode())}"
    mac = hmac.new(pem, signed.encode(), hashlib.sha256).digest()
    assert fault(f"{signed}.{b64url(mac)}") is TokenFault.ALGORITHM
    assert fault(token(key=RSA, alg="RS256", kid="a")) is TokenFault.ALGORITHM
    assert fault(token(kid="r")) is TokenFault.ALGORITHM


@pytest.mark.parametrize("kid", ["zz", "", "../../etc/passwd", "a\n", "a' OR 1=1", "x" * 65, None, 7])
def test_hostile_or_unknown_kid_is_refused(kid: Any) -> None:
    header = {"alg": "ES256", "typ": "at+jwt", "kid": kid}
    assert fault(raw(header)) is TokenFault.KEY


def test_token_of_another_key_is_refused() -> None:
    assert fault(token(kid="b")) is TokenFault.SIGNATURE
    assert fault(token(key=OTHER)) is TokenFault.SIGNATURE


def test_keys_named_by_the_token_itself_are_ignored() -> None:
    jwk = json.loads(jwt.get_algorithm_by_name("ES256").to_jwk(OTHER.public_key()))
    evil = token(key=OTHER, jwk=jwk, jku="https://evil.example/jwks", x5u="https://evil.example/x")
    assert fault(evil) is TokenFault.SIGNATURE


@pytest.mark.parametrize("extra", [{"crit": ["exp"]}, {"crit": ["b64"], "b64": False}, {"crit": []}, {"b64": True}])
def test_extensions_nobody_understands_are_refused(extra: dict[str, Any]) -> None:
    assert fault(raw({"alg": "ES256", "typ": "at+jwt", "kid": "a", **extra})) is TokenFault.HEADER


def test_ambiguous_json_is_refused() -> None:
    twice = b'{"alg":"ES256","typ":"at+jwt","kid":"b","kid":"a"}'
    assert fault(raw(twice)) is TokenFault.FORM
    good = {"alg": "ES256", "typ": "at+jwt", "kid": "a"}
    assert fault(raw(good, b'{"aud":"x","aud":"y"}')) is TokenFault.CLAIMS
    assert fault(raw(good, b'{"exp":NaN}')) is TokenFault.CLAIMS
    assert fault(raw(good, b"[]")) is TokenFault.CLAIMS
    assert fault(raw(b"[]")) is TokenFault.HEADER


def _nudged(segment: str) -> str:
    """Return another spelling of the same bytes: stray bits in the last character."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return segment[:-1] + alphabet[alphabet.index(segment[-1]) ^ 1]


def test_encoding_must_be_the_one_canonical_spelling() -> None:
    good = token()
    first, second, signature = good.split(".")
    spelled = [
        good + "=", f"{good}==", f" {good}", f"{good}\n", f"{first}=.{second}.{signature}", f"{good}.", f"{good}.x",
        f"{first}.{second}", "", "...", good.replace("-", "+").replace("_", "/") + "+", f"{first}.{second}.{_nudged(signature)}",
    ]  # fmt: skip
    assert base64.urlsafe_b64decode(_nudged(signature) + "==") == base64.urlsafe_b64decode(signature + "==")
    assert {fault(each) for each in spelled} == {TokenFault.FORM}


def test_oversize_is_refused_before_anything_is_parsed() -> None:
    assert fault(token(changed(pad="x" * 9000))) is TokenFault.FORM


CLAIM_FAULTS: list[tuple[dict[str, Any], TokenFault]] = [
    (changed(iss="https://evil.example"), TokenFault.ISSUER),
    (changed(iss=None), TokenFault.ISSUER),
    (changed(aud=["https://remit.example/tools/bank"]), TokenFault.AUDIENCE),
    (changed(aud=None), TokenFault.AUDIENCE),
    (changed(aud="https://remit.example/tools/crm"), TokenFault.AUDIENCE),
    (changed(aud="https://remit.example/tools/bank/"), TokenFault.AUDIENCE),
    (changed(scope="proposals:create tools:list"), TokenFault.CLAIMS),
    (changed(scope=None), TokenFault.CLAIMS),
    (changed(exp=AT - 5, iat=AT - 60, nbf=AT - 60), TokenFault.EXPIRED),
    (changed(exp=None), TokenFault.CLAIMS),
    (changed(exp=float(AT + 60)), TokenFault.CLAIMS),
    (changed(exp=str(AT + 60)), TokenFault.CLAIMS),
    (changed(nbf=True), TokenFault.CLAIMS),
    (changed(iat=None), TokenFault.CLAIMS),
    (changed(exp=AT + 301), TokenFault.LIFETIME),
    (changed(exp=AT), TokenFault.LIFETIME),
    (changed(iat=AT + 6, nbf=AT + 6), TokenFault.NOT_YET_VALID),
    (changed(nbf=AT + 6), TokenFault.NOT_YET_VALID),
    (changed(cnf=None), TokenFault.CONFIRMATION),
    (changed(cnf={}), TokenFault.CONFIRMATION),
    (changed(cnf={"jkt": "x", "x5t#S256": "y"}), TokenFault.CONFIRMATION),
    (changed(sub=None), TokenFault.CLAIMS),
    (changed(sub=""), TokenFault.CLAIMS),
    (changed(client_id=None), TokenFault.CLAIMS),
    (changed(jti=None), TokenFault.CLAIMS),
    (changed(txn=None), TokenFault.CLAIMS),
    (changed(act=None), TokenFault.CLAIMS),
    (changed(act={"sub": "x"}), TokenFault.CLAIMS),
    (changed(act="x"), TokenFault.CLAIMS),
    (changed(act={**CLAIMS["act"], "exp": 1}), TokenFault.CLAIMS),
    (changed(act={**CLAIMS["act"], "act": {"act": {"act": {"act": {}}}}}), TokenFault.CLAIMS),
    (changed(authorization_details=None), TokenFault.DETAILS),
    (changed(authorization_details=[]), TokenFault.DETAILS),
    (changed(authorization_details=CLAIMS["authorization_details"] * 2), TokenFault.DETAILS),
    (changed(authorization_details=CLAIMS["authorization_details"][0]), TokenFault.DETAILS),
    (detail(type="payment"), TokenFault.DETAILS),
    (detail(max_calls=5), TokenFault.DETAILS),
    (detail(arguments={}), TokenFault.DETAILS),
    (detail(locations=[]), TokenFault.DETAILS),
    (detail(locations=["a", "b"]), TokenFault.DETAILS),
    (detail(args_digest="f2CV2rlSlPQq4lZ5"), TokenFault.DETAILS),
    (detail(tool=""), TokenFault.DETAILS),
]


@pytest.mark.parametrize(("claims", "expected"), CLAIM_FAULTS)
def test_claims_that_do_not_hold_are_refused(claims: dict[str, Any], expected: TokenFault) -> None:
    assert fault(token(claims)) is expected


def test_times_have_five_seconds_of_leeway_and_no_more() -> None:
    for seconds, ok in ((64, True), (65, False), (-5, True), (-6, False)):
        moment = NOW + timedelta(seconds=seconds)
        if ok:
            verify_action_token(token(), KEYS, EXPECTED, now=moment)
        else:
            assert fault(token(), now=moment) in {TokenFault.EXPIRED, TokenFault.NOT_YET_VALID}


def test_presenter_must_hold_the_bound_key() -> None:
    own = Expected(issuer=EXPECTED.issuer, audience=EXPECTED.audience, key_thumbprint=CLAIMS["cnf"]["jkt"])
    assert verify_action_token(token(), KEYS, own, now=NOW).txn == "act_1"
    foreign = Expected(issuer=EXPECTED.issuer, audience=EXPECTED.audience, key_thumbprint="other")
    assert fault(token(), foreign) is TokenFault.CONFIRMATION


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5)
actors = st.recursive(
    st.fixed_dictionaries({"iss": texts, "sub": texts}),
    lambda inner: st.fixed_dictionaries({"iss": texts, "sub": texts, "act": inner}),
    max_leaves=3,
)


@settings(max_examples=60, deadline=None)
@given(nested=actors)
def test_changing_a_nested_actor_changes_nothing(nested: dict[str, Any]) -> None:
    depth, inner = 1, nested
    while "act" in inner:
        depth, inner = depth + 1, inner["act"]
    claims = changed(act={**CLAIMS["act"], "act": nested})
    if depth > 3:
        assert fault(token(claims)) is TokenFault.CLAIMS
    else:
        assert verify_action_token(token(claims), KEYS, EXPECTED, now=NOW) == verify_action_token(
            token(), KEYS, EXPECTED, now=NOW
        )


@settings(max_examples=100, deadline=None)
@given(position=st.integers(min_value=0), character=st.sampled_from("ABCxyz019-_"))
def test_any_changed_character_is_refused(position: int, character: str) -> None:
    good = token()
    at = position % len(good)
    if good[at] not in (character, "."):
        fault(good[:at] + character + good[at + 1 :])


def jwk(key: ec.EllipticCurvePublicKey | None = None, **changes: Any) -> dict[str, Any]:
    row = json.loads(jwt.get_algorithm_by_name("ES256").to_jwk(key or PRIVATE.public_key()))
    return {**row, "kid": "a", "use": "sig", "alg": "ES256", **changes}


def test_jwks_gives_signature_keys_with_their_one_algorithm() -> None:
    rsa_row = json.loads(jwt.get_algorithm_by_name("RS256").to_jwk(RSA.public_key()))
    rows = [jwk(), {**rsa_row, "kid": "r", "use": "sig", "alg": "RS256", "key_ops": ["verify"]}]
    assert {kid: key.algorithm for kid, key in parse_jwks({"keys": rows}).items()} == {"a": "ES256", "r": "RS256"}


UNUSABLE: list[dict[str, Any]] = [
    jwk(use="enc"), jwk(use=None), jwk(key_ops=["encrypt"]), jwk(key_ops="verify"), jwk(alg="HS256"), jwk(alg="none"),
    jwk(alg=None), jwk(alg="ES384"), jwk(alg="RS256"), jwk(kid="../a"), jwk(kid=None), jwk(kty="oct"), jwk(x="AA"),
    jwk(crv="P-384"),
]  # fmt: skip


@pytest.mark.parametrize("row", UNUSABLE)
def test_key_for_anything_else_is_passed_over(row: dict[str, Any]) -> None:
    assert parse_jwks({"keys": [row, jwk(kid="good")]}).keys() == {"good"}


def test_weak_rsa_key_is_passed_over() -> None:
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505  (weak on purpose)
    row = json.loads(jwt.get_algorithm_by_name("RS256").to_jwk(weak.public_key()))
    assert parse_jwks({"keys": [{**row, "kid": "w", "use": "sig", "alg": "RS256"}]}) == {}


@pytest.mark.parametrize(
    "document",
    [None, [], {}, {"keys": {}}, {"keys": [jwk(), jwk()]}, {"keys": [jwk(d="secret")]}, {"keys": [{"k": "x"}]}],
)
def test_key_set_that_cannot_be_trusted_is_refused(document: Any) -> None:
    with pytest.raises(TokenError) as caught:
        parse_jwks(document)
    assert caught.value.code is TokenFault.KEY


class Issuer:
    """A key endpoint that counts how often it is asked."""

    def __init__(self, *rows: dict[str, Any]) -> None:
        self.rows, self.calls, self.at, self.is_up = list(rows), 0, 0.0, True

    async def fetch(self) -> object:
        self.calls += 1
        if not self.is_up:
            raise TransientError("down")
        return {"keys": self.rows}

    def keys(self) -> RemoteKeys:
        return RemoteKeys(self.fetch, max_age_s=300, refetch_interval_s=10, clock=lambda: self.at)


async def test_unknown_kid_costs_one_fetch_per_interval_even_in_a_flood() -> None:
    issuer = Issuer(jwk())
    keys = issuer.keys()
    assert "a" in await keys.keys_for(kid_of(token()))
    for _ in range(50):
        await keys.keys_for(Kid("new"))
    assert issuer.calls == 1
    issuer.at, issuer.rows = 10.0, [jwk(), jwk(OTHER.public_key(), kid="new")]
    assert "new" in await keys.keys_for(Kid("new"))
    assert issuer.calls == 2


async def test_held_keys_outlive_a_short_outage_but_not_a_long_one() -> None:
    issuer = Issuer(jwk())
    keys = issuer.keys()
    await keys.keys_for(Kid("a"))
    issuer.is_up, issuer.at = False, 600.0
    assert "a" in await keys.keys_for(Kid("a"))
    issuer.at = 1201.0
    with pytest.raises(TransientError):
        await keys.keys_for(Kid("a"))


async def test_no_key_was_ever_fetched() -> None:
    issuer = Issuer()
    issuer.is_up = False
    with pytest.raises(TransientError):
        await issuer.keys().keys_for(None)


def test_kid_of_reads_but_does_not_believe() -> None:
    assert kid_of(token()) == "a"
    assert kid_of(token(kid="b c")) is None
    with pytest.raises(TokenError):
        kid_of("no token")

"""What JOSE libraries let through and no verifier here does (design, standards section 2.5; RFC 8725)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives import serialization as forms
from hypothesis import given, settings
from hypothesis import strategies as st

from remit.canonical import b64url, b64url_decode
from remit.errors import TransientError
from remit.verify import Expected, RemoteKeys, TokenError, kid_of, parse_jwks, verify_action_token
from services.tokens.signing import KeyRing, rotated
from tests.support.factories import NOW
from tests.support.forging import (
    ACTION_CLAIMS,
    ALGORITHMS,
    AT,
    BANK,
    CLIENT,
    ISSUER,
    STRANGER,
    TRUSTED,
    VERIFIERS,
    ActionVerifier,
    Key,
    PersonVerifier,
    Verifier,
    changed,
    header_of,
)
from tests.support.hostile_jws import Case, corpus, malleated

if TYPE_CHECKING:
    from collections.abc import Iterator

CASES = [(verifier, case) for verifier in VERIFIERS for name in ALGORITHMS for case in corpus(verifier, TRUSTED[name])]
PAIRS = [(verifier, TRUSTED[name]) for verifier in VERIFIERS for name in ALGORITHMS]
NAMED = [f"{verifier.name}, {key.algorithm}" for verifier, key in PAIRS]


def good(verifier: Verifier, key: Key, **header: Any) -> str:
    return key.sign(header_of(verifier, key, **header), verifier.claims)


@pytest.mark.parametrize(
    ("verifier", "case"), CASES, ids=lambda each: getattr(each, "name", "").encode("ascii", "replace")
)
async def test_hostile_spelling_is_refused(verifier: Verifier, case: Case) -> None:
    assert await verifier.refusal(case.token) in case.codes


def test_corpus_is_as_large_as_it_claims() -> None:
    assert len(CASES) > 1_000
    assert len({case.token for _, case in CASES}) > 900


@pytest.mark.parametrize(("verifier", "key"), PAIRS, ids=NAMED)
async def test_good_token_passes_so_that_every_refusal_has_its_own_reason(verifier: Verifier, key: Key) -> None:
    assert await verifier.refusal(good(verifier, key)) is None
    ignored = {"jku": "https://evil.example/jwks", "x5u": "https://evil.example/x", "jwk": STRANGER["ES256"].jwk()}
    assert (
        await verifier.refusal(good(verifier, key, x5c=["MIIB"], x5t="x", cty="JWT", extra={"a": 1}, **ignored)) is None
    )


@pytest.mark.parametrize(
    "typ", ["JWT", "", " ", "at+jwt ", "at+jwt\n", "at jwt", "jwt+at", "application/", 1, True, ["at+jwt"], {}, None]
)
async def test_action_token_names_its_type(typ: Any) -> None:
    verifier, key = VERIFIERS[0], TRUSTED["ES256"]
    assert await verifier.refusal(key.sign({"alg": "ES256", "kid": key.kid, "typ": typ}, verifier.claims)) == "type"
    assert await verifier.refusal(good(verifier, key, typ=None)) == "type"


KEY_CHANGES: list[dict[str, Any]] = [
    {"use": "enc"}, {"use": ""}, {"use": ["sig"]}, {"use": "SIG"}, {"key_ops": ["encrypt"]}, {"key_ops": ["sign"]},
    {"key_ops": []}, {"key_ops": "verify"}, {"key_ops": {"verify": 1}}, {"use": None, "key_ops": ["encrypt", "decrypt"]},
    {"alg": "none"}, {"alg": "HS256"}, {"alg": "PS256"}, {"alg": "ES384"}, {"alg": ["ES256"]}, {"alg": {}}, {"alg": 1},
    {"kty": "oct"}, {"kty": "OKP"}, {"kty": None}, {"kty": ["EC"]}, {"kid": "another"},
]  # fmt: skip


@pytest.mark.parametrize("change", KEY_CHANGES, ids=str)
@pytest.mark.parametrize(("verifier", "key"), PAIRS, ids=NAMED)
async def test_key_published_for_anything_else_verifies_nothing(
    verifier: Verifier, key: Key, change: dict[str, Any]
) -> None:
    assert await type(verifier)((key.jwk(**change),)).refusal(good(verifier, key)) in {"key", "signature"}


@pytest.mark.parametrize("change", [{"use": None}, {"alg": None}, {"kid": None}], ids=str)
async def test_own_issuer_must_publish_use_algorithm_and_kid(change: dict[str, Any]) -> None:
    key = TRUSTED["ES256"]
    assert await ActionVerifier((key.jwk(**change),)).refusal(good(VERIFIERS[0], key)) == "key"


@pytest.mark.parametrize(("verifier", "key"), PAIRS, ids=NAMED)
async def test_key_set_that_names_other_algorithm_pins_it(verifier: Verifier, key: Key) -> None:
    other = next(name for name in ALGORITHMS if name != key.algorithm)
    published = (key.jwk(alg=other), TRUSTED[other].jwk())
    assert await type(verifier)(published).refusal(good(verifier, key)) in {"key", "signature"}


@pytest.mark.parametrize("member", ["d", "p", "q", "dp", "dq", "qi", "oth", "k"])
@pytest.mark.parametrize(("verifier", "key"), PAIRS, ids=NAMED)
async def test_issuer_that_publishes_a_private_member_is_not_believed_at_all(
    verifier: Verifier, key: Key, member: str
) -> None:
    innocent = Key.fresh("innocent", "ES256").jwk(**{member: "c2VjcmV0"})
    assert await type(verifier)((key.jwk(), innocent)).refusal(good(verifier, key)) in {"key", "signature"}


@pytest.mark.parametrize(("verifier", "key"), PAIRS, ids=NAMED)
async def test_two_keys_under_one_kid_are_no_key(verifier: Verifier, key: Key) -> None:
    published = (key.jwk(), STRANGER[key.algorithm].jwk())
    assert await type(verifier)(published).refusal(good(verifier, key)) in {"key", "signature"}


async def test_key_set_beyond_the_limit_is_not_believed_in_part() -> None:
    key = TRUSTED["ES256"]
    many = tuple(key.jwk(kid=f"k{n}") for n in range(32))
    assert await PersonVerifier((key.jwk(), *many[:31])).refusal(good(VERIFIERS[1], key)) is None
    assert await PersonVerifier((key.jwk(), *many)).refusal(good(VERIFIERS[1], key)) == "signature"


@pytest.mark.parametrize("exponent", [1, 2, 4])
def test_rsa_key_with_an_exponent_that_proves_nothing_is_no_key(exponent: int) -> None:
    row = TRUSTED["RS256"].jwk(e={1: "AQ", 2: "Ag", 4: "BA"}[exponent])
    assert parse_jwks({"keys": [row]}) == {}


def test_published_keys_of_tokens_hold_public_members_only() -> None:
    document: dict[str, Any] = {"active": "a", "keys": [{"kid": "a", "pem": _pem()}, {"kid": "b", "pem": _pem()}]}
    for ring in (KeyRing.parse(document), KeyRing.parse(rotated(document, now=AT, overlap_s=600))):
        for row in ring.jwks()["keys"]:
            assert row.keys() == {"kty", "crv", "use", "alg", "kid", "x", "y"}
            assert len(b64url_decode(row["x"])) == len(b64url_decode(row["y"])) == 32
        text = json.dumps(ring.jwks())
        for key in ring.keys:
            secret = key.private.private_numbers().private_value.to_bytes(32, "big")
            assert not any(spelled in text for spelled in (secret.hex(), b64url(secret)))
        assert not any(secret in repr(ring) for secret in ("PRIVATE KEY", "private="))


def _pem() -> str:
    private = TRUSTED["ES256"].private
    return private.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption()).decode()


AUDIENCES: list[Any] = [
    [BANK], [BANK, "https://evil.example"], [], "", None, f"{BANK}/", BANK.upper(), f"{BANK}#x", f"{ISSUER}/tools/crm", {BANK: 1},
    1, True, f" {BANK}", ISSUER, f"{ISSUER}/tools/bank2",
]  # fmt: skip


@pytest.mark.parametrize("audience", AUDIENCES, ids=str)
async def test_action_token_has_one_audience_mine(audience: Any) -> None:
    key = TRUSTED["ES256"]
    claims = {**ACTION_CLAIMS, "aud": audience} if audience is not None else changed(ACTION_CLAIMS, aud=None)
    assert await VERIFIERS[0].refusal(key.sign(header_of(VERIFIERS[0], key), claims)) == "audience"


PEOPLE_AUDIENCES: list[Any] = [
    [],
    [CLIENT, "other"],
    [[CLIENT]],
    "",
    None,
    {CLIENT: 1},
    1,
    f"{CLIENT} ",
    "remit",
    [None],
    [{}],
]


@pytest.mark.parametrize("audience", PEOPLE_AUDIENCES, ids=str)
async def test_id_token_has_one_audience_a_client_of_ours(audience: Any) -> None:
    key, verifier = TRUSTED["RS256"], VERIFIERS[1]
    claims = {**verifier.claims, "aud": audience} if audience is not None else changed(verifier.claims, aud=None)
    assert await verifier.refusal(key.sign(header_of(verifier, key), claims)) == "audience"


TIMES: list[tuple[dict[str, Any], bool]] = [
    ({"exp": AT - 4, "iat": AT - 60}, True), ({"exp": AT - 5, "iat": AT - 60}, False), ({"exp": 0, "iat": -60}, False),
    ({"iat": AT + 5}, True), ({"iat": AT + 6}, False), ({"exp": -1}, False), ({"exp": 2**53}, False), ({"exp": 1e300}, False),
    ({"exp": str(AT + 60)}, False), ({"exp": [AT + 60]}, False), ({"exp": True}, False), ({"exp": None}, False),
    ({"iat": None}, False), ({"iat": "now"}, False), ({"iat": {}}, False), ({"nbf": AT + 6}, False), ({"nbf": "now"}, False),
    ({"nbf": [0]}, False), ({"nbf": False}, False),
]  # fmt: skip


@pytest.mark.parametrize(("change", "is_good"), TIMES, ids=str)
@pytest.mark.parametrize("verifier", VERIFIERS, ids=lambda each: each.name)
async def test_times_are_numbers_that_hold_with_five_seconds_of_leeway(
    verifier: Verifier, change: dict[str, Any], is_good: bool
) -> None:
    key = TRUSTED["ES256"]
    token = key.sign(header_of(verifier, key), changed({**verifier.claims, "nbf": AT - 60}, **change))
    assert (await verifier.refusal(token) is None) is is_good


async def test_signature_is_malleable_so_the_transaction_is_the_key_of_replay_and_never_the_bytes() -> None:
    key = TRUSTED["ES256"]
    first = good(VERIFIERS[0], key)
    second = malleated(first)
    keys, expected = parse_jwks({"keys": [key.jwk()]}), Expected(issuer=ISSUER, audience=BANK)
    assert first != second
    said = [verify_action_token(each, keys, expected, now=NOW) for each in (first, second, good(VERIFIERS[0], key))]
    assert {each.txn for each in said} == {"act_1"}
    assert said[0] == said[1] == said[2]


class Issuer:
    """A key endpoint that counts how often it is asked."""

    def __init__(self, *rows: dict[str, Any]) -> None:
        self.rows, self.calls, self.at = list(rows), 0, 0.0

    async def fetch(self) -> object:
        self.calls += 1
        return {"keys": self.rows}

    def keys(self) -> RemoteKeys:
        return RemoteKeys(self.fetch, refetch_interval_s=10.0, clock=lambda: self.at)


def _flood() -> Iterator[str]:
    key = TRUSTED["ES256"]
    for n in range(500):
        yield good(VERIFIERS[0], key, kid=f"unknown-{n}")
    for n in range(100):
        yield good(VERIFIERS[0], key, kid=f"../{n}")


async def test_flood_of_unknown_kids_costs_one_fetch_an_interval() -> None:
    issuer = Issuer(TRUSTED["ES256"].jwk())
    keys = issuer.keys()
    for interval in range(3):
        issuer.at = interval * 10.0
        for token in _flood():
            await keys.keys_for(kid_of(token))
        assert issuer.calls == interval + 1


async def test_flood_of_unknown_kids_costs_the_identity_provider_one_fetch_an_interval() -> None:
    asked: list[str] = []
    provider = PersonVerifier()
    answer, verifier = PersonVerifier._answer, provider.verifier()
    verifier._http._transport.handler = lambda request: asked.append(request.url.path) or answer(provider, request)  # type: ignore[attr-defined]
    key = TRUSTED["RS256"]
    for n in range(300):
        with pytest.raises(Exception, match="not signed by a current key"):
            await verifier.verify(good(provider, key, kid=f"unknown-{n}"), now=NOW)
    assert asked.count("/keys") == 1


@pytest.mark.parametrize(
    "rows", [[TRUSTED["ES256"].jwk(), TRUSTED["ES256"].jwk(kid="x", d="c2VjcmV0")], [TRUSTED["ES256"].jwk()] * 2, None],
    ids=["private key", "kid twice", "no set"],
)  # fmt: skip
async def test_key_set_that_went_bad_is_forgotten_until_a_good_one_comes(rows: Any) -> None:
    issuer = Issuer(TRUSTED["ES256"].jwk())
    keys = issuer.keys()
    kid = kid_of(good(VERIFIERS[0], TRUSTED["ES256"]))
    assert kid in await keys.keys_for(kid)
    issuer.rows, issuer.at = rows, 301.0
    for _ in range(3):
        with pytest.raises(TransientError):
            await keys.keys_for(kid)
    assert issuer.calls == 2
    issuer.rows, issuer.at = [TRUSTED["ES256"].jwk()], 312.0
    assert kid in await keys.keys_for(kid)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(member=st.sampled_from(["alg", "kid", "typ", "crit", "b64", "x"]), value=anything, which=st.integers(0, 3))
async def test_any_value_of_a_header_member_gets_an_answer_and_never_an_error(
    member: str, value: Any, which: int
) -> None:
    verifier, key = PAIRS[which]
    refusal = await verifier.refusal(key.sign({**header_of(verifier, key), member: value}, verifier.claims))
    assert refusal is None or refusal.isidentifier()


@settings(max_examples=300, deadline=None)
@given(data=st.data(), value=anything, which=st.integers(0, 3))
async def test_any_value_of_a_claim_gets_an_answer_and_never_an_error(data: Any, value: Any, which: int) -> None:
    verifier, key = PAIRS[which]
    name = data.draw(st.sampled_from([*verifier.claims, "azp", "nbf", "email", "email_verified", "auth_time", "name"]))
    refusal = await verifier.refusal(key.sign(header_of(verifier, key), {**verifier.claims, name: value}))
    assert refusal is None or refusal.isidentifier()


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60) | st.binary(max_size=60).map(lambda raw: raw.decode("latin-1")))
async def test_any_text_gets_an_answer_and_never_an_error(text: str) -> None:
    assert {await verifier.refusal(text) for verifier in VERIFIERS} == {"form"}


@settings(max_examples=150, deadline=None)
@given(position=st.integers(min_value=0), character=st.sampled_from("ABCxyz019-_"), which=st.integers(0, 3))
async def test_any_changed_character_is_refused(position: int, character: str, which: int) -> None:
    verifier, key = PAIRS[which]
    token = good(verifier, key)
    at = position % len(token)
    if token[at] not in (character, "."):
        assert await verifier.refusal(token[:at] + character + token[at + 1 :]) is not None


def test_key_id_of_a_token_is_read_only_from_good_form() -> None:
    for case in (each for verifier, each in CASES if verifier is VERIFIERS[0] and each.codes == frozenset({"form"})):
        with pytest.raises(TokenError):
            kid_of(case.token)

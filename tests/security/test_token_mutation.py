"""A token that the real key of tokens signed for anything but exactly this call buys nothing (design, standards 2.1 and 2.2)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any

import jwt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nacl.public import PrivateKey

from remit.canonical import b64url, digest, digest_bytes
from remit.ids import action_id, human_subject, jti
from services.tokens.minting import Executor
from tests.support import execution as x
from tests.support import factories as f
from tests.support.hostile_jws import malleated
from tests.support.minted import ARGUMENTS, ISSUER, KEY, Bench

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OTHER_ACTION = action_id("default", "bookkeeper", "another-key")
OTHER_AGENT = "spiffe://acme.example/agent/other"
OTHER_TOOL = "https://remit.example/tools/bank"
WRONG_TYPES: tuple[Any, ...] = (None, True, 0, 1.5, "", [], {}, ["x"], {"x": 1}, [[]])
DECIDING = (
    "iss",
    "sub",
    "client_id",
    "act",
    "aud",
    "iat",
    "nbf",
    "exp",
    "jti",
    "txn",
    "scope",
    "authorization_details",
    "cnf",
)
INFORMING = ("agentic_ctx", "remit")
"""Claims that correlate and inform; no decision reads them (design, standards section 2.1)."""
DETAIL = ("type", "tool", "action", "locations", "args_digest", "tool_schema_digest")


@dataclass(frozen=True, slots=True)
class Mutation:
    """A path into the claims and what stands there instead; `GONE` removes it."""

    path: tuple[str | int, ...]
    value: Any

    def __str__(self) -> str:
        """Name the case."""
        return f"{'.'.join(map(str, self.path))} = {str(self.value)[:60]}"

    def apply(self, claims: dict[str, Any]) -> dict[str, Any]:
        """Return changed claims."""
        mutated = copy.deepcopy(claims)
        place: Any = mutated
        for step in self.path[:-1]:
            place = place[step]
        if self.value is GONE:
            del place[self.path[-1]]
        else:
            place[self.path[-1]] = self.value
        return mutated


class Gone(Enum):
    """Stands for a claim that is left out."""

    GONE = "left out"


GONE = Gone.GONE
INSIDE = ("authorization_details", 0)


def _dropped_and_retyped() -> Iterator[Mutation]:
    paths: list[tuple[str | int, ...]] = [(name,) for name in DECIDING]
    paths += [(*INSIDE, name) for name in DETAIL] + [("act", "iss"), ("act", "sub"), ("cnf", "jkt")]
    for path in paths:
        yield Mutation(path, GONE)
        # Valid since 1970 is valid now: zero is a wrong `iat` and `exp`, and a right `nbf`.
        yield from (Mutation(path, value) for value in WRONG_TYPES if (path, repr(value)) != (("nbf",), "0"))


Other = dict[tuple[str | int, ...], list[Any]]


def _other_claims() -> Other:
    people = [
        human_subject(f.DANA.iss, f.DANA.sub),
        human_subject("https://evil.example", f.EMMA.sub),
        f.EMMA.sub,
        f"{f.EMMA.iss}|{f.EMMA.sub}",
    ]
    return {
        ("iss",): ["https://evil.example", f"{ISSUER}/", ISSUER.upper(), [ISSUER]],
        ("sub",): [*people, f.AGENT.id],
        ("client_id",): ["https://agents.example/other", f.AGENT.client_id.upper(), [f.AGENT.client_id]],
        ("act", "sub"): [OTHER_AGENT, f.AGENT.id.upper(), f"{f.AGENT.id}/x", f.AGENT.client_id],
        ("act", "iss"): ["https://evil.example", f"{ISSUER}/"],
        ("aud",): [
            OTHER_TOOL,
            ISSUER,
            [x.tool_entry().resource],
            [x.tool_entry().resource, OTHER_TOOL],
            f"{x.tool_entry().resource}/",
        ],
        ("jti",): [jti(action_id("default", "bookkeeper", KEY), 2), jti(OTHER_ACTION, 1), "tok_1"],
        ("txn",): [OTHER_ACTION, OTHER_ACTION.upper(), f"{action_id('default', 'bookkeeper', KEY)} "],
        ("scope",): [
            "proposals:create tools:list",
            "tool:execute proposals:create",
            "tool:execute ",
            "TOOL:EXECUTE",
            "*",
            ["tool:execute"],
        ],
        ("cnf",): [{"jkt": f.DIGEST}, {"jkt": "other"}, {"jwk": {}}, {"x5t#S256": "x"}],
    }


def _other_details() -> Other:
    return {
        (*INSIDE, "type"): ["payment", "tool_calls", "TOOL_CALL", "tool_call "],
        (*INSIDE, "tool"): ["bank", "echo.say", "ECHO", "*", ["echo"]],
        (*INSIDE, "action"): ["shout", "*", "SAY", "echo.say", ["say"]],
        (*INSIDE, "locations"): [
            ["https://evil.example"],
            ["*"],
            "noop:",
            ["https://evil.example", "x"],
            [None],
            [["x"]],
        ],
        (*INSIDE, "args_digest"): [
            f.DIGEST,
            digest({"text": "hello "}),
            digest({"text": "hello", "amount": 1}),
            digest({}),
            f"{digest(ARGUMENTS)} ",
        ],
        (*INSIDE, "tool_schema_digest"): [f.DIGEST, digest({}), digest(ARGUMENTS)],
    }


def _swapped() -> Iterator[Mutation]:
    for path, wrong in {**_other_claims(), **_other_details()}.items():
        yield from (Mutation(path, value) for value in wrong)


def _widened() -> Iterator[Mutation]:
    for name, value in {
        "max_calls": 5,
        "arguments": {},
        "expires_at": "2099-01-01T00:00:00Z",
        "allOf": [],
        "actions": ["say", "shout"],
        "datatypes": [],
        "privileges": ["admin"],
        "identifier": "x",
        "not": {},
        "grant_no": 1,
        "x": None,
    }.items():
        yield Mutation((*INSIDE, name), value)
    yield Mutation(("cnf", "x5t#S256"), "x")
    yield Mutation(("cnf", "jwk"), {"kty": "EC"})
    for name in ("exp", "nbf", "aud"):
        yield Mutation(("act", name), 1)
    yield Mutation(("exp",), 2**53)
    yield Mutation(("exp",), 2**40)


def _nested(depth: int) -> dict[str, Any]:
    actor: dict[str, Any] = {"iss": ISSUER, "sub": "spiffe://acme.example/agent/deepest"}
    for n in range(depth - 1):
        actor = {"iss": ISSUER, "sub": f"spiffe://acme.example/agent/n{n}", "act": actor}
    return actor


MUTATIONS = [*_dropped_and_retyped(), *_swapped(), *_widened()]


@pytest.fixture(scope="module")
def bench(keys: Path) -> Bench:
    return Bench.of(keys)


async def test_token_for_this_call_passes_so_that_every_refusal_has_its_own_reason(bench: Bench) -> None:
    assert await bench.refusal(bench.sign(bench.claims())) is None
    assert set(bench.claims()) == {*DECIDING, *INFORMING}
    assert set(bench.claims()["authorization_details"][0]) == set(DETAIL)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
async def test_token_that_is_not_exactly_this_call_is_refused(bench: Bench, mutation: Mutation) -> None:
    assert await bench.refusal(bench.sign(mutation.apply(bench.claims()))) is not None


DETAILS: dict[str, Any] = {
    "twice the same": lambda row: [row, row],
    "mine and a wider one": lambda row: [row, {**row, "action": "shout"}],
    "a wider one and mine": lambda row: [{**row, "action": "shout"}, row],
    "mine and another type": lambda row: [row, {"type": "payment"}],
    "mine and nothing": lambda row: [row, None],
    "an object": lambda row: row,
    "a list in a list": lambda row: [[row]],
    "by number": lambda row: {"0": row},
    "grant form": lambda row: [{"type": "tool_call", "tool": row["tool"], "action": row["action"], "max_calls": 1}],
    "grant form and digests": lambda row: [{**row, "arguments": {"type": "object"}, "max_calls": 1}],
    "two locations": lambda row: [{**row, "locations": [*row["locations"], "https://evil.example"]}],
    "the same location twice": lambda row: [{**row, "locations": row["locations"] * 2}],
    "text": str,
}


@pytest.mark.parametrize("spelling", DETAILS)
async def test_details_are_exactly_one_call_in_token_form(bench: Bench, spelling: str) -> None:
    claims = bench.claims()
    claims["authorization_details"] = DETAILS[spelling](claims["authorization_details"][0])
    assert "details" in str(await bench.refusal(bench.sign(claims)))


async def test_claims_of_each_other_call_do_not_carry_this_one(bench: Bench) -> None:
    mine, other = bench.claims(), bench.claims(key="another-key")
    for claims in (other, {**mine, "jti": other["jti"]}, {**mine, "txn": other["txn"]}, {**other, "txn": mine["txn"]}):
        assert await bench.refusal(bench.sign(claims)) == "token_invalid"


async def test_token_of_another_attempt_or_executor_is_refused(bench: Bench) -> None:
    assert await bench.refusal(bench.sign(bench.claims(attempt=2))) == "token_invalid"
    assert "confirmation" in str(await bench.refusal(bench.sign(bench.claims(executor="another-executor"))))


HEADERS: list[tuple[dict[str, Any], str]] = [
    ({"kid": "unknown"}, "key"), ({"kid": "../../token_keys.json"}, "key"), ({"typ": "JWT"}, "type"), ({"typ": None}, "type"),
    ({"typ": "txntoken+jwt"}, "type"), ({"typ": "dpop+jwt"}, "type"), ({"crit": ["exp"]}, "header"), ({"b64": True}, "header"),
]  # fmt: skip


@pytest.mark.parametrize(("header", "code"), HEADERS, ids=str)
async def test_right_claims_under_a_wrong_header_are_refused(bench: Bench, header: dict[str, Any], code: str) -> None:
    assert (await bench.refusal(bench.sign(bench.claims(), **header)) or "").startswith(f"token_invalid: {code}")


async def test_unsigned_and_shared_secret_tokens_are_refused(bench: Bench) -> None:
    unsigned = jwt.encode(bench.claims(), "", algorithm="none", headers={"typ": "at+jwt", "kid": bench.kid})
    assert (await bench.refusal(unsigned) or "").startswith("token_invalid: form")
    assert (await bench.refusal(f"{unsigned}AA") or "").startswith("token_invalid: algorithm")
    secret = str(bench.ring.jwks()).encode()
    shared = jwt.encode(bench.claims(), secret, algorithm="HS256", headers={"typ": "at+jwt", "kid": bench.kid})
    assert (await bench.refusal(shared) or "").startswith("token_invalid: algorithm")


async def test_expired_token_starts_nothing_not_even_within_the_leeway(bench: Bench) -> None:
    state = bench.event(bench.sign(bench.claims()))
    assert await bench.judge(state, now=bench.now + timedelta(seconds=59)) is None
    for seconds in (60, 61, 64, 65, 3600):
        assert await bench.judge(state, now=bench.now + timedelta(seconds=seconds)) == "expired"
    assert "not_yet_valid" in str(await bench.judge(state, now=bench.now - timedelta(seconds=6)))


async def test_token_may_live_no_longer_than_its_cap(bench: Bench) -> None:
    claims = bench.claims()
    for seconds, is_good in ((60, True), (240, True), (241, False), (3600, False)):
        token = bench.sign({**claims, "iat": claims["iat"] - seconds, "nbf": 0})
        assert (await bench.refusal(token) is None) is is_good


async def test_event_and_token_must_agree_on_digest_id_and_end(bench: Bench) -> None:
    token = bench.sign(bench.claims())
    assert "not the one" in str(await bench.judge(bench.event(token, token_digest=f.DIGEST)))
    assert "not the one" in str(
        await bench.judge(bench.event(malleated(token), token_digest=digest_bytes(token.encode())))
    )
    assert await bench.judge(bench.event(malleated(token))) is None
    assert await bench.judge(bench.event(token, jti=jti(OTHER_ACTION, 1))) == "token_invalid"
    assert await bench.judge(bench.event(token, exp=int(bench.now.timestamp()) + 120)) == "token_invalid"


async def test_box_for_somebody_else_or_no_box_at_all_is_refused(bench: Bench) -> None:
    token = bench.sign(bench.claims())
    stranger = Executor(bytes(PrivateKey.generate().public_key), "jkt")
    sealed = bench.executor.seal(token)
    boxes = [
        stranger.seal(token),
        b64url(token.encode()),
        token,
        "",
        "AAAA",
        sealed[:-2],
        sealed + "=",
        sealed[:-4] + "AAAA",
    ]
    for box in boxes:
        assert "cannot be opened" in str(await bench.judge(bench.event(token, sealed_token=box))), box[:8]


HARMLESS: list[Mutation] = [
    *(Mutation((name,), value) for name in INFORMING for value in (GONE, *WRONG_TYPES)),
    *(Mutation(("remit", name), "other") for name in ("remit_id", "evaluation_id", "policy_version", "approval_id")),
    Mutation(("act", "sub_profile"), "user"), Mutation(("act", "sub_profile"), GONE), Mutation(("act", "name"), "root"),
    Mutation(("may_act",), {"sub": OTHER_AGENT}), Mutation(("email",), "ceo@acme.example"), Mutation(("roles",), ["admin"]),
    Mutation(("single_use",), False), Mutation(("approval",), {"approver": "dana"}), Mutation(("groups",), ["admin"]),
    Mutation(("entitlements",), ["*"]), Mutation(("resource",), "*"), Mutation(("azp",), "evil"), Mutation(("events",), {}),
]  # fmt: skip


@pytest.mark.parametrize("mutation", HARMLESS, ids=str)
async def test_claims_that_only_inform_decide_nothing(bench: Bench, mutation: Mutation) -> None:
    assert await bench.refusal(bench.sign(mutation.apply(bench.claims()))) is None


@pytest.mark.parametrize("depth", range(1, 8))
async def test_nested_actor_never_decides_and_a_long_chain_is_refused(bench: Bench, depth: int) -> None:
    claims = bench.claims()
    claims["act"]["act"] = _nested(depth)
    assert (await bench.refusal(bench.sign(claims)) is None) is (depth < 4)
    claims["act"] = {**_nested(1), "act": claims["act"]}
    assert await bench.refusal(bench.sign(claims)) is not None


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=3),
    max_leaves=6,
)
quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(name=st.sampled_from(DECIDING), value=values)
async def test_no_other_value_of_a_deciding_claim_passes(bench: Bench, name: str, value: Any) -> None:
    claims = bench.claims()
    is_earlier = name in {"iat", "nbf"} and isinstance(value, int)
    if value != claims[name] and not is_earlier:
        assert await bench.refusal(bench.sign({**claims, name: value})) is not None


@quick
@given(name=st.sampled_from(DETAIL), value=values)
async def test_no_other_value_in_the_details_passes(bench: Bench, name: str, value: Any) -> None:
    claims = bench.claims()
    row = claims["authorization_details"][0]
    if value != row[name]:
        mutated = {**claims, "authorization_details": [{**row, name: value}]}
        assert await bench.refusal(bench.sign(mutated)) is not None


@quick
@given(name=st.text("abcdefghij_", min_size=1, max_size=10), value=values)
async def test_unknown_fields_widen_nothing(bench: Bench, name: str, value: Any) -> None:
    claims = bench.claims()
    row = claims["authorization_details"][0]
    if name not in claims:
        assert await bench.refusal(bench.sign({**claims, name: value})) is None
    if name not in row:
        mutated = {**claims, "authorization_details": [{**row, name: value}]}
        assert "details" in str(await bench.refusal(bench.sign(mutated)))


@quick
@given(nested=st.dictionaries(st.sampled_from(["iss", "sub", "sub_profile", "client_id", "scope"]), values, max_size=4))
async def test_no_nested_actor_changes_the_answer(bench: Bench, nested: dict[str, Any]) -> None:
    claims = bench.claims()
    claims["act"]["act"] = nested
    assert await bench.refusal(bench.sign(claims)) is None

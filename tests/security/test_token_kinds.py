"""Every kind of JWT at every verifier of this build: its own is accepted, each other one refused (design, standards 2.4)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from remit.commands import ApproveCommand
from remit.runtime.keys import load_executor
from remit.verify import Expected, TokenError, parse_jwks, verify_action_token
from services.approval.human import HumanCommands
from services.tokens.signing import ALGORITHM
from tests.security.kinds import ACTION_VERIFIERS, PERSON_VERIFIERS, TYPES, Kind, kinds
from tests.support import factories as f
from tests.support.dashboard_app import Provider, dashboard_app
from tests.support.forging import CLIENT, ISSUER, PROVIDER, STRANGER, TRUSTED, Key, PersonVerifier, changed
from tests.support.http_server import serving
from tests.support.minted import TOOL, Bench

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from streamlit.starlette import App

    from remit.runtime.delivery import Inbound

ROWS = [kind.name for kind in kinds({"cnf": {}, "authorization_details": []})]


def forged(kind: Kind, key: Key, at: int, *, nearer: dict[str, Any] | None = None) -> str:
    """Sign a kind with a key; `nearer` is what a confused issuer would say to please one verifier."""
    typ = kind.typ if nearer is None else nearer.pop("typ")
    claims = kind.timed(at) | ({} if nearer is None else {"sub": "dana", **kind.timed(at), **nearer})
    header = changed({"alg": key.algorithm, "typ": typ, "kid": key.kid}, **kind.header)
    return key.sign(header, changed(claims))


class Executor:
    """The executor's own check of a tokenized action; remembers nothing between tokens."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.at = bench, int(bench.now.timestamp())
        signing = bench.ring.signing_key(self.at)
        self.trusted = [Key(signing.kid, ALGORITHM, signing.private)]

    def nearer(self) -> dict[str, Any]:
        return {
            "typ": "at+jwt",
            "iss": ISSUER,
            "aud": TOOL.resource,
            "iat": self.at,
            "nbf": self.at,
            "exp": self.at + 60,
        }

    async def refusal(self, token: str) -> str | None:
        return await self.bench.refusal(token)


class Tool(Executor):
    """A tool that understands Remit: `remit.verify` alone, with the published keys."""

    async def refusal(self, token: str) -> str | None:
        expected = Expected(issuer=ISSUER, audience=TOOL.resource)
        try:
            verify_action_token(token, parse_jwks(self.bench.ring.jwks()), expected, now=self.bench.now)
        except TokenError as error:
            return str(error.code)
        return None


class Approval:
    """The door for people: a command with the token in the place of the ID token. Everybody's own switch is engaged."""

    def __init__(self) -> None:
        self.at, self.trusted = int(f.NOW.timestamp()), list(TRUSTED.values())

        async def is_engaged(_: object) -> bool:
            return True

        nothing: Any = None
        self.door = HumanCommands(
            clock=lambda: f.NOW, verifier=PersonVerifier().verifier(), switches=cast(Any, SimpleNamespace(is_engaged=is_engaged)),
            votes=nothing, grants=nothing, revocations=nothing, registry=nothing, resolutions=nothing,
        )  # fmt: skip

    def nearer(self) -> dict[str, Any]:
        return {"typ": "JWT", "iss": PROVIDER, "aud": CLIENT, "iat": self.at, "nbf": self.at, "exp": self.at + 60}

    async def refusal(self, token: str) -> str | None:
        command = ApproveCommand.model_validate(
            {"id_token": token, "idempotency_key": "key-00001", "action_id": f.ACTION_ID, "args_digest": f.DIGEST}
        )
        reply = await self.door.answer(
            cast("Inbound", SimpleNamespace(subject="human.approve", body=command.to_wire()))
        )
        assert b"eyJ" not in reply
        return None if b'"forbidden"' in reply else reply.decode()


class Dashboard:
    """The sign-in of the dashboard: its provider answers the code with the token; refused means that nobody is signed in."""

    def __init__(self, app: App, provider: Provider) -> None:
        self.app, self.provider, self.trusted = app, provider, [TRUSTED["RS256"]]
        self.at = int(datetime.now(UTC).timestamp())

    def nearer(self) -> dict[str, Any]:
        return {
            "typ": "JWT",
            "iss": self.provider.issuer,
            "aud": CLIENT,
            "iat": self.at,
            "nbf": self.at,
            "exp": self.at + 60,
        }

    async def refusal(self, token: str) -> str | None:
        self.provider.token = lambda _issuer, _nonce: token
        return None if "_streamlit_user" in await self.provider.sign_in(self.app) else "nobody is signed in"


@pytest.fixture(scope="module")
def bench(keys: Path) -> Bench:
    return Bench.of(keys)


@pytest.fixture(scope="module")
async def doors(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[str, Any]]:
    provider = Provider([key.jwk() for key in TRUSTED.values()])
    async with serving(provider.app()) as port:
        provider.issuer = f"http://localhost:{port}"
        with dashboard_app(tmp_path_factory.mktemp("dashboard"), provider.issuer) as app:
            yield {
                "executor": Executor(bench),
                "tool": Tool(bench),
                "approval": Approval(),
                "dashboard": Dashboard(app, provider),
            }


VERIFIERS = sorted(ACTION_VERIFIERS | PERSON_VERIFIERS)
PAIRS = [(row, verifier) for row in ROWS for verifier in VERIFIERS]


def kind_of(row: str, bench: Bench) -> Kind:
    return next(kind for kind in kinds(bench.claims()) if kind.name == row)


def foreign(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    accepted = {kind.name: kind.accepted_at for kind in kinds({"cnf": {}, "authorization_details": []})}
    return [(row, verifier) for row, verifier in pairs if verifier not in accepted[row]]


@pytest.mark.parametrize(("row", "verifier"), foreign(PAIRS))
async def test_foreign_kind_under_a_trusted_key_is_refused(
    doors: dict[str, Any], bench: Bench, row: str, verifier: str
) -> None:
    kind, door = kind_of(row, bench), doors[verifier]
    for key in door.trusted:
        assert await door.refusal(forged(kind, key, door.at)) is not None
        assert await door.refusal(forged(kind, key, door.at, nearer=door.nearer())) is not None


CALLERS = [(row, verifier) for row, verifier in PAIRS if verifier != "dashboard"]
"""The dashboard's verifier sees only what its provider's token endpoint sends; a caller brings a code and never a token."""


@pytest.mark.parametrize(("row", "verifier"), CALLERS)
async def test_any_kind_under_a_foreign_key_is_refused(
    doors: dict[str, Any], bench: Bench, row: str, verifier: str
) -> None:
    door = doors[verifier]
    signer = STRANGER[door.trusted[0].algorithm]
    for kid in (signer.kid, door.trusted[0].kid):
        key = Key(kid, signer.algorithm, signer.private)
        assert await door.refusal(forged(kind_of(row, bench), key, door.at, nearer=door.nearer())) is not None


@pytest.mark.parametrize("verifier", sorted(ACTION_VERIFIERS))
async def test_action_token_is_accepted_where_it_belongs(doors: dict[str, Any], bench: Bench, verifier: str) -> None:
    assert await doors[verifier].refusal(bench.sign(bench.claims())) is None


@pytest.mark.parametrize("row", ["ID token", "ID token typed"])
async def test_id_token_is_accepted_where_it_belongs(doors: dict[str, Any], bench: Bench, row: str) -> None:
    kind = kind_of(row, bench)
    approval, dashboard = doors["approval"], doors["dashboard"]
    for key in approval.trusted:
        assert await approval.refusal(forged(kind, key, approval.at)) is None
    dashboard.provider.token = lambda issuer, nonce: forged(
        kind, dashboard.trusted[0], dashboard.at, nearer={"typ": kind.typ, "iss": issuer, "nonce": nonce}
    )
    assert "_streamlit_user" in await dashboard.provider.sign_in(dashboard.app)


@pytest.mark.parametrize("row", [row for row in ROWS if row not in {"action token", "agent access token"}])
async def test_type_alone_tells_an_action_token_from_every_other_kind(
    doors: dict[str, Any], bench: Bench, row: str
) -> None:
    for verifier in sorted(ACTION_VERIFIERS):
        door = doors[verifier]
        assert "type" in await door.refusal(forged(kind_of(row, bench), door.trusted[0], door.at))


@pytest.mark.parametrize("typ", sorted(TYPES))
async def test_type_alone_tells_an_id_token_from_every_typed_kind(
    doors: dict[str, Any], bench: Bench, typ: str
) -> None:
    door = doors["approval"]
    for spelled in (typ, typ.upper(), f"application/{typ}"):
        token = forged(kind_of("ID token", bench), door.trusted[0], door.at, nearer=door.nearer() | {"typ": spelled})
        assert "another kind" in str(await door.refusal(token))


async def test_proof_of_the_executor_s_own_key_opens_nothing(doors: dict[str, Any], bench: Bench, keys: Path) -> None:
    proof = kind_of("DPoP proof", bench)
    own = Key("executor", "ES256", load_executor(keys).dpop)
    proof = Kind(proof.name, proof.typ, proof.claims, header={"jwk": own.jwk(kid=None, use=None, alg=None)})
    for verifier in VERIFIERS:
        assert await doors[verifier].refusal(forged(proof, own, doors[verifier].at)) is not None


async def test_session_of_the_dashboard_ends_with_its_token(doors: dict[str, Any], bench: Bench) -> None:
    door = doors["dashboard"]
    past = int((datetime.now(UTC) - timedelta(hours=1)).timestamp())
    kind = kind_of("ID token", bench)
    for wrong in (
        {"iat": past, "exp": past + 60},
        {"nonce": "of another login"},
        {"aud": "another client"},
        {"iss": "https://evil.example"},
    ):

        def token(issuer: str, nonce: str, wrong: dict[str, Any] = wrong) -> str:
            return forged(kind, door.trusted[0], door.at, nearer={"typ": None, "iss": issuer, "nonce": nonce} | wrong)

        door.provider.token = token
        assert "_streamlit_user" not in await door.provider.sign_in(door.app)

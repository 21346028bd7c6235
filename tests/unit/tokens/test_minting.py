"""From a permitted action to a sealed token that the verifier accepts, and keys that rotate without a gap."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, cast

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from nacl.exceptions import CryptoError
from nacl.public import PrivateKey, SealedBox
from starlette.applications import Starlette
from starlette.testclient import TestClient

from remit.canonical import b64url_decode, digest_bytes
from remit.errors import ConfigurationError
from remit.events import ActionRefused, ActionTokenized, Refused, Tokenized
from remit.reasons import Reason, Stage
from remit.runtime.delivery import Inbound
from remit.runtime.ledger import Superseded
from remit.verify import Expected, parse_jwks, verify_action_token
from services.tokens.handlers import TokensHandlers
from services.tokens.key_file import KeyFile
from services.tokens.metadata import routes
from services.tokens.minting import Executor, Minter
from services.tokens.rotate import main, rotate
from services.tokens.signing import KeyRing, rotated
from tests.support.factories import NOW, grow
from tests.unit.evaluation.bank import bundle, proposal, remit
from tests.unit.evaluation.chains import ACTION_ID, RememberingLedger, by_people, by_policy, new_action

if TYPE_CHECKING:
    from pathlib import Path

    from remit.fold import ActionState, RemitState

AT = int(NOW.timestamp())
OPENER = PrivateKey(b"\x07" * 32)
ISSUER = "https://remit.example"
EXPECTED = Expected(issuer=ISSUER, audience="https://remit.example/tools/bank", key_thumbprint="jkt")


def pem(key: Any = None) -> str:
    made = key or ec.generate_private_key(ec.SECP256R1())
    return made.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


DOCUMENT: dict[str, Any] = {"active": "token-1", "keys": [{"kid": "token-1", "pem": pem()}]}
RING = KeyRing.parse(DOCUMENT)


def handlers(state: ActionState, **changes: Any) -> TokensHandlers:
    async def read_remit(_: str) -> RemitState:
        return remit()

    executor = Executor(bytes(OPENER.public_key), "jkt")
    base: dict[str, Any] = {
        "clock": lambda: NOW,
        "tenant": "default",
        "bundle": bundle,
        "read_remit": read_remit,
        "minter": Minter(issuer=ISSUER, executor=executor, keys=lambda: RING),
        "ledger": RememberingLedger(state),
        "lifetime_s": 60,
    }
    return TokensHandlers(**{**base, **changes})


def opened(data: Tokenized) -> str:
    return SealedBox(OPENER).decrypt(b64url_decode(data.sealed_token)).decode()


@pytest.mark.parametrize("state", [by_policy(), by_people("dana")], ids=["by policy", "by people"])
async def test_minted_token_verifies_and_reaches_the_executor_only(state: ActionState) -> None:
    draft = await handlers(state).on_action_approved(state)
    assert draft is not None
    assert (draft.event, draft.discriminator) == (ActionTokenized, "1")
    data = cast(Tokenized, draft.data)
    token = opened(data)
    verified = verify_action_token(token, parse_jwks(RING.jwks()), EXPECTED, now=NOW)
    assert (verified.txn, verified.jti, verified.expires_at) == (ACTION_ID, data.jti, data.exp)
    assert (verified.tool, verified.action) == ("bank", "send_money")
    assert verified.args_digest == data.action.args_digest
    assert data.token_digest == digest_bytes(token.encode())
    assert data.scopes_granted == ["bank.send_money"]
    assert token not in data.model_dump_json()
    assert "eyJ" not in data.model_dump_json()
    with pytest.raises(CryptoError):
        SealedBox(PrivateKey(b"\x08" * 32)).decrypt(b64url_decode(data.sealed_token))
    grow(state, "action.tokenized", data, subject=ACTION_ID)


async def test_refusal_is_the_tokens_stage_and_ends_the_action() -> None:
    async def revoked(_: str) -> RemitState:
        return remit("revoked")

    state = by_policy()
    draft = await handlers(state, read_remit=revoked).on_action_approved(state)
    assert draft is not None
    data = cast(Refused, draft.data)
    assert (draft.event, data.stage, data.reason) == (ActionRefused, Stage.TOKENS, Reason.REMIT_REVOKED)
    assert grow(state, "action.refused", data, subject=ACTION_ID).is_terminal


async def redriven(
    state: ActionState, body: bytes = ACTION_ID.encode(), conflict: Exception | None = None
) -> list[Any]:
    ledger = RememberingLedger(state, conflict=conflict)
    await handlers(state, ledger=ledger).on_redrive(Inbound(subject="redrive.tokens", body=body, headers={}))
    return ledger.appended


async def test_redrive_mints_only_where_a_delivery_would() -> None:
    assert len(await redriven(by_policy())) == 1
    assert await redriven(by_policy(), b"no action id") == []
    assert await redriven(new_action(proposal())) == []
    assert await redriven(by_policy(), ACTION_ID.encode().upper()) == []
    assert await redriven(by_policy(), conflict=Superseded(by_policy())) == []


async def test_forged_redrives_do_not_use_up_attempts() -> None:
    state = by_policy()
    draft = await handlers(state).on_action_approved(state)
    assert draft is not None
    state = grow(state, "action.tokenized", draft.data, subject=ACTION_ID)
    assert await redriven(state) == []


def test_old_and_new_key_verify_through_a_rotation() -> None:
    overlap = 600
    after = rotated(DOCUMENT, now=AT, overlap_s=overlap)
    ring = KeyRing.parse(after)
    kids = [key.kid for key in ring.keys]
    assert len(kids) == 2
    assert ring.signing_key(AT + overlap - 1).kid == "token-1"
    assert ring.signing_key(AT + overlap).kid == kids[1]
    published = parse_jwks(ring.jwks())
    assert set(published) == set(kids)
    claims = {"iss": ISSUER}
    for ring_then, when in ((RING, AT), (ring, AT), (ring, AT + overlap)):
        kid = json.loads(b64url_decode(ring_then.sign(claims, now=when).split(".")[0]))["kid"]
        assert kid in published


async def test_token_of_the_old_key_verifies_after_rotation() -> None:
    state = by_policy()
    draft = await handlers(state).on_action_approved(state)
    assert draft is not None
    token = opened(cast(Tokenized, draft.data))
    ring = KeyRing.parse(rotated(DOCUMENT, now=AT, overlap_s=600))
    assert verify_action_token(token, parse_jwks(ring.jwks()), EXPECTED, now=NOW).txn == ACTION_ID


def test_second_rotation_waits_for_the_first_and_drops_what_is_over() -> None:
    first = rotated(DOCUMENT, now=AT, overlap_s=600)
    with pytest.raises(ConfigurationError, match="does not sign yet"):
        rotated(first, now=AT + 599, overlap_s=600)
    early = rotated(first, now=AT + 700, overlap_s=600)
    assert early["keys"][0]["kid"] == "token-1"
    late = rotated(first, now=AT + 1200, overlap_s=600)
    assert "token-1" not in [row["kid"] for row in late["keys"]]
    assert KeyRing.parse(late).signing_key(AT + 1200).kid == first["keys"][1]["kid"]


def test_rotation_on_disk_is_private_and_picked_up(tmp_path: Path) -> None:
    (tmp_path / "tokens").mkdir()
    path = tmp_path / "tokens" / "token_keys.json"
    path.write_text(json.dumps(DOCUMENT))
    file = KeyFile(tmp_path)
    kid = rotate(tmp_path, at=AT, overlap_s=600)
    assert path.stat().st_mode & 0o777 == 0o600
    file.reload()
    assert [key.kid for key in file.ring().keys] == ["token-1", kid]
    path.write_text("{}")
    file.reload()
    assert [key.kid for key in file.ring().keys] == ["token-1", kid]


async def test_rotated_file_is_read_again_while_running(tmp_path: Path) -> None:
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "token_keys.json").write_text(json.dumps(DOCUMENT))
    file = KeyFile(tmp_path)
    watching = asyncio.create_task(file.watch(0.001))
    rotate(tmp_path, at=AT, overlap_s=600)
    async with asyncio.timeout(5):
        while len(file.ring().keys) < 2:
            await asyncio.sleep(0.001)
    watching.cancel()


def test_command_rotates_the_environments_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "token_keys.json").write_text(json.dumps(DOCUMENT))
    monkeypatch.setenv("REMIT_KEYS_DIR", str(tmp_path))
    main()
    assert "is published and signs in 600 s" in capsys.readouterr().out
    assert len(KeyFile(tmp_path).ring().keys) == 2


BROKEN: list[dict[str, Any]] = [
    {},
    {"active": "x", "keys": DOCUMENT["keys"]},
    {"active": "token-1", "keys": []},
    {"active": "token-1", "keys": [{"kid": "token-1", "pem": "no key"}]},
    {"active": "token-1", "keys": [{"kid": "token-1", "pem": pem(ec.generate_private_key(ec.SECP384R1()))}]},
    {"active": "k", "keys": [{"kid": "k", "pem": pem(rsa.generate_private_key(public_exponent=65537, key_size=2048))}]},
]


@pytest.mark.parametrize("document", BROKEN)
def test_key_file_that_is_none_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        KeyRing.parse(document)


def test_key_that_may_not_sign_yet_does_not() -> None:
    ring = KeyRing.parse({"active": "k", "keys": [{"kid": "k", "pem": pem(), "signs_from": AT + 1}]})
    with pytest.raises(ConfigurationError, match="no key may sign yet"):
        ring.signing_key(AT)


def test_private_key_shows_nowhere() -> None:
    shown = f"{RING!r} {RING.jwks()}"
    assert "PRIVATE" not in shown
    assert not any(member in row for row in RING.jwks()["keys"] for member in ("d", "p", "q", "k"))


def test_published_documents_are_what_verifiers_need() -> None:
    app = Starlette(routes=list(routes(keys=lambda: RING, issuer=ISSUER, public_url="https://tokens.example/")))
    client = TestClient(app)
    jwks = client.get("/.well-known/jwks.json")
    assert parse_jwks(jwks.json()).keys() == {"token-1"}
    assert jwks.headers["cache-control"] == "public, max-age=300"
    metadata = client.get("/.well-known/oauth-authorization-server").json()
    assert metadata["issuer"] == ISSUER
    assert metadata["jwks_uri"] == "https://tokens.example/.well-known/jwks.json"
    assert metadata["authorization_details_types_supported"] == ["tool_call"]

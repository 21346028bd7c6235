"""The local OpenID provider: a real code flow gives ID tokens that carry roles and verify by discovery and JWKS."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import httpx
import jwt
import pytest

from infra.demo.identity import PEOPLE, LoginError, id_token
from remit import clock
from remit.identity import IdTokenVerifier
from remit.identity_claims import IdentityError, TrustedIssuer

if TYPE_CHECKING:
    from collections.abc import Iterator

CLIENT, CALLBACK = "remit-dashboard", "http://localhost:8501/oauth2callback"


@pytest.fixture(scope="module")
def issuer() -> Iterator[str]:
    """Give one provider to the module."""
    process = subprocess.Popen(
        [sys.executable, "-m", "infra.demo.identity", "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process.stdout:
        try:
            yield process.stdout.readline().strip()
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0


def decoded(issuer: str, token: str) -> dict[str, Any]:
    """Verify a token with nothing but what the provider publishes."""
    metadata = httpx.get(f"{issuer}/.well-known/openid-configuration", trust_env=False).json()
    [key] = jwt.PyJWKSet.from_dict(httpx.get(metadata["jwks_uri"], trust_env=False).json()).keys
    return jwt.decode(token, key, algorithms=["RS256"], audience=CLIENT, issuer=metadata["issuer"])


@pytest.mark.parametrize("user", sorted(PEOPLE))
async def test_id_token_names_the_person_and_their_roles(issuer: str, user: str) -> None:
    claims = decoded(issuer, await id_token(issuer, user, CLIENT, CALLBACK))
    assert {name: claims[name] for name in ("name", "email", "roles")} == PEOPLE[user]
    assert (claims["iss"], claims["sub"], claims["aud"]) == (issuer, user, [CLIENT])
    assert claims["exp"] - claims["iat"] == 3600
    assert claims["nonce"]
    assert claims["auth_time"]


async def test_remit_accepts_the_token_and_sees_the_roles(issuer: str) -> None:
    token = await id_token(issuer, "dana", CLIENT, CALLBACK)
    async with httpx.AsyncClient(trust_env=False) as http:
        verifier = IdTokenVerifier([TrustedIssuer(issuer=issuer, client_ids=[CLIENT])], http=http)
        person = await verifier.verify(token, now=clock.now())
    assert (person.human.iss, person.human.sub) == (issuer, "dana")
    assert person.has("payments")
    assert person.has("security")


async def test_token_for_another_client_is_refused(issuer: str) -> None:
    token = await id_token(issuer, "dana", "somebody-else", CALLBACK)
    async with httpx.AsyncClient(trust_env=False) as http:
        verifier = IdTokenVerifier([TrustedIssuer(issuer=issuer, client_ids=[CLIENT])], http=http)
        with pytest.raises(IdentityError):
            await verifier.verify(token, now=clock.now())


async def test_unknown_person_cannot_log_in_by_script(issuer: str) -> None:
    with pytest.raises(LoginError):
        await id_token(issuer, "mallory", CLIENT, CALLBACK)


def test_discovery_answers_under_one_name_only(issuer: str) -> None:
    document = httpx.get(f"{issuer}/.well-known/openid-configuration", trust_env=False).json()
    assert document["issuer"] == issuer
    assert document["id_token_signing_alg_values_supported"] == ["RS256"]
    other = issuer.replace("localhost", "127.0.0.1")
    assert httpx.get(f"{other}/.well-known/openid-configuration", trust_env=False).status_code == 400


def test_provider_exposes_no_debugger(issuer: str) -> None:
    answer = httpx.get(f"{issuer}/console", trust_env=False)
    assert answer.status_code == 404
    assert "Werkzeug" not in answer.text

"""A local OpenID provider for demonstration and tests: people who may log in without a password.

Whoever reaches it can be anyone, so it listens on the loopback interface only. The protocol is real: discovery, JWKS, RS256,
authorization code. Its issuer is always `http://localhost:PORT`.
"""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import signal
import socket
import sys
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import httpx

if TYPE_CHECKING:
    import flask

PEOPLE: dict[str, dict[str, object]] = {
    "emma": {"name": "Emma Johnson", "email": "emma@acme.example", "roles": ["delegator"]},
    "dana": {"name": "Dana Reyes", "email": "dana@acme.example", "roles": ["payments", "security", "approver"]},
    "sam": {"name": "Sam Okafor", "email": "sam@acme.example", "roles": ["security", "payments"]},
    "otto": {"name": "Otto Brandt", "email": "otto@acme.example", "roles": ["admin", "operator"]},
}
"""Subject to claims. Emma delegates tasks, Dana and Sam approve (what is critical needs both), Otto operates."""
SCOPE = "openid profile email"


class LoginError(Exception):
    """The provider refused the scripted login; the message says at which step."""


def _application(lifetime: timedelta) -> flask.Flask:
    # Authlib refuses plain http unless told so through this variable; the provider never leaves the loopback interface.
    os.environ["AUTHLIB_INSECURE_TRANSPORT"] = "1"
    import flask  # noqa: PLC0415  (only the provider process pays for flask and authlib)
    import oidc_provider_mock  # noqa: PLC0415  (as above)

    people = [oidc_provider_mock.User(sub=sub, claims=claims) for sub, claims in PEOPLE.items()]
    app = oidc_provider_mock.app(user_claims=people, access_token_max_age=lifetime)
    # The package wraps itself in Werkzeug's debugger, which runs code for whoever knows its PIN.
    app.debug = False
    app.wsgi_app = flask.Flask.wsgi_app.__get__(app)
    # The issuer is made from the Host header: with one trusted host there is one issuer.
    app.config["TRUSTED_HOSTS"] = ["localhost"]
    return app


def main() -> None:
    """Serve until SIGTERM or SIGINT; the first line on standard output is the issuer."""
    parser = argparse.ArgumentParser(prog="python -m infra.demo.identity", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--token-max-age", type=int, default=3600, help="lifetime of ID tokens in seconds")
    options = parser.parse_args()
    from werkzeug.serving import make_server  # noqa: PLC0415  (as above)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    app = _application(timedelta(seconds=options.token_max_age))
    with socket.create_server(("127.0.0.1", options.port)) as listener:
        port = listener.getsockname()[1]
        server = make_server("127.0.0.1", port, app, threaded=True, fd=listener.fileno())
        sys.stdout.write(f"http://localhost:{port}\n")
        sys.stdout.flush()
        server.serve_forever()


async def id_token(issuer: str, user: str, client_id: str, redirect_uri: str) -> str:
    """Log a person in through the authorization code flow over HTTP and return the ID token.

    Raises:
        LoginError: the person is not one of `PEOPLE`, or the provider answered a step with something else than expected.

    """
    if user not in PEOPLE:
        raise LoginError(f"no person {user!r}; there are {', '.join(PEOPLE)}")
    state, nonce = secrets.token_urlsafe(16), secrets.token_urlsafe(16)
    asked = {
        "response_type": "code",
        "client_id": client_id,
        "redirect_uri": redirect_uri,
        "scope": SCOPE,
        "prompt": "login",
    }
    async with httpx.AsyncClient(trust_env=False, timeout=10) as http:
        metadata = (await http.get(f"{issuer}/.well-known/openid-configuration")).raise_for_status().json()
        form = await http.post(
            metadata["authorization_endpoint"], params={**asked, "state": state, "nonce": nonce}, data={"sub": user}
        )
        code = _code(form, state)
        answer = await http.post(
            metadata["token_endpoint"],
            data={"grant_type": "authorization_code", "code": code, "redirect_uri": redirect_uri},
            auth=(client_id, "local"),
        )
    token = answer.json().get("id_token") if answer.is_success else None
    if not isinstance(token, str):
        raise LoginError(f"token endpoint answered {answer.status_code} without an ID token")
    return token


def _code(response: httpx.Response, state: str) -> str:
    """Return the authorization code of the redirect that answers this very request."""
    found = parse_qs(urlsplit(response.headers.get("location", "")).query)
    if not response.is_redirect or found.get("state") != [state] or "code" not in found:
        raise LoginError(f"authorization endpoint answered {response.status_code} without a code")
    return found["code"][0]


if __name__ == "__main__":
    main()

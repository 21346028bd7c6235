"""Logging in from a terminal: authorization code with PKCE, answered on a loopback address (RFC 8252, RFC 7636)."""

from __future__ import annotations

import hashlib
import secrets
import webbrowser
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx

from remit.canonical import b64url
from remit.cli.output import LOGIN, CliError
from remit.cli.session import claims_of
from remit.clock import monotonic

if TYPE_CHECKING:
    from collections.abc import Callable

    from remit.cli.settings import CliSettings

CALLBACK = "/callback"
WAIT_S = 180.0
HTTP_TIMEOUT_S = 10.0
REQUEST_TIMEOUT_S = 2.0
"""One silent connection to the loopback port must not hold up the login behind it."""
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
PAGE = b"<!doctype html><title>Remit</title><p>You are logged in. You may close this window.</p>"


@dataclass(frozen=True, slots=True)
class _Attempt:
    """What one login must get back unchanged."""

    state: str
    nonce: str
    verifier: str

    @classmethod
    def fresh(cls) -> _Attempt:
        return cls(secrets.token_urlsafe(24), secrets.token_urlsafe(24), secrets.token_urlsafe(48))

    def challenge(self) -> str:
        return b64url(hashlib.sha256(self.verifier.encode()).digest())


class _Callback(HTTPServer):
    """Waits on a loopback port for the one redirect that carries our state."""

    timeout = 1.0

    def __init__(self, state: str, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.state = state
        self.answer: dict[str, str] | None = None

    @property
    def redirect_uri(self) -> str:
        return f"http://127.0.0.1:{self.server_port}{CALLBACK}"

    def wait(self, wait_s: float) -> dict[str, str]:
        deadline = monotonic() + wait_s
        while self.answer is None:
            if monotonic() > deadline:
                raise CliError("nobody logged in within three minutes; run remit login again", LOGIN)
            self.handle_request()
        return self.answer


class _Handler(BaseHTTPRequestHandler):
    server: _Callback
    timeout = REQUEST_TIMEOUT_S

    def do_GET(self) -> None:
        """Take the redirect; anything else on this port is answered with 404 and changes nothing."""
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        mine = secrets.compare_digest(query.get("state", "").encode(), self.server.state.encode())
        if parts.path != CALLBACK or not mine:
            self.send_error(404)
            return
        self.server.answer = query
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the base class names it so)
        """Say nothing: the request line carries the authorization code."""


def login(settings: CliSettings, *, port: int = 0, browser: bool = True, say: Callable[[str], None]) -> str:
    """Return an ID token for the person who logs in at the provider.

    Raises:
        CliError: the provider is not configured, unreachable, or answers something that is not this login.

    """
    if not settings.oidc_issuer:
        raise CliError("REMIT_OIDC_ISSUER is not set; name the OpenID issuer, such as https://idp.example")
    attempt = _Attempt.fresh()
    try:
        with httpx.Client(timeout=HTTP_TIMEOUT_S) as http, _Callback(attempt.state, port) as callback:
            provider = _discover(http, settings.oidc_issuer)
            url = _authorization_url(provider, settings, attempt, callback.redirect_uri)
            say(f"Log in at:\n{url}")
            if browser:
                webbrowser.open(url)
            code = _code(callback.wait(WAIT_S))
            token = _exchange(http, provider, settings, attempt, (code, callback.redirect_uri))
    except (httpx.HTTPError, OSError) as error:
        raise CliError(f"logging in at {settings.oidc_issuer} failed ({type(error).__name__})", LOGIN) from None
    _check(token, settings, attempt)
    return token


def _discover(http: httpx.Client, issuer: str) -> dict[str, Any]:
    response = http.get(f"{issuer.rstrip('/')}/.well-known/openid-configuration")
    document = response.json() if response.is_success else {}
    if document.get("issuer") != issuer:
        raise CliError(f"{issuer} publishes no discovery document of that name; compare REMIT_OIDC_ISSUER", LOGIN)
    for name in ("authorization_endpoint", "token_endpoint"):
        parts = urlsplit(str(document.get(name, "")))
        if parts.scheme != "https" and parts.hostname not in LOOPBACK:
            raise CliError(f"the {name} of {issuer} is not https", LOGIN)
    return document


def _authorization_url(provider: dict[str, Any], settings: CliSettings, attempt: _Attempt, redirect_uri: str) -> str:
    query = {
        "response_type": "code",
        "client_id": settings.oidc_client_id,
        "redirect_uri": redirect_uri,
        "scope": settings.oidc_scope,
        "state": attempt.state,
        "nonce": attempt.nonce,
        "code_challenge": attempt.challenge(),
        "code_challenge_method": "S256",
    }
    return f"{provider['authorization_endpoint']}?{urlencode(query)}"


def _code(answer: dict[str, str]) -> str:
    if "code" not in answer:
        raise CliError(f"the provider refused the login ({answer.get('error', 'no code')[:60]})", LOGIN)
    return answer["code"]


def _exchange(
    http: httpx.Client, provider: dict[str, Any], settings: CliSettings, attempt: _Attempt, code: tuple[str, str]
) -> str:
    form = {
        "grant_type": "authorization_code",
        "code": code[0],
        "redirect_uri": code[1],
        "client_id": settings.oidc_client_id,
        "code_verifier": attempt.verifier,
    }
    secret = settings.oidc_client_secret
    if secret is not None:
        form["client_secret"] = secret.get_secret_value()
    response = http.post(provider["token_endpoint"], data=form)
    token = response.json().get("id_token") if response.is_success else None
    if not isinstance(token, str):
        raise CliError(f"the token endpoint answered {response.status_code} without an ID token", LOGIN)
    return token


def _check(token: str, settings: CliSettings, attempt: _Attempt) -> None:
    """Refuse a token that is not the answer to this login; its signature is approval's to verify."""
    claims = claims_of(token)
    audience = claims.get("aud")
    if claims.get("iss") != settings.oidc_issuer or settings.oidc_client_id not in (audience, *_listed(audience)):
        raise CliError("the provider answered with a token for somebody else", LOGIN)
    if claims.get("nonce") != attempt.nonce:
        raise CliError("the provider answered another login than this one", LOGIN)


def _listed(audience: object) -> list[object]:
    return audience if isinstance(audience, list) else []

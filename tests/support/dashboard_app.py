"""The dashboard's real application inside the test's process, without its servers, and a provider it can sign people in with."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import httpx
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from streamlit import config
from streamlit.runtime.runtime import Runtime
from streamlit.runtime.secrets import secrets_singleton

from dashboard.asgi import build
from dashboard.settings import DashboardSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from starlette.requests import Request
    from streamlit.starlette import App

ORIGIN = "http://localhost:8501"
SECRETS = ("hunter2-of-the-database", "client-secret-of-the-tests", "a cookie secret of the tests, forty characters")
"""What must stand in no answer: passwords of database and client, and the key of the session cookies."""


def settings(directory: Path, issuer: str, **more: Any) -> DashboardSettings:
    """Return the settings of a dashboard whose database and broker are away."""
    seed = directory / "nats.nk"
    seed.write_text("SUNOTASEED")
    values: dict[str, Any] = {
        "database_url": f"postgresql://remit_dashboard:{SECRETS[0]}@127.0.0.1:9/remit",
        "nats_url": "nats://127.0.0.1:9",
        "nkey_seed_file": seed,
        "oidc_issuer": issuer,
        "oidc_client_secret": SECRETS[1],
        "cookie_secret": SECRETS[2],
    }
    return DashboardSettings.model_validate(values | more)


@contextmanager
def dashboard_app(directory: Path, issuer: str) -> Generator[App]:
    """Build the application, and leave the process as it was: Streamlit keeps its runtime, options and secrets in globals."""
    options = {name: config.get_option(name) for name in ("server.allowedHosts", "server.corsAllowedOrigins")}
    before = Runtime._instance
    Runtime._instance = None
    app = build(settings(directory, issuer))
    try:
        yield app
    finally:
        if app._runtime is not None:
            app._runtime.stop()
        Runtime._instance = before
        secrets_singleton._reset()
        secrets_singleton._programmatic_secrets = None
        for name, value in options.items():
            config.set_option(name, value)


@dataclass
class Provider:
    """An OpenID provider over HTTP that hands out whatever token it was told to, for the nonce of the running login."""

    keys: list[dict[str, Any]]
    token: Callable[[str, str], str] = field(default=lambda _issuer, _nonce: "")
    issuer: str = ""
    nonce: str = ""

    def app(self) -> Starlette:
        """Return discovery, key set and token endpoint."""

        async def discovery(_: Request) -> JSONResponse:
            return JSONResponse(
                {
                    "issuer": self.issuer,
                    "jwks_uri": f"{self.issuer}/keys",
                    "authorization_endpoint": f"{self.issuer}/authorize",
                    "token_endpoint": f"{self.issuer}/token",
                    "id_token_signing_alg_values_supported": ["RS256", "ES256"],
                }
            )

        async def keys(_: Request) -> JSONResponse:
            return JSONResponse({"keys": self.keys})

        async def token(_: Request) -> JSONResponse:
            found = self.token(self.issuer, self.nonce)
            return JSONResponse({"access_token": "a", "token_type": "Bearer", "id_token": found})

        return Starlette(
            routes=[
                Route("/.well-known/openid-configuration", discovery),
                Route("/keys", keys),
                Route("/token", token, methods=["POST"]),
            ]
        )

    async def sign_in(self, app: App) -> dict[str, str]:
        """Go through a login at the dashboard and return the cookies that it leaves in the browser."""
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url=ORIGIN, follow_redirects=False) as browser:
            await browser.get("/healthz")  # The first request is what gives Streamlit its secrets.
            begun = await browser.get("/auth/login", params={"provider": provider_token()})
            asked = parse_qs(urlsplit(begun.headers["location"]).query)
            self.nonce = asked["nonce"][0]
            await browser.get("/oauth2callback", params={"code": "c", "state": asked["state"][0]})
            return dict(browser.cookies)


def provider_token() -> str:
    """Return what Streamlit's login button sends along."""
    from streamlit.auth_util import encode_provider_token  # noqa: PLC0415  (private to Streamlit; reads its secrets)

    return encode_provider_token("default")

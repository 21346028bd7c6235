"""Start-up: settings, options, headers, the port; each refusal names its remedy and no secret."""

from __future__ import annotations

import inspect
import socket
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect
from streamlit import config

from dashboard import commands, options
from dashboard.live import MAX_CONNECTIONS, LiveSignal, LiveSocket
from dashboard.queries import Queries
from dashboard.security import SecurityHeaders, content_policy, inline_script_hashes
from dashboard.server import listen
from dashboard.settings import DashboardSettings, load
from remit.errors import ConfigurationError
from tests.unit.dashboard.support import MemoryQueries, a_viewer, an_action

if TYPE_CHECKING:
    from pathlib import Path


def settings(tmp_path: Path, **changes: Any) -> DashboardSettings:
    seed = tmp_path / "nats.nk"
    seed.write_text("SUNOTASEED")
    values: dict[str, Any] = {
        "database_url": "postgresql://remit_dashboard:hunter2@localhost/remit",
        "nkey_seed_file": seed,
        "oidc_issuer": "http://localhost:9000",
        "oidc_client_secret": "client-secret",
        "cookie_secret": "c" * 40,
    }
    return DashboardSettings.model_validate({**values, **changes})


def test_settings_keep_secrets_out_of_their_repr(tmp_path: Path) -> None:
    shown = repr(settings(tmp_path))
    assert not any(secret in shown for secret in ("hunter2", "client-secret", "c" * 40))


def test_a_missing_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "REMIT_DASHBOARD_DATABASE_URL", "REMIT_DASHBOARD_OIDC_ISSUER"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigurationError, match="REMIT_DASHBOARD_OIDC_ISSUER"):
        load()


@pytest.mark.parametrize("url", ["http://remit.example", "https://remit.example/path", "ftp://x", "remit.example"])
def test_a_public_url_is_https_and_bare(tmp_path: Path, url: str) -> None:
    with pytest.raises(ValueError, match="public_url"):
        settings(tmp_path, public_url=url)


def test_a_short_cookie_secret_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="COOKIE_SECRET"):
        _ = settings(tmp_path, cookie_secret="short").cookie_key


def test_options_are_applied_over_whatever_was_there(tmp_path: Path) -> None:
    config.set_option("server.enableAgentApi", True)
    options.apply(settings(tmp_path))
    options.check()
    assert config.get_option("server.enableAgentApi") is False
    assert config.get_option("server.allowedHosts") == ["localhost"]
    assert config.get_option("secrets.files") == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("server.enableAgentApi", True),
        ("server.trustedUserHeaders", {"X-User": "email"}),
        ("server.allowedHosts", []),
        ("server.enableXsrfProtection", False),
    ],
)
def test_an_option_that_lets_someone_be_another_stops_the_start(tmp_path: Path, name: str, value: object) -> None:
    options.apply(settings(tmp_path))
    config.set_option(name, value)
    with pytest.raises(ConfigurationError, match=name):
        options.check()
    options.apply(settings(tmp_path))


def test_sign_in_asks_for_the_id_token_and_a_fresh_login(tmp_path: Path) -> None:
    auth = options.sign_in_secrets(settings(tmp_path))["auth"]
    assert auth["expose_tokens"] == "id"
    assert auth["client_kwargs"] == {"scope": "openid profile email", "prompt": "login"}
    assert auth["redirect_uri"] == "http://localhost:8501/oauth2callback"


def test_a_taken_port_is_an_error_with_a_remedy() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"port {port} .* is in use.*REMIT_DASHBOARD_PORT"):
            listen("127.0.0.1", port)


def test_every_response_carries_the_policy() -> None:
    policy = content_policy(inline_script_hashes())
    app = Starlette(routes=[Route("/", lambda _: PlainTextResponse("x"))])
    app.add_middleware(SecurityHeaders, policy, https=True)
    for path in ("/", "/missing"):
        headers = TestClient(app).get(path).headers
        assert headers["content-security-policy"] == policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["strict-transport-security"]
    assert "sha256-" in policy
    assert "frame-ancestors 'none'" in policy
    assert "script-src 'self' 'unsafe-inline'" not in policy


def test_one_person_and_one_card_make_one_key() -> None:
    row, token = an_action(), SecretStr("t")
    keys = {
        commands.approve(row, a_viewer(), token).idempotency_key,
        commands.approve(row, a_viewer(name="Other name"), token).idempotency_key,
    }
    assert len(keys) == 1
    others = {
        commands.approve(row, a_viewer(sub="emma"), token).idempotency_key,
        commands.approve(an_action(round=2), a_viewer(), token).idempotency_key,
        commands.approve(an_action(args={"amount": 1}), a_viewer(), token).idempotency_key,
        commands.deny(row, a_viewer(), token, None).idempotency_key,
    }
    assert len(others | keys) == 5


def test_the_fake_read_model_has_the_methods_of_the_real_one() -> None:
    def reads(kind: type) -> dict[str, list[str]]:
        public = inspect.getmembers(kind, inspect.isfunction)
        return {name: list(inspect.signature(f).parameters) for name, f in public if not name.startswith("_")}

    assert reads(MemoryQueries) == {name: found for name, found in reads(Queries).items() if name != "close"}


def test_a_broker_that_is_away_means_that_nothing_was_done(tmp_path: Path) -> None:
    sender = commands.BusSender(settings(tmp_path))
    reply = sender.send(commands.approve(an_action(), a_viewer(), SecretStr("t")))
    assert reply.status == "unavailable"
    assert "nothing was done" in reply.detail


@pytest.mark.parametrize("origin", ["http://evil.example", "http://localhost:8502", "null", ""])
def test_the_live_signal_is_for_our_own_page_only(tmp_path: Path, origin: str) -> None:
    socket_of = LiveSocket(LiveSignal(settings(tmp_path).sqlalchemy_url), "http://localhost:8501")
    client = TestClient(Starlette(routes=[WebSocketRoute("/api/ws", socket_of.serve)]))
    with pytest.raises(WebSocketDisconnect) as refused, client.websocket_connect("/api/ws", headers={"origin": origin}):
        pass
    assert refused.value.code == 1008


def test_the_live_signal_has_a_bounded_number_of_listeners(tmp_path: Path) -> None:
    socket_of = LiveSocket(LiveSignal(settings(tmp_path).sqlalchemy_url), "http://localhost:8501")
    socket_of._open = MAX_CONNECTIONS
    client = TestClient(Starlette(routes=[WebSocketRoute("/api/ws", socket_of.serve)]))
    headers = {"origin": "http://localhost:8501"}
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/api/ws", headers=headers):
        pass


def test_the_client_secret_may_lie_in_a_file_and_must_lie_somewhere(tmp_path: Path) -> None:
    file = tmp_path / "oidc-client.secret"
    file.write_text("from-a-file\n")
    assert settings(tmp_path).client_secret == "client-secret"
    assert settings(tmp_path, oidc_client_secret=None, oidc_client_secret_file=file).client_secret == "from-a-file"
    with pytest.raises(ConfigurationError, match="OIDC_CLIENT_SECRET_FILE"):
        _ = settings(tmp_path, oidc_client_secret=None).client_secret


def test_the_bus_is_plain_or_under_mutual_tls(tmp_path: Path) -> None:
    assert settings(tmp_path).tls() is None
    with pytest.raises(ConfigurationError, match="REMIT_TLS_CERT_FILE"):
        settings(tmp_path, REMIT_TLS_CA_FILE=__file__).tls()

"""Every route of every HTTP surface against every credential that is not the right one; the tables come from the routers."""

from __future__ import annotations

import re
import socket
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from starlette.routing import Route

from dashboard.settings import DashboardSettings
from infra.demo.bank.app import build as build_bank
from infra.demo.bank.effects import EffectLog
from infra.demo.bank.settings import BankSettings
from remit.cli.login import _Callback
from remit.runtime import http as listener
from tests.security.knocking import CONTROL_SECRET, CREDENTIALS, EXECUTOR_SECRET, METHODS, asked, raw_status, said
from tests.security.surfaces import (
    ANY,
    BANK,
    LISTENERS,
    OF_SERVICE,
    ON_EVERY_SERVICE,
    Guarded,
    Public,
    Table,
)
from tests.support.http_server import serving
from tests.support.services import build_service, settings_class

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from starlette.applications import Starlette

    from remit.runtime.settings import ServiceSettings

ROOT = Path(__file__).parents[2]
CANARY = "canary-password-of-the-database"


def paths(table: Table) -> list[str]:
    return sorted(table)


def routes_of(app: Starlette) -> dict[str, frozenset[str]]:
    found: dict[str, frozenset[str]] = {}
    for route in app.routes:
        assert isinstance(route, Route), f"{route} is no plain route; classify it in tests/security/surfaces.py"
        assert route.path not in found
        found[route.path] = frozenset(route.methods) if route.methods else ANY
    return found


def declared(table: Table) -> dict[str, frozenset[str]]:
    return {path: methods for path, (methods, _) in table.items()}


# Services


@pytest.fixture(scope="module")
def services(keys: Path) -> dict[str, Any]:
    url = f"postgresql://remit:{CANARY}@127.0.0.1:9/remit"
    return {name: build_service(name, keys, database_url=url, nats_url="nats://127.0.0.1:9") for name in OF_SERVICE}


def app_of(service: Any) -> Starlette:
    return listener.build_app(
        registry=service.telemetry.registry, unready=service.probes.unready, routes=service.http_routes
    )


@pytest.mark.parametrize("name", OF_SERVICE)
def test_every_route_of_a_service_is_classified(services: dict[str, Any], name: str) -> None:
    assert routes_of(app_of(services[name])) == declared(ON_EVERY_SERVICE | OF_SERVICE[name])


def test_every_service_is_here() -> None:
    folders = {path.parent.name for path in (ROOT / "services").glob("*/app.py")}
    assert folders == set(OF_SERVICE)


@pytest.mark.parametrize("name", OF_SERVICE)
async def test_public_route_answers_everybody_alike_and_takes_nothing(services: dict[str, Any], name: str) -> None:
    transport = httpx.ASGITransport(app_of(services[name]))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        for path, (methods, kind) in (ON_EVERY_SERVICE | OF_SERVICE[name]).items():
            assert isinstance(kind, Public)
            assert kind.reason
            for method in METHODS:
                answers = {said(await asked(client, method, path, values)) for values in CREDENTIALS.values()}
                assert len(answers) == 1, (method, path)
                status = answers.pop()[0]
                assert status in ({200, 503} if method in methods else {405}), (method, path, status)


@pytest.mark.parametrize("name", OF_SERVICE)
async def test_answers_of_a_service_hold_no_secret(services: dict[str, Any], keys: Path, name: str) -> None:
    service = services[name]
    secrets = {CANARY, *secrets_in(keys)}
    service.telemetry.alarms.labels(kind="answer_refused").inc()
    transport = httpx.ASGITransport(app_of(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        for path in paths(ON_EVERY_SERVICE | OF_SERVICE[name]):
            text = (await client.get(path)).text
            leaked = [secret[:4] for secret in secrets if secret in text]
            assert (path, leaked) == (path, [])
            assert not re.search(r"eyJ[A-Za-z0-9_-]{8}|PRIVATE KEY|postgresql://|nats://|SU[A-Z2-7]{56}", text)


def secrets_in(keys: Path) -> Iterator[str]:
    """Yield every line and every JSON text of the private files that is long enough to be a secret."""
    for path in keys.rglob("*"):
        if path.is_file() and path.name not in {"trust.json", "environment.json"} and not path.name.endswith(".pub"):
            for text in re.findall(r"[A-Za-z0-9+/=_-]{40,}", path.read_text(errors="replace").replace("\\n", "\n")):
                if not is_published(text, keys):
                    yield text


def test_there_are_secrets_to_look_for(keys: Path) -> None:
    assert len(set(secrets_in(keys))) > 20


def is_published(text: str, keys: Path) -> bool:
    return any(text in path.read_text(errors="replace") for path in keys.glob("*.json"))


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/openapi.json", "/metrics/", "//metrics", "/debug", "/.env", "/livez/../x"]
)
async def test_there_is_nothing_else_on_a_service(services: dict[str, Any], path: str) -> None:
    for service in services.values():
        transport = httpx.ASGITransport(app_of(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            assert (await client.get(path)).status_code in {404, 307}


# The example tool


@pytest.fixture(scope="module")
async def bank(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Starlette, httpx.AsyncClient]]:
    effects = tmp_path_factory.mktemp("bank") / "effects.jsonl"
    settings = BankSettings.model_validate(
        {"token": EXECUTOR_SECRET, "control_token": CONTROL_SECRET, "effects": effects}
    )
    with closing(EffectLog(effects)) as log:
        app = build_bank(settings, log, "127.0.0.1")
        async with (
            serving(app) as port,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client,
        ):
            yield app, client
            assert effects.read_text() == "", "a refused request had an effect"


Bank = tuple[Any, httpx.AsyncClient]


def test_every_route_of_the_tool_is_classified(bank: Bank) -> None:
    assert routes_of(bank[0]) == declared(BANK)


GUARDED = [path for path, (_, kind) in BANK.items() if isinstance(kind, Guarded)]


@pytest.mark.parametrize("path", GUARDED)
@pytest.mark.parametrize("credential", CREDENTIALS)
async def test_tool_refuses_every_credential_but_its_own(bank: Bank, path: str, credential: str) -> None:
    for method in (each for each in METHODS if each != "CONNECT"):
        refusal = await asked(bank[1], method, path, CREDENTIALS[credential])
        assert refusal.status_code == 401 or (credential == "huge" and refusal.status_code in {400, 431})
        if refusal.status_code == 401:
            assert refusal.headers["www-authenticate"] == 'Bearer realm="bank"'
        assert not any(secret in refusal.text for secret in (EXECUTOR_SECRET, CONTROL_SECRET, "eyJ"))


async def test_each_secret_opens_its_own_door_only(bank: Bank) -> None:
    for path in GUARDED:
        own, other = (EXECUTOR_SECRET, CONTROL_SECRET) if path == "/mcp" else (CONTROL_SECRET, EXECUTOR_SECRET)
        for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS"):
            assert (await asked(bank[1], method, path, [f"Bearer {other}"])).status_code == 401
            assert (await asked(bank[1], method, path, [f"Bearer {other}", f"Bearer {own}"])).status_code == 401
        in_query = await bank[1].get(path, params={"access_token": own, "authorization": f"Bearer {own}"})
        assert in_query.status_code == 401


@pytest.mark.parametrize("method", METHODS[:-3])
async def test_method_that_is_not_declared_does_nothing_even_with_the_secret(bank: Bank, method: str) -> None:
    for path, (methods, kind) in BANK.items():
        secret = EXECUTOR_SECRET if path == "/mcp" else CONTROL_SECRET
        values = [f"Bearer {secret}"] if isinstance(kind, Guarded) else []
        if methods != ANY and method not in methods:
            assert (await asked(bank[1], method, path, values)).status_code == 405
    if method not in {"POST", "GET"}:
        assert (await asked(bank[1], method, "/mcp", [f"Bearer {EXECUTOR_SECRET}"])).status_code in {405, 406}


DETOURS = [
    "/control/../mcp", "//mcp", "/mcp//", "/MCP", "/Control/effects", "/healthz/../control/effects", "/healthz/", "/healthzz",
    "/healthz%2f..%2fmcp", "/healthz;/control/effects", "/", "/unknown", "/control", "/control/", "/%6dcp", "/control%2Feffects",
    "/mcp?x=/healthz",
]  # fmt: skip


@pytest.mark.parametrize("path", DETOURS)
async def test_no_spelling_of_a_path_leads_around_the_guard(bank: Bank, path: str) -> None:
    port = bank[1].base_url.port or 0
    assert (await raw_status(port, path)) in {401, 404}
    assert (await raw_status(port, path, CONTROL_SECRET)) != 200 or "effects" in path


@pytest.mark.parametrize(
    "headers", [{"host": "evil.example"}, {"origin": "http://evil.example"}, {"origin": "null"}], ids=str
)
async def test_page_of_another_origin_reaches_no_tool_even_with_the_secret(bank: Bank, headers: dict[str, str]) -> None:
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
    accept = {"authorization": f"Bearer {EXECUTOR_SECRET}", "accept": "application/json, text/event-stream"}
    assert (await bank[1].post("/mcp", json=call, headers=accept | headers)).status_code in {403, 421}


# Listeners


@pytest.mark.parametrize("name", OF_SERVICE)
def test_service_listens_on_loopback_unless_told_otherwise(
    keys: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv("REMIT_HTTP_HOST", raising=False)
    settings: ServiceSettings = build_service(name, keys).settings
    assert settings_class(name).model_fields["http_host"].default == settings.http_host == "127.0.0.1"
    with closing(listener.bind(settings.http_host, settings.http_port)) as bound:
        assert bound.getsockname()[0] == "127.0.0.1"
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.2", bound.getsockname()[1]), timeout=1)


def test_dashboard_and_login_listen_on_loopback() -> None:
    assert DashboardSettings.model_fields["host"].default in {"127.0.0.1", "localhost"}
    with closing(_Callback("state", 0).socket) as bound:
        assert bound.getsockname()[0] == "127.0.0.1"


def test_every_module_that_listens_for_http_is_known() -> None:
    pattern = re.compile(
        r"uvicorn\.(Config|run|Server)\(|\bStarlette\(|HTTPServer\)|make_server\(|streamable_http_app\(|return App\(|FastAPI\("
    )
    found = {
        str(path.relative_to(ROOT))
        for folder in ("shared", "services", "dashboard", "infra")
        for path in (ROOT / folder).rglob("*.py")
        if pattern.search(path.read_text())
    }
    assert found == set(LISTENERS)


def test_login_in_the_terminal_takes_only_its_own_redirect() -> None:
    with _Callback("state-of-this-login", 0) as callback:
        assert getattr(callback.RequestHandlerClass, "timeout", None) == 2.0
        for target in (
            "/",
            "/callback",
            "/callback?code=x",
            "/callback?code=x&state=other",
            "/other?state=state-of-this-login",
        ):
            with socket.create_connection(("127.0.0.1", callback.server_port), timeout=5) as client:
                client.sendall(f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
                callback.handle_request()
                assert b" 404 " in client.recv(4096)
            assert callback.answer is None

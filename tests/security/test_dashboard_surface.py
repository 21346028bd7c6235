"""Every route of the dashboard, Streamlit's own included: classified, the same for everybody, and for our own page only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest
from starlette.routing import Mount, Route, WebSocketRoute

from tests.security.knocking import CREDENTIALS, METHODS, a_token, asked, knocked
from tests.security.surfaces import DASHBOARD, WEBSOCKET, Guarded, Public
from tests.support.dashboard_app import ORIGIN, SECRETS, dashboard_app

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from streamlit.starlette import App


@pytest.fixture(scope="module")
async def board(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[App, httpx.AsyncClient]]:
    with dashboard_app(tmp_path_factory.mktemp("dashboard"), "http://localhost:9") as app:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url=ORIGIN, follow_redirects=False) as client:
            await client.get("/healthz")
            yield app, client


Board = tuple[Any, httpx.AsyncClient]
FILLED = {"{file_id:path}": "x", "{session_id}": "s", "{file_id}": "f", "{path:path}": "x/y.js"}
BOARD_PATHS = sorted({path for path, methods, _ in DASHBOARD if path and methods != WEBSOCKET})


def filled(path: str) -> str:
    for place, value in FILLED.items():
        path = path.replace(place, value)
    return path


def test_every_route_of_the_dashboard_is_classified(board: Board) -> None:
    found: list[tuple[str, frozenset[str]]] = []
    for route in board[0]._starlette_app.routes:
        assert isinstance(route, Route | WebSocketRoute | Mount)
        methods = WEBSOCKET if isinstance(route, WebSocketRoute) else frozenset(getattr(route, "methods", None) or ())
        found.append((route.path, methods))
    assert sorted(found, key=str) == sorted(((path, methods) for path, methods, _ in DASHBOARD), key=str)


HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
FORGED = [{}, {"_streamlit_user": "e30="}, {"_streamlit_user": a_token(), "_streamlit_user_tokens": a_token()}]
REFUSALS = {302, 400, 403, 404, 405, 503}


@pytest.mark.parametrize("path", [*BOARD_PATHS, "/", "/approvals", "/static/x.js", "/..%2fetc/passwd"])
async def test_dashboard_answers_everybody_alike_and_safely(board: Board, path: str) -> None:
    for method in (each for each in METHODS if each != "CONNECT"):
        answers: set[tuple[int, str]] = set()
        for values in CREDENTIALS.values():
            for cookies in FORGED if not values else FORGED[:1]:
                board[1].cookies = httpx.Cookies(cookies)
                found = await asked(board[1], method, filled(path), values)
                answers.add((found.status_code, found.headers.get("location", "")))
                assert HEADERS.items() <= found.headers.items(), (method, path)
                policy = found.headers["content-security-policy"]
                assert "frame-ancestors 'none'" in policy
                assert "default-src 'self'" in policy
                assert not any(secret in found.text for secret in (*SECRETS, "eyJ"))
                assert found.headers.get("access-control-allow-origin", ORIGIN) == ORIGIN
        assert len(answers) == 1, (method, path, answers)
        status, location = answers.pop()
        assert status in {200, 204} | REFUSALS
        assert location in {"", "/"}


@pytest.mark.parametrize(
    ("path", "methods", "kind"), [row for row in DASHBOARD if row[1] - {"OPTIONS"} and row[1] != WEBSOCKET]
)
async def test_method_that_the_dashboard_does_not_declare_is_refused(
    board: Board, path: str, methods: frozenset[str], kind: Public | Guarded
) -> None:
    allowed = set().union(*(each for other, each, _ in DASHBOARD if other == path))
    for method in ("POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND"):
        status = (await board[1].request(method, filled(path))).status_code
        if method not in allowed:
            assert status == 405
        elif isinstance(kind, Guarded) or "agent" in path:
            assert status in {400, 403, 405}
    assert methods


ORIGINS: list[tuple[dict[str, str], bool]] = [
    ({"host": "localhost:8501", "origin": ORIGIN}, True),
    ({"host": "localhost:8501"}, False),
    ({"host": "localhost:8501", "origin": "http://localhost:9999"}, False),
    ({"host": "localhost:8501", "origin": "https://localhost:8501"}, False),
    ({"host": "localhost:8501", "origin": "http://127.0.0.1:8501"}, False),
    ({"host": "localhost:8501", "origin": "http://localhost"}, False),
    ({"host": "localhost:8501", "origin": f"{ORIGIN}.evil.example"}, False),
    ({"host": "localhost:8501", "origin": "http://evil.example"}, False),
    ({"host": "localhost:8501", "origin": "https://evil.streamlit.app"}, False),
    ({"host": "localhost:8501", "origin": "null"}, False),
    ({"host": "evil.example", "origin": "http://evil.example"}, False),
    ({"host": "evil.example"}, False),
]


@pytest.mark.parametrize("path", sorted(path for path, methods, _ in DASHBOARD if methods == WEBSOCKET))
@pytest.mark.parametrize(("headers", "is_ours"), ORIGINS, ids=str)
async def test_websocket_is_for_our_own_page_only(
    board: Board, path: str, headers: dict[str, str], is_ours: bool
) -> None:
    assert await knocked(board[0], path, headers) == ("websocket.accept" if is_ours else "websocket.close")


async def test_rebound_name_reaches_no_session(board: Board) -> None:
    headers = {"host": "evil.example", "origin": ORIGIN}
    assert await knocked(board[0], "/_stcore/stream", headers) == "websocket.close"


async def test_foreign_origin_makes_the_dashboard_ask_nobody(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    asked_for: list[str] = []
    monkeypatch.setattr("streamlit.net_util._make_blocking_http_get", lambda url, **_: asked_for.append(url))
    for headers, _ in ORIGINS:
        await knocked(board[0], "/_stcore/stream", headers)
    assert asked_for == []


@pytest.mark.usefixtures("board")
def test_session_cookie_of_another_key_or_origin_signs_nobody_in() -> None:
    from streamlit.web.server.starlette import starlette_app_utils as cookies  # noqa: PLC0415  (private to Streamlit)
    from streamlit.web.server.starlette import starlette_websocket as stream  # noqa: PLC0415  (the same)

    def of(secret: str, origin: str = ORIGIN, name: str = "_streamlit_user") -> bytes:
        value = f'{{"iss":"http://localhost:9","sub":"dana","origin":"{origin}","is_logged_in":true}}'
        return cookies.create_signed_value(secret, name, value)

    assert stream._parse_user_cookie_signed(of(SECRETS[2]), ORIGIN)["sub"] == "dana"
    for forged in (
        of("another secret of forty characters or so"),
        of(SECRETS[2], "http://evil.example"),
        of(SECRETS[2], name="other"),
        b"{}",
    ):
        assert not stream._parse_user_cookie_signed(forged, ORIGIN).get("is_logged_in")

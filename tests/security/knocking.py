"""How one knocks at a door over HTTP: every method, every wrong credential, and spellings that no library sends."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from tests.support.forging import ACTION_CLAIMS, AT, STRANGER, TRUSTED, Key, changed
from tests.support.forging import BANK as AUDIENCE

if TYPE_CHECKING:
    import httpx
    from starlette.types import ASGIApp

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND")
EXECUTOR_SECRET, CONTROL_SECRET = "executor-secret-for-tests", "control-secret-for-tests"


def a_token(key: Key = TRUSTED["ES256"], **changes: Any) -> str:
    return key.sign({"alg": "ES256", "typ": "at+jwt", "kid": key.kid}, changed(ACTION_CLAIMS, **changes))


CREDENTIALS: dict[str, list[str]] = {
    "none": [],
    "empty": [""],
    "no scheme": [EXECUTOR_SECRET],
    "garbage": ["Bearer garbage"],
    "two words": [f"Bearer x {EXECUTOR_SECRET}"],
    "basic": ["Basic ZXhlY3V0b3I6eA=="],
    "beyond ASCII": ["Bearer \u00e9\u00fc"],
    "huge": [f"Bearer {'A' * 20_000}"],
    "prefix of the secret": [f"Bearer {EXECUTOR_SECRET[:-1]}"],
    "secret and more": [f"Bearer {EXECUTOR_SECRET}x"],
    "wrong audience": [f"Bearer {a_token(aud='https://remit.example/tools/crm')}"],
    "right audience, not its credential": [f"Bearer {a_token(aud=AUDIENCE)}"],
    "expired": [f"Bearer {a_token(iat=AT - 600, exp=AT - 540)}"],
    "wrong key": [f"Bearer {a_token(STRANGER['ES256'])}"],
    "low scope": [f"Bearer {a_token(scope='proposals:create tools:list')}"],
    "proof of possession": [f"DPoP {a_token()}"],
}


async def asked(client: httpx.AsyncClient, method: str, path: str, values: list[str]) -> httpx.Response:
    headers = [(b"authorization", value.encode("latin-1")) for value in values]
    return await client.request(method, path, headers=headers)


def said(response: httpx.Response) -> tuple[int, str, str]:
    return response.status_code, response.headers.get("content-type", ""), response.text


async def raw_status(port: int, target: str, secret: str | None = None) -> int:
    """Ask for a target exactly as it is spelled, which no client library would."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    line = f"Authorization: Bearer {secret}\r\n" if secret else ""
    writer.write(f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n{line}Connection: close\r\n\r\n".encode())
    status = (await reader.read()).split(b" ", 2)[1]
    writer.close()
    return int(status)


async def knocked(app: ASGIApp, path: str, headers: dict[str, str]) -> str:
    """Return the first message a websocket gets; it leaves as soon as it was heard."""
    answers: asyncio.Queue[str] = asyncio.Queue()
    arrived = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if not arrived.is_set():
            arrived.set()
            return {"type": "websocket.connect"}
        while answers.empty():
            await asyncio.sleep(0.001)
        return {"type": "websocket.disconnect", "code": 1001}

    async def send(message: Any) -> None:
        answers.put_nowait(message["type"])

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {
        "type": "websocket", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "ws", "path": path,
        "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": raw,
        "client": ("127.0.0.1", 1), "server": ("localhost", 8501),
        "subprotocols": [], "extensions": {},
    }  # fmt: skip
    await app(scope, receive, send)
    return answers.get_nowait()

"""Headers on every response, so that forged text fetches nothing and nobody frames the page; websockets for our own page only.

Source: design, dashboard section 4 (CSP, measured without console errors).
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit
from starlette.datastructures import Headers, MutableHeaders
from starlette.websockets import WebSocketClose

from remit.errors import ConfigurationError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

INLINE_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def inline_script_hashes() -> list[str]:
    """Return the CSP hashes of the inline scripts of Streamlit's own page.

    Raises:
        ConfigurationError: the page is not where this version keeps it.

    """
    index = Path(streamlit.__file__).parent / "static" / "index.html"
    if not index.is_file():
        raise ConfigurationError(f"{index} is missing; reinstall streamlit")
    found = INLINE_SCRIPT.findall(index.read_text(encoding="utf-8"))
    return [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in found]


def content_policy(hashes: list[str]) -> str:
    """Return the Content-Security-Policy; Streamlit compiles components and charts at run time, hence the evals."""
    return "; ".join(
        (
            "default-src 'self'",
            f"script-src 'self' {' '.join(hashes)} 'unsafe-eval' 'wasm-unsafe-eval' blob:",
            "style-src 'self' 'unsafe-inline'",
            "img-src 'self' data: blob:",
            "font-src 'self' data:",
            "connect-src 'self'",
            "worker-src 'self' blob:",
            "frame-ancestors 'none'",
            "base-uri 'self'",
            "form-action 'self'",
            "object-src 'none'",
        )
    )


class OwnPageOnly:
    """ASGI middleware that closes every websocket whose `Origin` is not exactly ours, a missing one included.

    Browsers send our cookies along from any port of our host. Streamlit compares host names without scheme and port, and in doubt
    asks the internet for this machine's address while everybody waits.
    """

    def __init__(self, app: ASGIApp, origin: str) -> None:
        self._app, self._origin = app, origin

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what is no websocket, or ours."""
        if scope["type"] == "websocket" and Headers(scope=scope).getlist("origin") != [self._origin]:
            await WebSocketClose(code=1008)(scope, receive, send)
            return
        await self._app(scope, receive, send)


class SecurityHeaders:
    """ASGI middleware that adds the headers to every HTTP response."""

    def __init__(self, app: ASGIApp, policy: str, *, https: bool) -> None:
        self._app = app
        self._headers = {
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
            "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
        }
        if https:
            self._headers["Strict-Transport-Security"] = "max-age=31536000"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; add the headers when the response starts."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        await self._app(scope, receive, send_with_headers)

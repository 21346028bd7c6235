"""Every HTTP surface of this build and the class of each of its routes; a route that is not here fails the tests.

A public route answers everybody alike and says why it may; a guarded one names what opens it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Public:
    """A route without a caller's identity."""

    reason: str


@dataclass(frozen=True, slots=True)
class Guarded:
    """A route that one secret or one origin opens."""

    by: str


Table = dict[str, tuple[frozenset[str], Public | Guarded]]
GET = frozenset({"GET", "HEAD"})
ANY = frozenset({"ANY"})
WEBSOCKET = frozenset({"WEBSOCKET"})

ON_EVERY_SERVICE: Table = {
    "/livez": (GET, Public("a supervisor asks whether the process lives; the answer is two letters")),
    "/readyz": (GET, Public("a supervisor asks what is missing; the answer is a closed set of words")),
    "/metrics": (GET, Public("Prometheus scrapes on the loopback interface; labels never hold ids or values")),
}
OF_SERVICE: dict[str, Table] = {
    "intake": {},
    "policy": {},
    "approval": {},
    "tokens": {
        "/.well-known/jwks.json": (
            GET,
            Public("verifiers need the public keys before they can believe anybody (RFC 7517)"),
        ),
        "/.well-known/oauth-authorization-server": (GET, Public("discovery precedes every credential (RFC 8414)")),
    },
    "executor": {},
    "audit": {},
}
BANK: Table = {
    "/mcp": (ANY, Guarded("the executor's credential")),
    "/control/reset": (frozenset({"POST"}), Guarded("the credential of the demonstration")),
    "/control/effects": (GET, Guarded("the credential of the demonstration")),
    "/healthz": (GET, Public("the demonstration waits for the tool to listen; the answer is constant")),
}
STATIC = Public("Streamlit's own page and bundles, the same for everybody, before anybody has signed in")
PREFLIGHT = frozenset({"OPTIONS"})
DISABLED = Public("Streamlit's agent API is off: every call is answered with a refusal or with the schema of nothing")
EVERY_METHOD = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
DASHBOARD: list[tuple[str, frozenset[str], Public | Guarded]] = [
    ("/livez", GET, Public("a supervisor asks whether the process lives; a constant")),
    ("/healthz", GET, Public("a supervisor asks whether bus and database answer; three booleans")),
    ("/api/ws", WEBSOCKET, Guarded("our own origin")),
    ("/_stcore/health", GET, Public("Streamlit's page waits for the runtime; a constant")),
    ("/_stcore/health", PREFLIGHT, Public("CORS preflight of the constant")),
    ("/_stcore/metrics", GET, Public("numbers of sessions, without names")),
    ("/_stcore/metrics", PREFLIGHT, Public("CORS preflight of the numbers")),
    ("/_stcore/host-config", GET, Public("switches of Streamlit's page; the list of foreign hosts is empty")),
    ("/media/{file_id:path}", GET, Public("downloads by the digest of their content; the dashboard offers none")),
    ("/media/{file_id:path}", PREFLIGHT, Public("CORS preflight of downloads")),
    ("/_stcore/upload_file/{session_id}/{file_id}", frozenset({"PUT"}), Guarded("the XSRF token of a live session")),
    ("/_stcore/upload_file/{session_id}/{file_id}", frozenset({"DELETE"}), Guarded("the XSRF token of a live session")),
    ("/_stcore/upload_file/{session_id}/{file_id}", PREFLIGHT, Public("CORS preflight of uploads")),
    ("/component/{path:path}", GET, STATIC),
    ("/component/{path:path}", PREFLIGHT, STATIC),
    ("/_stcore/bidi-components/{path:path}", GET, STATIC),
    ("/_stcore/bidi-components/{path:path}", PREFLIGHT, STATIC),
    ("/_stcore/stream", WEBSOCKET, Guarded("our own origin, then the signed session cookie")),
    ("/auth/login", GET, Public("leads to the provider; without a button's signed request back to the first page")),
    ("/auth/logout", GET, Public("clears the browser's own cookies")),
    ("/oauth2callback", GET, Public("takes a code only together with the state of this browser's own login")),
    ("/_stcore/agent/interact", EVERY_METHOD, DISABLED),
    ("/_stcore/agent/openapi.json", EVERY_METHOD, DISABLED),
    ("/_stcore/agent/mcp", EVERY_METHOD, DISABLED),
    ("", frozenset[str](), STATIC),
]
LISTENERS = {
    "shared/remit/runtime/http.py": "health, metrics and routes of every service",
    "dashboard/asgi.py": "the dashboard",
    "dashboard/server.py": "the dashboard's server",
    "infra/demo/bank/app.py": "the example tool",
    "infra/demo/identity.py": "the local provider of the demonstration: whoever reaches it can be anyone, so only loopback may",
    "shared/remit/cli/login.py": "the loopback redirect of a login in the terminal (RFC 8252)",
}
"""Every module that opens a port for HTTP, or builds what is served there."""

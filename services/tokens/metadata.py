"""What verifiers read over HTTP: the key set and the authorization server metadata."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse
from starlette.routing import Route

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

    from services.tokens.signing import KeyRing

JWKS_PATH = "/.well-known/jwks.json"
METADATA_PATH = "/.well-known/oauth-authorization-server"
CACHE_S = 300
"""Less than any rotation overlap, so that a cached key set always knows the key that signs."""


def metadata(issuer: str, public_url: str) -> dict[str, Any]:
    """Return the metadata document; no grant is offered here, tokens are minted by the pipeline only (RFC 8414)."""
    return {
        "issuer": issuer,
        "jwks_uri": f"{public_url.rstrip('/')}{JWKS_PATH}",
        "response_types_supported": [],
        "grant_types_supported": [],
        "scopes_supported": ["tool:execute"],
        "authorization_details_types_supported": ["tool_call"],
        "dpop_signing_alg_values_supported": ["ES256"],
    }


def routes(*, keys: Callable[[], KeyRing], issuer: str, public_url: str) -> list[Route]:
    """Return the HTTP routes."""
    document = metadata(issuer, public_url)
    headers = {"Cache-Control": f"public, max-age={CACHE_S}"}

    async def jwks(_: Request) -> JSONResponse:
        return JSONResponse(keys().jwks(), headers=headers, media_type="application/jwk-set+json")

    async def server(_: Request) -> JSONResponse:
        return JSONResponse(document, headers=headers)

    return [Route(JWKS_PATH, jwks, methods=["GET"]), Route(METADATA_PATH, server, methods=["GET"])]

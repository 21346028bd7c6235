"""Services built for tests as `python -m services.<name>` builds them, with settings instead of an environment."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from remit.runtime.service import Service


def settings_class(name: str) -> type[Any]:
    """Return the settings class of a service."""
    return getattr(importlib.import_module(f"services.{name}.settings"), f"{name.capitalize()}Settings")


NEEDED: dict[str, dict[str, Any]] = {
    "approval": {"oidc_issuers": [{"issuer": "https://idp.example", "client_ids": ["remit-cli"]}]},
    "executor": {"jwks_url": "http://127.0.0.1:9/.well-known/jwks.json"},
}
"""Settings without a default that building a service takes."""


def build_service(name: str, keys_dir: Path, **settings: Any) -> Service:
    """Build a service; nothing is connected."""
    app = importlib.import_module(f"services.{name}.app")
    return app.build(settings_class(name)(keys_dir=keys_dir, **{**NEEDED.get(name, {}), **settings}))

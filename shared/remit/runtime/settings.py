"""Environment of a service; every duration carries its unit in the name."""

from __future__ import annotations

from pathlib import Path

from pydantic import AliasChoices, Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class ServiceSettings(BaseSettings):
    """Read once at start; services add their own fields.

    Every field is `REMIT_<NAME>` in the environment; `NATS_URL` and `DATABASE_URL` are understood as they are.
    """

    model_config = SettingsConfigDict(env_prefix="REMIT_", extra="ignore", frozen=True)

    nats_url: str = Field(
        default="nats://127.0.0.1:4222", validation_alias=AliasChoices("REMIT_NATS_URL", "NATS_URL", "nats_url")
    )
    database_url: str | None = Field(
        default=None, validation_alias=AliasChoices("REMIT_DATABASE_URL", "DATABASE_URL", "database_url")
    )
    keys_dir: Path = Field(description="Directory of this environment's keys, as `infra.local.keys` lays it out.")
    tls_ca_file: Path | None = Field(default=None, description="Certificate authority of the broker; turns TLS on.")
    tls_cert_file: Path | None = Field(default=None, description="This service's client certificate.")
    tls_key_file: Path | None = Field(default=None, description="Its private key.")
    tenant: str = "default"
    environment: str = "local"
    replica: str = Field(
        default="", description="Name of this replica in logs and claims; the service name when empty."
    )
    http_host: str = "127.0.0.1"
    http_port: int = Field(
        default=0, ge=0, le=65535, description="Health, metrics and service routes; 0 picks a free one."
    )
    workers: int = Field(default=16, ge=1, le=256, description="Concurrent handlers of one replica.")
    log_level: str = "INFO"
    bundle_poll_s: float = Field(default=10.0, gt=0)
    bundle_stale_s: float = Field(default=60.0, gt=0, description="A bundle unread for so long permits nothing.")
    graceful_timeout_s: float = Field(default=25.0, gt=0)

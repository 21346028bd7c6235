"""Environment of the dashboard: `REMIT_DASHBOARD_<NAME>`; `DATABASE_URL` and `NATS_URL` are understood as they are."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, FilePath, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from remit.errors import ConfigurationError

if TYPE_CHECKING:
    from sqlalchemy import URL

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class DashboardSettings(BaseSettings):
    """Read once at start."""

    model_config = SettingsConfigDict(env_prefix="REMIT_DASHBOARD_", extra="ignore", frozen=True)

    database_url: SecretStr = Field(
        validation_alias=AliasChoices("REMIT_DASHBOARD_DATABASE_URL", "DATABASE_URL", "database_url"),
        description="postgresql:// URL of the read-only role remit_dashboard.",
    )
    nats_url: str = Field(
        default="nats://127.0.0.1:4222",
        validation_alias=AliasChoices("REMIT_DASHBOARD_NATS_URL", "NATS_URL", "nats_url"),
    )
    tls_ca_file: FilePath | None = Field(
        default=None, validation_alias="REMIT_TLS_CA_FILE", description="Authority of the broker; turns TLS on."
    )
    tls_cert_file: FilePath | None = Field(default=None, validation_alias="REMIT_TLS_CERT_FILE")
    tls_key_file: FilePath | None = Field(default=None, validation_alias="REMIT_TLS_KEY_FILE")
    nkey_seed_file: FilePath = Field(description="nkey seed of principal `dashboard` (`<keys>/dashboard/nats.nk`).")
    oidc_issuer: str = Field(description="OpenID issuer, exactly as in the `iss` claim.")
    oidc_client_id: str = "remit-dashboard"
    oidc_client_secret: SecretStr | None = None
    oidc_client_secret_file: FilePath | None = Field(default=None, description="The same, read from a file.")
    roles_claim: str = "roles"
    cookie_secret: SecretStr | None = Field(
        default=None, description="Signs session cookies; the same on all replicas."
    )
    cookie_secret_file: FilePath | None = Field(default=None, description="The same, read from a file.")
    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8501, ge=0, le=65535, description="0 picks a free one.")
    public_url: str | None = Field(
        default=None, description="What people type, without a path; http://localhost:<port> when absent."
    )
    environment: str = Field(default="local", validation_alias=AliasChoices("REMIT_ENVIRONMENT", "environment"))

    @field_validator("public_url")
    @classmethod
    def _is_origin(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.path not in {"", "/"}:
            raise ValueError("must be http(s)://host[:port] without a path")
        if parts.scheme == "http" and parts.hostname not in LOOPBACK:
            raise ValueError("must be https: over plain http the ID token travels in the clear")
        return value.rstrip("/")

    @property
    def origin(self) -> str:
        """Scheme, host and port that browsers send as `Origin`."""
        return self.public_url or f"http://localhost:{self.port}"

    @property
    def client_secret(self) -> str:
        """Secret of the OpenID client.

        Raises:
            ConfigurationError: none is set.

        """
        if self.oidc_client_secret_file is not None:
            return self.oidc_client_secret_file.read_text().strip()
        if self.oidc_client_secret is None:
            raise ConfigurationError(
                "set REMIT_DASHBOARD_OIDC_CLIENT_SECRET or REMIT_DASHBOARD_OIDC_CLIENT_SECRET_FILE"
            )
        return self.oidc_client_secret.get_secret_value()

    def tls(self) -> ssl.SSLContext | None:
        """Return the TLS context for the bus, or None where it is plain.

        Raises:
            ConfigurationError: the authority is named without certificate and key.

        """
        if self.tls_ca_file is None:
            return None
        if self.tls_cert_file is None or self.tls_key_file is None:
            raise ConfigurationError(
                "REMIT_TLS_CA_FILE is set; mutual TLS needs REMIT_TLS_CERT_FILE and REMIT_TLS_KEY_FILE too"
            )
        context = ssl.create_default_context(cafile=self.tls_ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(self.tls_cert_file, self.tls_key_file)
        return context

    @property
    def cookie_key(self) -> str:
        """Secret that signs session cookies.

        Raises:
            ConfigurationError: none is set, or it is too short to sign with.

        """
        found = self.cookie_secret.get_secret_value() if self.cookie_secret else ""
        if self.cookie_secret_file is not None:
            found = self.cookie_secret_file.read_text().strip()
        if len(found) < 32:
            raise ConfigurationError(
                "set REMIT_DASHBOARD_COOKIE_SECRET or REMIT_DASHBOARD_COOKIE_SECRET_FILE to at least 32 characters"
            )
        return found

    @property
    def sqlalchemy_url(self) -> URL:
        """The database URL for SQLAlchemy over psycopg."""
        # Here, so that the model layer and the tests of settings need no database library.
        from sqlalchemy import make_url  # noqa: PLC0415

        return make_url(self.database_url.get_secret_value()).set(drivername="postgresql+psycopg")


def load() -> DashboardSettings:
    """Return the settings of this process.

    Raises:
        ConfigurationError: a setting is missing or does not fit; no value is quoted.

    """
    try:
        return DashboardSettings.model_validate({})
    except ValidationError as error:
        rows = error.errors(include_url=False, include_input=False, include_context=False)
        named = "; ".join(f"{_variable(str(row['loc'][0]))}: {row['msg']}" for row in rows)
        raise ConfigurationError(f"the dashboard's environment does not fit: {named}") from None


def _variable(name: str) -> str:
    return name if name.isupper() else f"REMIT_DASHBOARD_{name.upper()}"

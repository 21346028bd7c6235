"""Environment of the command line; options of a command win over it."""

from __future__ import annotations

import ssl
from pathlib import Path

from pydantic import AliasChoices, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from remit.errors import ConfigurationError


class CliSettings(BaseSettings):
    """Read once for each command."""

    model_config = SettingsConfigDict(env_prefix="REMIT_", extra="ignore", frozen=True)

    nats_url: str = Field(
        default="nats://127.0.0.1:4222", validation_alias=AliasChoices("REMIT_NATS_URL", "NATS_URL", "nats_url")
    )
    database_url: SecretStr | None = Field(
        default=None,
        validation_alias=AliasChoices("REMIT_DATABASE_URL", "DATABASE_URL", "database_url"),
        description="Read model, for `remit pending`; the dashboard's reading role is enough.",
    )
    cli_seed_file: Path | None = Field(default=None, description="nkey seed of the bus principal `cli`.")
    id_token_file: Path | None = Field(default=None, description="An ID token obtained elsewhere, for automation.")
    oidc_issuer: str | None = Field(default=None, description="OpenID issuer, exactly as in the `iss` claim.")
    oidc_client_id: str = "remit-cli"
    oidc_client_secret: SecretStr | None = Field(default=None, description="Only for providers that insist on one.")
    oidc_scope: str = "openid profile"
    tls_ca_file: Path | None = None
    tls_cert_file: Path | None = None
    tls_key_file: Path | None = None

    def seed(self) -> str:
        """Return the nkey seed of the principal `cli`.

        Raises:
            ConfigurationError: no file is named or it cannot be read.

        """
        if self.cli_seed_file is None:
            raise ConfigurationError("REMIT_CLI_SEED_FILE is not set; name the nkey seed file of the principal cli")
        try:
            return self.cli_seed_file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"REMIT_CLI_SEED_FILE {self.cli_seed_file}: {type(error).__name__}") from None

    def tls(self) -> ssl.SSLContext | None:
        """Return the TLS context for the bus, or None where it is plain.

        Raises:
            ConfigurationError: one of the files cannot be used.

        """
        if self.tls_ca_file is None:
            return None
        try:
            context = ssl.create_default_context(cafile=self.tls_ca_file)
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            if self.tls_cert_file is not None:
                context.load_cert_chain(self.tls_cert_file, self.tls_key_file)
        except OSError as error:
            raise ConfigurationError(f"REMIT_TLS_CA_FILE, _CERT_FILE, _KEY_FILE: {type(error).__name__}") from None
        return context

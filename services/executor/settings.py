"""Environment of the executor."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field

from remit.runtime.settings import ServiceSettings
from services.executor.connectors.credentials import ENVIRONMENT_PREFIX


class ExecutorSettings(ServiceSettings):
    """Each field is `REMIT_<NAME>`; credentials themselves are never part of it."""

    jwks_url: str = Field(description="Where the tokens service publishes its keys.")
    token_issuer: str = Field(default="https://remit.example", description="`iss` that action tokens must carry.")
    jwks_refetch_s: float = Field(default=10.0, gt=0, description="Unknown kids cause one fetch per so many seconds.")
    credentials_dir: Path | None = Field(default=None, description="One file per upstream credential.")
    tool_ca_file: Path | None = Field(
        default=None, description="Certificate authorities of tools; the system's by default."
    )
    tool_concurrency: int = Field(default=8, ge=1, description="Calls of one tool at once in one replica.")
    connect_timeout_s: float = Field(default=5.0, gt=0)
    evidence_max_age_s: float = Field(
        default=60.0, gt=0, description="Nothing is claimed while the projector is older."
    )
    sweep_s: float = Field(default=2.0, gt=0, description="Pause of the sweeper and of the outbox relay.")
    outbox_after_s: float = Field(default=3.0, gt=0, description="Age at which the relay repeats an append.")
    max_db_connections: int = Field(default=16, ge=2)


def environment_credentials() -> dict[str, str]:
    """Return the `REMIT_CREDENTIAL_*` variables; read here because settings are printed and secrets never are."""
    return {name: value for name, value in os.environ.items() if name.startswith(ENVIRONMENT_PREFIX)}  # noqa: TID251

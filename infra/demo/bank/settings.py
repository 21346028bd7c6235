"""The environment the bank reads: two secrets and the place of its log. A missing secret stops the start."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class BankSettings(BaseSettings):
    """Settings from `BANK_TOKEN`, `BANK_CONTROL_TOKEN` and `BANK_EFFECTS`."""

    model_config = SettingsConfigDict(env_prefix="BANK_", frozen=True)

    token: SecretStr = Field(min_length=16, description="Bearer credential of the executor for `/mcp`.")
    control_token: SecretStr = Field(
        min_length=16, description="Bearer credential of the demonstration for `/control`."
    )
    effects: Path = Field(description="JSON lines file of the calls that arrived; appended to, never truncated.")

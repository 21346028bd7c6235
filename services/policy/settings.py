"""Environment of policy."""

from __future__ import annotations

from pydantic import Field

from remit.runtime.settings import ServiceSettings


class PolicySettings(ServiceSettings):
    """Each field is `REMIT_<NAME>`."""

    remit_cache_s: float = Field(
        default=1.0, ge=0, le=5, description="Age of a remit that a first evaluation may use; minting always reads."
    )

"""Environment of tokens."""

from __future__ import annotations

from pydantic import Field

from remit.runtime.settings import ServiceSettings


class TokensSettings(ServiceSettings):
    """Each field is `REMIT_<NAME>`; keys come from the key directory."""

    token_issuer: str = Field(default="https://remit.example", description="`iss` of every action token.")
    token_lifetime_s: int = Field(
        default=60, ge=1, le=300, description="Longest life of an action token (design, standards section 2.1)."
    )
    public_url: str | None = Field(
        default=None, description="Where JWKS and metadata are reached from outside; the issuer by default."
    )
    rotation_overlap_s: int = Field(
        default=600,
        ge=305,
        description="A new key is published so long before it signs; an old one stays so long after.",
    )
    key_reload_s: float = Field(default=10.0, gt=0, description="Pause between looks at the key file.")

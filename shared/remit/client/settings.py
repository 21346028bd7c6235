"""How an agent says who it is and where the broker is, in code or from the environment."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from remit.client.errors import AgentKeyError
from remit.errors import ConfigurationError
from remit.ids import AGENT_NAME, fresh_key
from remit.nkey import signing_key

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_SERVER = "nats://127.0.0.1:4222"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """How the agent describes itself on each proposal; drift from the registry or from the remit's pin is refused."""

    runtime: str
    model_family: str
    model_version: str
    config_digest: str
    """Digest of what configures the agent, such as `remit.canonical.digest` of prompt and settings."""
    session: str = field(default_factory=fresh_key)
    """One run of the agent; a denial blocks its like for the rest of the session."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """Everything an `Agent` needs; checked when made, so that a mistake shows before the first proposal."""

    name: str
    nkey_seed: str = field(repr=False)
    identity: Identity
    servers: tuple[str, ...] = (DEFAULT_SERVER,)
    tls: ssl.SSLContext | None = None
    tenant: str = "default"
    """Only for the handle of a proposal that intake has not answered yet."""

    def __post_init__(self) -> None:
        """Refuse a name or a seed that cannot be one."""
        if not AGENT_NAME.fullmatch(self.name):
            raise ConfigurationError(
                f"agent name {self.name!r} does not match {AGENT_NAME.pattern}; use the registry's name"
            )
        try:
            signing_key(self.nkey_seed)
        except ValueError as error:
            detail = f"the seed of agent {self.name} is unusable ({error}); expected the SU… line of its nats.nk file"
            raise AgentKeyError(detail) from None


def read_environment(environ: Mapping[str, str] | None = None) -> AgentSettings:
    """Return the settings of the environment.

    `REMIT_AGENT`, `REMIT_AGENT_SEED_FILE`, `REMIT_AGENT_{RUNTIME,MODEL_FAMILY,MODEL_VERSION,CONFIG_DIGEST}` are needed;
    `REMIT_AGENT_SESSION`, `NATS_URL` (comma separated), `REMIT_TENANT`, `REMIT_TLS_{CA,CERT,KEY}_FILE` are optional.

    Raises:
        ConfigurationError: a variable is missing or its file cannot be read; the message names it.

    """
    env = os.environ if environ is None else environ  # noqa: TID251  (the settings module of the SDK)
    seed_file = Path(_needed(env, "REMIT_AGENT_SEED_FILE"))
    try:
        seed = seed_file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"REMIT_AGENT_SEED_FILE {seed_file}: {type(error).__name__}") from None
    session = env.get("REMIT_AGENT_SESSION")
    identity = Identity(
        runtime=_needed(env, "REMIT_AGENT_RUNTIME"),
        model_family=_needed(env, "REMIT_AGENT_MODEL_FAMILY"),
        model_version=_needed(env, "REMIT_AGENT_MODEL_VERSION"),
        config_digest=_needed(env, "REMIT_AGENT_CONFIG_DIGEST"),
        **({"session": session} if session else {}),
    )
    url = env.get("REMIT_NATS_URL") or env.get("NATS_URL") or DEFAULT_SERVER
    return AgentSettings(
        name=_needed(env, "REMIT_AGENT"),
        nkey_seed=seed,
        identity=identity,
        servers=tuple(part.strip() for part in url.split(",") if part.strip()),
        tls=_tls(env),
        tenant=env.get("REMIT_TENANT") or "default",
    )


def _needed(env: Mapping[str, str], name: str) -> str:
    value = env.get(name, "").strip()
    if not value:
        raise ConfigurationError(f"{name} is not set; an agent needs it to propose")
    return value


def _tls(env: Mapping[str, str]) -> ssl.SSLContext | None:
    names = ("REMIT_TLS_CA_FILE", "REMIT_TLS_CERT_FILE", "REMIT_TLS_KEY_FILE")
    ca, certificate, key = (env.get(name) or None for name in names)
    if ca is None:
        return None
    try:
        context = ssl.create_default_context(cafile=ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        if certificate:
            context.load_cert_chain(certificate, key)
    except OSError as error:
        raise ConfigurationError(f"{', '.join(names)}: {type(error).__name__}; check the three files") from None
    return context

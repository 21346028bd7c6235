"""The ID token that says who is at the keyboard: one file, readable by its owner alone, never printed."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import typer
from pydantic import SecretStr

from remit.canonical import b64url_decode, strict_loads
from remit.cli.output import LOGIN, CliError
from remit.clock import now
from remit.commands import MAX_ID_TOKEN
from remit.errors import CanonicalError

if TYPE_CHECKING:
    from remit.cli.settings import CliSettings

OWNER_ONLY = stat.S_IRUSR | stat.S_IWUSR


@dataclass(frozen=True, slots=True)
class Session:
    """A token and what it claims; the claims are shown, and believed by approval only after verification."""

    token: SecretStr
    claims: dict[str, Any]

    @property
    def expires_at(self) -> datetime | None:
        """When the token ends, as it says itself."""
        found = self.claims.get("exp")
        return datetime.fromtimestamp(found, UTC) if isinstance(found, int | float) else None


def token_path() -> Path:
    """Return where `remit login` keeps the token."""
    return Path(typer.get_app_dir("remit")) / "id_token"


def save(token: str) -> Path:
    """Store a token for its owner alone; the file is never readable by others, not even for a moment."""
    path = token_path()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, OWNER_ONLY)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(token)
    fresh.replace(path)
    return path


def load(settings: CliSettings, token_file: Path | None = None) -> Session:
    """Return the session of a named token file, else of the last login.

    Raises:
        CliError: nobody is logged in, the token is unreadable, or it has expired.

    """
    path = token_file or settings.id_token_file or token_path()
    try:
        text = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        raise CliError(f"nobody is logged in ({path} does not exist); run: remit login", LOGIN) from None
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"{path}: cannot be read ({type(error).__name__})", LOGIN) from None
    session = Session(SecretStr(text), claims_of(text))
    if session.expires_at is not None and session.expires_at <= now():
        raise CliError(f"your login ended at {session.expires_at.isoformat()}; run: remit login", LOGIN)
    return session


def claims_of(token: str) -> dict[str, Any]:
    """Return the unverified claims of a token, for display.

    Raises:
        CliError: the text is no JWT; it is never quoted.

    """
    parts = token.split(".")
    try:
        claims = strict_loads(b64url_decode(parts[1])) if len(parts) == 3 and len(token) <= MAX_ID_TOKEN else None
    except CanonicalError:
        claims = None
    if not isinstance(claims, dict):
        raise CliError("this is no ID token; run: remit login", LOGIN)
    return cast("dict[str, Any]", claims)

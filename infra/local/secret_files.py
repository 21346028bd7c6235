"""Secret files: directories 0700, files 0600, replaced as a whole so that a reader never sees half a key."""

from __future__ import annotations

import json
import os
import secrets
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

DIRECTORY_MODE = 0o700
FILE_MODE = 0o600


def make_private(directory: Path) -> Path:
    """Create a directory (and its parents) that only its owner can enter."""
    directory.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
    directory.chmod(DIRECTORY_MODE)
    return directory


def write(path: Path, text: str) -> None:
    """Replace a file atomically; it is never readable by others, not even for a moment."""
    make_private(path.parent)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write one JSON object."""
    write(path, json.dumps(value, indent=2) + "\n")

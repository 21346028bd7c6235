"""Mounts that do not outlive the program: each is undone on leaving its block, on an exception and at a plain exit."""

from __future__ import annotations

import atexit
import subprocess
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_UNMOUNT_TRIES = 50
_UNMOUNT_PAUSE_S = 0.1
_mounted: list[Path] = []


def mount(*arguments: str, at: Path) -> None:
    """Mount something at a folder, which is made when it is missing.

    Raises:
        RuntimeError: the kernel refuses; says what this machine lacks.

    """
    at.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", *arguments, str(at)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(
            f"cannot mount at {at}: {done.stderr.strip()}; run this row as root on a kernel with loop devices and tmpfs"
        )
    _mounted.append(at)


def unmount(at: Path) -> None:
    """Unmount a folder; whoever was just killed may hold it for a moment, and nobody longer than that."""
    if at not in _mounted:
        return
    for _ in range(_UNMOUNT_TRIES):
        if subprocess.run(["umount", str(at)], capture_output=True, check=False).returncode == 0:
            break
        time.sleep(_UNMOUNT_PAUSE_S)
    else:
        subprocess.run(["umount", "--lazy", str(at)], capture_output=True, check=False)
    _mounted.remove(at)


@atexit.register
def _unmount_all() -> None:
    for at in reversed(_mounted[:]):
        unmount(at)

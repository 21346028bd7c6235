"""A small disk in memory that can be filled to the last byte and grown again."""

from __future__ import annotations

import errno
import shutil
from typing import TYPE_CHECKING, Self

from tests.faults.rigs.mounts import mount, unmount

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

MIB = 2**20
_CHUNK = 64 * 1024


class Tmpfs:
    """A tmpfs mounted at `mount`; `with Tmpfs(folder) as disk` takes it away again."""

    def __init__(self, directory: Path, *, size_bytes: int = 64 * MIB) -> None:
        """Remember where and how large."""
        self.mount, self.size_bytes = directory, size_bytes

    def __enter__(self) -> Self:
        """Mount it, empty."""
        mount("-t", "tmpfs", "-o", f"size={self.size_bytes},mode=0700", "tmpfs", at=self.mount)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Unmount; whoever works on the disk must have ended."""
        unmount(self.mount)

    @property
    def free_bytes(self) -> int:
        """What may still be written."""
        return shutil.disk_usage(self.mount).free

    def fill(self, *, leave_bytes: int = 0) -> None:
        """Write ballast until only so much is left."""
        with self._ballast.open("ab", buffering=0) as ballast:
            while (room := self.free_bytes - leave_bytes) > 0:
                try:
                    ballast.write(b"\xff" * min(_CHUNK, room))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    return

    def make_room(self) -> None:
        """Take the ballast away."""
        self._ballast.unlink(missing_ok=True)

    @property
    def _ballast(self) -> Path:
        return self.mount / "ballast"

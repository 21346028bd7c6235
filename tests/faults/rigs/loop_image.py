"""A disk in a file, and the power cut: what a server wrote but never forced to disk is gone, what it forced is there.

The server is stopped in its tracks and the backing file copied, so the copy holds what reached the disk until then; the pages
that the file system still kept in memory are not in it. A lost page cache, not torn sectors or a lying disk.
Source: design, bus section 10 (rigs).
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from typing import TYPE_CHECKING, Self

from tests.faults.rigs.mounts import mount, unmount

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence
    from pathlib import Path
    from types import TracebackType

MIB = 2**20
DRAIN_S = 0.1
"""A forced write that had begun when the signal came ends within this; its caller never hears of it."""


class LoopImage:
    """An ext4 file system in one file, mounted at `mount`; `with LoopImage(folder) as disk` takes it away again."""

    def __init__(self, directory: Path, *, size_bytes: int = 160 * MIB) -> None:
        """Remember where; `directory` holds the backing files and the mount point."""
        self.directory, self.size_bytes = directory, size_bytes
        self.mount = directory / "disk"
        self._number = 0

    @property
    def _image(self) -> Path:
        return self.directory / f"image-{self._number}"

    def __enter__(self) -> Self:
        """Make the file system and mount it."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with self._image.open("wb") as image:
            image.truncate(self.size_bytes)
        options = "lazy_itable_init=0,lazy_journal_init=0"
        subprocess.run(["mkfs.ext4", "-q", "-F", "-E", options, str(self._image)], check=True, capture_output=True)
        self._mount()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Unmount; whoever works on the disk must have ended."""
        unmount(self.mount)
        self._image.unlink(missing_ok=True)

    def _mount(self) -> None:
        # A late journal commit of the kernel in the middle of the copy would tear it.
        mount("-o", "loop,commit=300", str(self._image), at=self.mount)

    def copy(self) -> None:
        """Keep what is on the disk at this moment; nothing in memory is written first."""
        following = self.directory / f"image-{self._number + 1}"
        subprocess.run(
            ["cp", "--sparse=always", "--reflink=auto", str(self._image), str(following)],
            check=True,
            capture_output=True,
        )

    def come_back(self) -> None:
        """Mount the copy in place of the disk; the file system repairs itself from its journal, as after a real cut."""
        unmount(self.mount)
        self._image.unlink()
        self._number += 1
        self._mount()


async def power_cut(disks: Sequence[LoopImage], pids: Iterable[int], kill: Callable[[], Awaitable[None]]) -> None:
    """Take the power from servers and their disks in one instant; afterwards the disks are back and the servers are not.

    `pids` are all processes that write there, `kill` ends them.
    """
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(DRAIN_S)
    for disk in disks:
        await asyncio.to_thread(disk.copy)
    await kill()
    for disk in disks:
        await asyncio.to_thread(disk.come_back)

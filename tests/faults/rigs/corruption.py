"""Damage to what a stopped nats-server keeps of one stream, and the repair: let the node forget the stream and fetch it again.

Source: design, bus section 1 rule 9 (a damaged replica lies silently) and section 10 (rigs).
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from pathlib import Path

ACCOUNT = "REMIT"


def stream_folder(store_dir: Path, stream: str) -> Path:
    """Return where a server keeps one stream of our account.

    Raises:
        FileNotFoundError: it keeps no such stream.

    """
    folder = store_dir / "jetstream" / ACCOUNT / "streams" / stream
    if not folder.is_dir():
        raise FileNotFoundError(f"{store_dir} holds no stream {stream} of account {ACCOUNT}")
    return folder


def blocks(store_dir: Path, stream: str) -> list[Path]:
    """Return the block files of a stream that hold anything, oldest first."""
    found = (stream_folder(store_dir, stream) / "msgs").glob("*.blk")
    return sorted((path for path in found if path.stat().st_size), key=lambda path: int(path.stem))


def flip_bits(store_dir: Path, stream: str, *, bits: int, after: int, rng: random.Random) -> list[int]:
    """Flip single bits beyond an offset of a stream's last block; returns where."""
    block = blocks(store_dir, stream)[-1]
    offsets = sorted(rng.sample(range(after, block.stat().st_size), bits))
    with block.open("r+b") as file:
        for offset in offsets:
            file.seek(offset)
            [byte] = file.read(1)
            file.seek(offset)
            file.write(bytes([byte ^ 1 << rng.randrange(8)]))
    return offsets


def cut_tail(store_dir: Path, stream: str, *, after: int) -> int:
    """Cut a stream's last block off at an offset; returns how many bytes are gone."""
    block = blocks(store_dir, stream)[-1]
    gone = block.stat().st_size - after
    with block.open("r+b") as file:
        file.truncate(after)
    return gone


def forget_stream(store_dir: Path, stream: str) -> None:
    """Remove one replica's copy of a stream; the node fetches it from its peers when it starts."""
    shutil.rmtree(stream_folder(store_dir, stream) / "msgs")

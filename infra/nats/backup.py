"""Saves every stream into a directory and makes them again from it: `python -m infra.nats.backup save|verify|restore DIRECTORY`.

    NATS_URL          with REMIT_KEYS_DIR and, for mTLS, the three REMIT_TLS_* files
    save              under the operator's key; the directory must be new
    verify            no broker: files against the manifest
    restore           under the break-glass key `restorer`; only where none of the streams exists

Consumers are not saved: provisioned anew they deliver everything again, which every handler takes for what it is, while a saved
acknowledgement could be of a message whose successor the cut left out. Streams are cut one after the other, INTAKE first and the
registry last, so that whatever was handed on in between stands in both and nothing in neither.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nats.aio.client import Client
from nats.errors import Error as NatsError
from pydantic import ValidationError

from infra.local import key_ring, secret_files
from infra.nats import snapshot
from infra.nats.snapshot import BackupError, Saved
from infra.provision import ProvisionSettings
from remit.clock import monotonic, now
from remit.errors import RemitError
from remit.runtime.streams import STREAM_BY_NAME, stream_hash

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

FORMAT = 1
MANIFEST = "manifest.json"
ORDER = ("INTAKE", "ACTIONS", "REMITS", "DLQ", "ADVISORIES", "KV_REGISTRY")
"""Of the cuts: what is taken from one stream and appended to the next is in the later one at least."""
CONNECT_TIMEOUT_S = 5
PROGRESS_EVERY_S = 1.0
READ_BYTES = 2**20
FAILED, REFUSED, INTERRUPTED = 1, 2, 130
"""Exit codes; 130 is what a shell reports for Ctrl-C."""


class Progress:
    """One line a second at most, to standard error."""

    def __init__(self) -> None:
        """Say the first line at once."""
        self._said_at = float("-inf")

    def __call__(self, line: str) -> None:
        """Say it, unless something was said just now."""
        if monotonic() - self._said_at >= PROGRESS_EVERY_S:
            self._said_at = monotonic()
            sys.stderr.write(f"{line}\n")


async def save(client: Client, directory: Path, say: Callable[[str], object]) -> dict[str, Any]:
    """Save every stream and return the manifest, which is written last: a directory without one is no backup.

    Raises:
        BackupError: the directory is in use, a stream is missing, or a snapshot broke off.

    """
    _insist_on_new(directory)
    rows: list[dict[str, Any]] = []
    begun_at = now().isoformat()
    for stream in ORDER:
        path = directory / f"{stream}.snapshot"
        rows.append(_row(stream, path, await snapshot.save(client, stream, path, say)))
    manifest = {
        "format": FORMAT,
        "begun_at": begun_at,
        "ended_at": now().isoformat(),
        "server_version": str(client.connected_server_version),
        "streams": rows,
    }
    secret_files.write_json(directory / MANIFEST, manifest)
    return manifest


def _insist_on_new(directory: Path) -> None:
    if directory.exists() and any(directory.iterdir()):
        raise BackupError(f"{directory} is not empty; every backup has a directory of its own")
    secret_files.make_private(directory)


def _row(stream: str, path: Path, saved: Saved) -> dict[str, Any]:
    state = saved.state
    return {
        "stream": stream, "file": path.name, "bytes": saved.size, "sha256": saved.sha256,
        "messages": state["messages"], "first_seq": state["first_seq"], "last_seq": state["last_seq"],
        "config": saved.config, "state": state,
    }  # fmt: skip


def verify(directory: Path) -> dict[str, Any]:
    """Return the manifest of a backup whose every file is what was written.

    Raises:
        BackupError: no manifest, another format, or a file that is missing or different.

    """
    try:
        manifest = json.loads((directory / MANIFEST).read_text())
        known, rows = manifest["format"] == FORMAT, manifest["streams"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BackupError(f"{directory} holds no backup: {MANIFEST} cannot be read ({type(error).__name__})") from None
    if not known:
        raise BackupError(f"{directory} has format {manifest['format']!r}, this program reads {FORMAT}")
    missing = set(ORDER) - {row["stream"] for row in rows}
    if missing:
        raise BackupError(f"{directory} does not hold {', '.join(sorted(missing))}")
    for row in rows:
        _insist_on_file(directory / row["file"], row)
    return manifest


def _insist_on_file(path: Path, row: dict[str, Any]) -> None:
    if path.parent.resolve() / path.name != path.resolve() or not path.is_file():
        raise BackupError(f"{row['stream']}: {path} is missing")
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
            size += len(block)
    if (size, digest.hexdigest()) != (row["bytes"], row["sha256"]):
        raise BackupError(f"{row['stream']}: {path} is not what was saved: {size} bytes, sha256 {digest.hexdigest()}")


async def restore(
    client: Client, directory: Path, say: Callable[[str], object], *, replicas: int | None = None
) -> list[str]:
    """Make every stream of a verified backup again; return one line a stream.

    Raises:
        BackupError: the backup is damaged, a stream exists already, or the broker refuses one. Those before it stand.

    """
    manifest = verify(directory)
    rows: dict[str, dict[str, Any]] = {row["stream"]: row for row in manifest["streams"]}
    there = [stream for stream in ORDER if await snapshot.info(client, stream) is not None]
    if there:
        raise BackupError(
            f"{', '.join(there)} exist already, and a restore never touches what is there; restore into a broker without them"
        )
    for stream in ORDER:
        _insist_on_config(stream, rows[stream]["config"])
    lines: list[str] = []
    for stream in ORDER:
        row = rows[stream]
        config = row["config"] | ({"num_replicas": replicas} if replicas else {})
        made = await snapshot.restore(client, (config, row["state"]), directory / row["file"], say)
        _insist_on_state(stream, made["state"], row)
        lines.append(f"{stream}: {made['state']['messages']} messages, up to {made['state']['last_seq']}")
    return lines


def _insist_on_config(stream: str, config: dict[str, Any]) -> None:
    # The manifest is not signed, so it may not bring in what carries messages elsewhere or lets them be erased.
    wanted = STREAM_BY_NAME[stream].config()
    changed = stream_hash(config) != stream_hash(wanted)
    if config.get("name") != stream or changed:
        raise BackupError(
            f"{stream}: the manifest describes another stream than the table; this backup was changed, or is older"
        )


def _insist_on_state(stream: str, found: dict[str, Any], row: dict[str, Any]) -> None:
    # An empty stream that never held anything begins at 0 or at 1, as the broker pleases.
    for name in ("messages", "last_seq", *(("first_seq",) if row["messages"] else ())):
        if found[name] != row[name]:
            raise BackupError(f"{stream}: {name} is {found[name]} after the restore, the backup holds {row[name]}")


@asynccontextmanager
async def connected(settings: ProvisionSettings, principal: str) -> AsyncGenerator[Client]:
    """Yield a connection under one principal's key.

    Raises:
        BackupError: the broker does not take it.

    """
    client, context = Client(), settings.tls()
    try:
        await client.connect(
            settings.nats_url.split(","),
            name=f"remit-backup-{principal}",
            nkeys_seed_str=key_ring.load_nats_seed(settings.keys_dir, principal),
            inbox_prefix=f"_IBX.{principal}".encode(),
            tls=context,
            tls_handshake_first=context is not None,
            allow_reconnect=False,
            max_reconnect_attempts=1,
            connect_timeout=CONNECT_TIMEOUT_S,
            error_cb=_told,
        )
    except (OSError, NatsError, TimeoutError) as error:
        await client.close()
        raise BackupError(
            f"NATS at {settings.nats_url} does not take the login {principal} ({type(error).__name__}); is the broker "
            "started, and did it read its file since the key was made?"
        ) from None
    try:
        yield client
    finally:
        await client.close()


async def _told(error: Exception) -> None:
    """Say what the connection meets: a refused request would otherwise look like a broker that does not answer."""
    sys.stderr.write(f"NATS: {error or type(error).__name__}\n")


async def _run(options: argparse.Namespace) -> list[str]:
    directory: Path = options.directory
    if options.command == "verify":
        return _described(verify(directory))
    settings = ProvisionSettings.model_validate({})
    if options.command == "save":
        async with connected(settings, "operator") as client:
            return _described(await save(client, directory, Progress()))
    async with connected(settings, "restorer") as client:
        return await restore(client, directory, Progress(), replicas=options.replicas)


def _described(manifest: dict[str, Any]) -> list[str]:
    rows = manifest["streams"]
    lines = [
        f"{row['stream']}: {row['messages']} messages, up to {row['last_seq']}, {row['bytes']:,} bytes" for row in rows
    ]
    return [*lines, f"saved {manifest['begun_at']} from nats-server {manifest['server_version']}"]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m infra.nats.backup",
        description="Save every stream into a directory, verify such a directory, or make the streams again from it.",
        epilog="Exit codes: 0 done, 1 damaged or broken off, 2 not configured, 130 interrupted.",
    )
    parser.add_argument("command", choices=("save", "verify", "restore"))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--replicas", type=int, choices=(1, 3, 5), help="restore: other than the streams had")
    return parser.parse_args()


def main() -> int:
    """Do as the command line says; the result goes to standard output, progress to standard error."""
    options = _options()
    try:
        lines = asyncio.run(_run(options))
    except ValidationError:
        sys.stderr.write("set REMIT_KEYS_DIR to the keys directory\n")
        return REFUSED
    except RemitError as error:
        sys.stderr.write(f"{error}\n")
        return FAILED
    except KeyboardInterrupt:
        sys.stderr.write(
            "interrupted: what has no manifest.json is no backup, and a stream half restored does not exist\n"
        )
        return INTERRUPTED
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())

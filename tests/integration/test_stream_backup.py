"""Streams saved under load, verified, and made again elsewhere, to the last message; refused wherever something is doubtful."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sys
from typing import TYPE_CHECKING

import nats.errors
import pytest

from infra.local import keys
from infra.local.nats_server import NatsServer, server_config
from infra.nats import backup
from infra.nats.snapshot import BackupError
from infra.provision import provision
from remit.errors import ConfigurationError
from remit.runtime.streams import STREAMS
from tests.support.servers import connected, make_keys

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from nats.aio.client import Client

pytestmark = pytest.mark.timeout(90)

MESSAGES = 600
BODY = b"x" * 3_000


def quiet(_: str) -> None:
    """Take progress and drop it."""


async def fill(client: Client, first: int, number: int) -> None:
    await asyncio.gather(
        *(client.request(f"action.{n:032x}.proposed", BODY, timeout=20) for n in range(first, first + number))
    )


async def bodies(client: Client, stream: str, seqs: range) -> list[bytes]:
    found = [
        await client.request(f"$JS.API.STREAM.MSG.GET.{stream}", json.dumps({"seq": seq}).encode()) for seq in seqs
    ]
    return [reply.data for reply in found]


async def started(command: str, directory: Path, server: NatsServer, keys_dir: Path) -> asyncio.subprocess.Process:
    """Start the program."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "infra.nats.backup", command, str(directory),
        env={"NATS_URL": server.url, "REMIT_KEYS_DIR": str(keys_dir), "PATH": ""},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


def test_every_stream_of_the_table_is_saved() -> None:
    assert sorted(backup.ORDER) == sorted(stream.name for stream in STREAMS)


@pytest.fixture(scope="module")
async def saved(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Path, Path, NatsServer]]:
    """A backup that was cut while messages came, the keys, and the server it is of."""
    folder = tmp_path_factory.mktemp("b")
    keys_dir = make_keys(folder / "keys")
    async with NatsServer(server_config(keys_dir, folder / "nats"), folder / "nats") as server:
        async with connected(server.url, keys_dir, "provisioner") as client:
            await provision(client)
        async with (
            connected(server.url, keys_dir, "intake") as writer,
            connected(server.url, keys_dir, "operator") as client,
        ):
            await fill(writer, 0, MESSAGES)
            more = asyncio.create_task(fill(writer, MESSAGES, MESSAGES))
            await backup.save(client, folder / "backup", quiet)
            await more
        yield folder / "backup", keys_dir, server


async def test_backup_is_restored_to_the_last_message_and_goes_on_from_there(
    saved: tuple[Path, Path, NatsServer], tmp_path: Path
) -> None:
    directory, keys_dir, original = saved
    manifest = backup.verify(directory)
    [row] = [row for row in manifest["streams"] if row["stream"] == "ACTIONS"]
    assert MESSAGES <= row["messages"] <= 2 * MESSAGES
    assert row["last_seq"] == row["messages"]
    broken_in = shutil.copytree(keys_dir, tmp_path / "keys")
    keys.break_glass(broken_in, "restorer")
    async with NatsServer(server_config(broken_in, tmp_path / "n"), tmp_path / "n") as server:
        async with connected(server.url, broken_in, "restorer") as client:
            lines = await backup.restore(client, directory, quiet)
            with pytest.raises(BackupError, match="exist already"):
                await backup.restore(client, directory, quiet)
        assert f"ACTIONS: {row['messages']} messages, up to {row['last_seq']}" in lines
        async with connected(server.url, broken_in, "provisioner") as client:
            report = await provision(client)
        assert not [name for name in report.updated if "/" not in name], "streams are as the table says"
        seqs = range(1, row["last_seq"] + 1, 7)
        async with connected(original.url, keys_dir, "audit") as then, connected(server.url, broken_in, "audit") as now:
            assert await bodies(now, "ACTIONS", seqs) == await bodies(then, "ACTIONS", seqs)
        async with connected(server.url, broken_in, "intake") as writer:
            reply = await writer.request(f"action.{9 * MESSAGES:032x}.proposed", BODY)
            assert json.loads(reply.data)["seq"] == row["last_seq"] + 1


async def test_a_changed_file_is_found_before_anything_is_restored(
    saved: tuple[Path, Path, NatsServer], tmp_path: Path
) -> None:
    damaged = shutil.copytree(saved[0], tmp_path / "damaged")
    path = damaged / "REMITS.snapshot"
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(body)
    with pytest.raises(BackupError, match=r"REMITS.*not what was saved"):
        backup.verify(damaged)
    path.unlink()
    with pytest.raises(BackupError, match=r"REMITS.*missing"):
        backup.verify(damaged)


async def test_a_backup_without_manifest_is_none_and_a_used_directory_is_refused(
    saved: tuple[Path, Path, NatsServer], tmp_path: Path
) -> None:
    (tmp_path / "ACTIONS.snapshot").write_bytes(b"half")
    with pytest.raises(BackupError, match="holds no backup"):
        backup.verify(tmp_path)
    async with connected(saved[2].url, saved[1], "operator") as client:
        with pytest.raises(BackupError, match="not empty"):
            await backup.save(client, saved[0], quiet)


async def test_nobody_but_the_restorer_restores_and_it_exists_only_with_its_key(
    saved: tuple[Path, Path, NatsServer], tmp_path: Path
) -> None:
    directory, keys_dir, server = saved
    async with connected(server.url, keys_dir, "operator") as client:
        with pytest.raises(nats.errors.TimeoutError):
            await client.request("$JS.API.STREAM.RESTORE.ACTIONS", b"{}", timeout=0.5)
    with pytest.raises(ConfigurationError, match="no break-glass login"):
        keys.break_glass(keys_dir, "operator")
    stranger = shutil.copytree(keys_dir, tmp_path / "keys")
    keys.break_glass(stranger, "restorer")
    process = await started("restore", directory, server, stranger)
    _, told = await process.communicate()
    assert process.returncode == 1
    assert b"does not take the login restorer" in told


async def test_program_saves_verifies_and_is_interrupted_cleanly(
    saved: tuple[Path, Path, NatsServer], tmp_path: Path
) -> None:
    _, keys_dir, server = saved
    for command in ("save", "verify"):
        process = await started(command, tmp_path / "b", server, keys_dir)
        said, _ = await process.communicate()
        assert process.returncode == 0
        assert f"ACTIONS: {2 * MESSAGES} messages".encode() in said
    process = await started("save", tmp_path / "c", server, keys_dir)
    while not list((tmp_path / "c").glob("ACTIONS.snapshot")) and process.returncode is None:
        await asyncio.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, told = await process.communicate()
    assert process.returncode == 130
    assert b"Traceback" not in told
    with pytest.raises(BackupError, match="holds no backup"):
        backup.verify(tmp_path / "c")

"""Backups of a world and what is restored from them, by the programs that operators use (`infra/README.md`)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import asyncpg

from infra.local import keys
from infra.local.nats_server import server_config
from infra.local.postgres_identity import bin_dir
from infra.postgres.roles import ROLES, apply_roles
from remit.runtime.keys import read
from tests.faults.world import SERVICES
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from tests.faults.world import World

DATABASE = "remit"


class ProgramError(AssertionError):
    """A program ended otherwise than expected; the message holds what it said."""


async def program(world: World, *argv: str, expect: int = 0) -> str:
    """Run a program of the project as an operator does, and return what it said on both outputs.

    Raises:
        ProgramError: another exit code than expected.

    """
    return await _run(world, (sys.executable, "-m", *argv), expect=expect)


async def _run(world: World, argv: tuple[str, ...], *, expect: int = 0) -> str:
    environment = world.environment
    variables = {
        "PATH": os.defpath,
        "NATS_URL": environment.nats_url,
        "REMIT_KEYS_DIR": str(environment.keys_dir),
        "DATABASE_URL": environment.admin_url,
    }
    process = await asyncio.create_subprocess_exec(
        *argv, env=variables, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    if process.returncode != expect:
        raise ProgramError(f"{argv[:4]} ended with {process.returncode}, not {expect}: {said.decode()[-2_000:]}")
    return said.decode()


async def dump(world: World, path: Path) -> None:
    """Save the database while everything works."""
    await _run(world, (str(bin_dir() / "pg_dump"), "--format=custom", f"--file={path}", world.environment.admin_url))


async def restore_database(world: World, path: Path) -> None:
    """Put an empty database in place of the one that was lost, fill it from a dump, and give the roles their rights."""
    environment = world.environment
    assert environment.postgres is not None
    connection = await asyncpg.connect(environment.postgres.url())
    try:
        await connection.execute(f"DROP DATABASE {DATABASE} WITH (FORCE)")
        await connection.execute(f"CREATE DATABASE {DATABASE}")
    finally:
        await connection.close()
    tool = str(bin_dir() / "pg_restore")
    await _run(world, (tool, "--exit-on-error", f"--dbname={environment.admin_url}", str(path)))
    await apply_roles(
        environment.admin_url, {role: read(environment.keys_dir / "postgres" / f"{role}.password") for role in ROLES}
    )
    await eventually(lambda: _answers(world), within_s=20)


async def _answers(world: World) -> bool:
    try:
        return await world.admin.fetchval("SELECT true")
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return False


async def down(world: World) -> None:
    """Kill every process of every service in one go, in the middle of whatever it does, and let none come back."""
    for name in SERVICES:
        for pid in world.services.pids(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    for name in SERVICES:
        await world.services.scale(name, 0)


async def up(world: World, *, ready: bool = True) -> None:
    """Start every service again, in as many replicas as the world began with."""
    for name in SERVICES:
        await world.services.scale(name, world.options.replicas[name])
    if ready:
        await world.services.ready(120)


async def lose_streams(world: World) -> None:
    """Take everything away that the broker stored, and start it again with the restorer's login."""
    server, environment = world.environment.nats, world.environment
    assert server is not None
    await server.stop()
    await asyncio.to_thread(shutil.rmtree, server.config.store_dir)
    keys.break_glass(environment.keys_dir, "restorer")
    fresh = server_config(environment.keys_dir, server.directory)
    server.config = replace(server.config, users=fresh.users)
    await server.start()


async def close_the_glass(world: World) -> None:
    """Take the restorer's login away again."""
    server, environment = world.environment.nats, world.environment
    assert server is not None
    await asyncio.to_thread(shutil.rmtree, environment.keys_dir / "restorer")
    await server.reload(replace(server.config, users=server_config(environment.keys_dir, server.directory).users))

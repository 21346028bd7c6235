"""I4, I5, I6 over the whole world: recompute the ledger from rows, stream and checkpoints, as `remit audit verify` does."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import asyncpg
import nats

from infra.local import key_ring
from remit.cli.audit_proof import checkpoint_lines, prove
from remit.runtime.bus import Bus
from remit.runtime.keys import load_trust

if TYPE_CHECKING:
    from tests.faults.world import World


TRIES, PAUSE_S = 20, 0.5


async def broken_in_the_end(world: World) -> list[str]:
    """Return what is wrong after the projector had time to catch up with the stream."""
    found: list[str] = []
    for _ in range(TRIES):
        found = await broken(world)
        if not found:
            break
        await asyncio.sleep(PAUSE_S)
    return found


async def broken(world: World) -> list[str]:
    """Return every finding of the audit's own verifier, each with its stream and row."""
    seed = key_ring.load_nats_seed(world.environment.keys_dir, "audit")
    servers = world.environment.nats_url.split(",")
    client = await nats.connect(servers, nkeys_seed_str=seed, inbox_prefix=b"_IBX.audit")
    connection = await asyncpg.connect(world.environment.database_url("auditor"))
    try:
        files = sorted((world.directory / "checkpoints").glob("*.jsonl"))
        checkpoints = [line for path in files for line in checkpoint_lines(path)]
        proofs = await prove(
            connection, load_trust(world.environment.keys_dir), checkpoints=checkpoints, bus=Bus(client)
        )
        return [f"{f.stream} {f.seq}: {f.code}: {f.detail}" for proof in proofs for f in proof.findings]
    finally:
        await connection.close()
        await client.close()

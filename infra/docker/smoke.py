"""One action through the running containers, from both ends: `python -m infra.docker.smoke person|agent|probe ...`.

Each part runs in a container of its own with its own keys only (smoke.yaml). Every line it prints is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import nats

from infra.demo.people import People
from infra.demo.tasks import IDENTITY, remit_for, tasks
from remit import Agent, Identity, Refusal, Result
from remit.cli.settings import CliSettings
from remit.client.settings import read_environment
from remit.clock import monotonic
from remit.commands import ApplyCommand
from remit.registry_files import load_registry

REGISTRY = Path(__file__).parents[1] / "demo" / "registry"
BILL = {"file_path": "bill-december-2023.txt"}
STOLEN = {"recipient": "US133000000121212121212", "amount": 1.0, "subject": "x", "date": "2022-01-01"}
PROBE_S = 1.0
WAIT_S = 60.0


def _say(**facts: Any) -> None:  # noqa: ANN401  (JSON values)
    sys.stdout.write(json.dumps(facts) + "\n")


async def person() -> int:
    """Publish the registry once and delegate the first recorded task; prints the remit's id."""
    settings = CliSettings()
    client = await nats.connect(
        settings.nats_url.split(","),
        nkeys_seed_str=settings.seed(),
        inbox_prefix=b"_IBX.cli",
        tls=settings.tls(),
        tls_handshake_first=True,
    )
    try:
        people = People(client, settings.oidc_issuer or "")
        content = load_registry(REGISTRY, dict(os.environ))
        reply = await people.command("otto", ApplyCommand, content=content, base_version=0)
        _say(registry=reply.status, version=reply.bundle_version)  # a later run is told that a version is in force
        _say(remit=await people.grant(remit_for(tasks()[0])))
    finally:
        await client.close()
    return 0


async def agent(remit: str, key: str) -> int:
    """Propose the task's own read, which runs, and a payment nobody delegated, which must not; 0 when it was so."""
    base = {f"REMIT_AGENT_{name.upper()}": value for name, value in IDENTITY.items()}
    found = read_environment({**os.environ, **base})
    who = Identity(**IDENTITY, session="smoke")
    began = monotonic()
    async with Agent(
        name=found.name, nkey_seed=found.nkey_seed, servers=list(found.servers), tls=found.tls, identity=who
    ) as speaker:
        read = await speaker.propose("bank.read_file", BILL, remit=remit, idempotency_key=f"{key}-read", wait=WAIT_S)
        took = monotonic() - began
        pay = await speaker.propose("bank.send_money", STOLEN, remit=remit, idempotency_key=f"{key}-pay", wait=2.0)
    read_outcome = read.outcome if isinstance(read, Result) else type(read).__name__
    pay_outcome = pay.reason if isinstance(pay, Refusal) else type(pay).__name__
    _say(read=read_outcome, seconds=round(took, 2), handle=str(read.action_id), undelegated_payment=pay_outcome)
    return 0 if isinstance(read, Result) and read.succeeded and not isinstance(pay, Result) else 1


async def _open(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(PROBE_S):
            _, writer = await asyncio.open_connection(host, int(port))
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


async def probe(addresses: list[str]) -> int:
    """Try every address from where the agent stands; 0 when exactly the nodes' client ports answer."""
    answers = dict(zip(addresses, await asyncio.gather(*map(_open, addresses)), strict=True))
    nodes = {f"nats-{number}:4222": await _open(f"nats-{number}:4222") for number in (1, 2, 3)}
    _say(tried=len(answers), open=[name for name, is_open in answers.items() if is_open], nodes=nodes)
    return 0 if all(nodes.values()) and not any(answers.values()) else 1


def main() -> int:
    """Run one part; the exit code says whether it went as it must."""
    parser = argparse.ArgumentParser(prog="python -m infra.docker.smoke", description=__doc__)
    parts = parser.add_subparsers(dest="part", required=True)
    parts.add_parser("person")
    speaking = parts.add_parser("agent")
    speaking.add_argument("remit")
    speaking.add_argument("key")
    parts.add_parser("probe").add_argument("addresses", nargs="*")
    options = parser.parse_args()
    if options.part == "person":
        return asyncio.run(person())
    if options.part == "probe":
        return asyncio.run(probe(options.addresses))
    return asyncio.run(agent(options.remit, options.key))


if __name__ == "__main__":
    sys.exit(main())

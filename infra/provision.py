"""Makes the streams and durable consumers of the table, and nothing else: `python -m infra.provision`.

Safe to repeat and to run from several places at once. A change that could lose stored messages, or that the broker cannot
make in place, is refused by name and nothing after it is touched. Source: design, bus section 2.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import ssl
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.errors import NoRespondersError
from pydantic import AliasChoices, Field, ValidationError
from pydantic_settings import BaseSettings

from infra.local import key_ring
from infra.nats.changes import ROUTING_KEYS, differences, obstacle
from remit.clock import monotonic
from remit.errors import ConfigurationError, RemitError
from remit.runtime.streams import CONSUMERS, EMBEDDED, REBUILD, STREAMS, ConsumerSpec, Sizing, StreamSpec

if TYPE_CHECKING:
    from collections.abc import Callable

REQUEST_TIMEOUT_S = 5.0
RETRY_S = 0.5
NOT_FOUND = 404
NOT_NOW_CODES = frozenset({10005, 10008, 10009, 10047})
"""No suitable peers, JetStream unavailable, no leader: the nodes of a cluster have not found each other yet. No storage: two
runs at once, for as long as the broker holds the room for both."""
INBOX = b"_IBX.provisioner"


class ProvisionError(RemitError):
    """The broker holds something the table cannot be reconciled with, or refuses it; the message names it."""


class NotNowError(ProvisionError):
    """The broker does not answer or is not able to: repeat, because a cluster that elects its leaders drops requests."""


@dataclass(slots=True)
class Report:
    """What was done to each stream and consumer, by name (`ACTIONS`, `ACTIONS/policy`)."""

    created: list[str] = field(default_factory=list[str])
    updated: list[str] = field(default_factory=list[str])
    unchanged: list[str] = field(default_factory=list[str])

    def lines(self) -> list[str]:
        """Return the report for people, one line a kind."""
        rows = {"created": self.created, "updated": self.updated, "unchanged": self.unchanged}
        return [f"{kind}: {', '.join(names)}" for kind, names in rows.items() if names]


async def provision(nc: Client, sizing: Sizing = EMBEDDED, *, rebuild: bool = False) -> Report:
    """Create what is missing and update what differs; `rebuild` adds the durables of an audit rebuild.

    Raises:
        ProvisionError: an incompatible difference, or an answer that is an error. What came before it stays done.

    """
    report = Report()
    for stream in STREAMS:
        await _stream(nc, stream, sizing, report)
    for consumer in (*CONSUMERS, *(REBUILD if rebuild else ())):
        await _consumer(nc, consumer, sizing, report)
    return report


async def provision_within(nc: Client, sizing: Sizing, *, rebuild: bool = False, wait_s: float) -> Report:
    """Provision, again and again for so many seconds while the broker is not able to.

    Raises:
        ProvisionError: as `provision`, or it still was not.

    """
    deadline = monotonic() + wait_s
    while True:
        try:
            return await provision(nc, sizing, rebuild=rebuild)
        except NotNowError:
            if monotonic() >= deadline:
                raise
            await asyncio.sleep(RETRY_S)


async def _stream(nc: Client, spec: StreamSpec, sizing: Sizing, report: Report) -> None:
    wanted = spec.config(sizing)
    found = await _request(nc, f"STREAM.INFO.{spec.name}", {}, spec.name)
    if found is None:
        await _request(nc, f"STREAM.CREATE.{spec.name}", wanted, spec.name)
        report.created.append(spec.name)
        return
    changed = differences(found["config"], wanted)
    _refuse_incompatible(spec.name, changed)
    if not changed:
        report.unchanged.append(spec.name)
        return
    kept = {key: value for key, value in found["config"].items() if key not in ROUTING_KEYS}
    await _request(nc, f"STREAM.UPDATE.{spec.name}", {**kept, **wanted}, spec.name)
    report.updated.append(f"{spec.name} ({', '.join(sorted(changed))})")


async def _consumer(nc: Client, spec: ConsumerSpec, sizing: Sizing, report: Report) -> None:
    name, wanted = f"{spec.stream}/{spec.durable}", spec.config(sizing)
    found = await _request(nc, f"CONSUMER.INFO.{spec.stream}.{spec.durable}", {}, name)
    if found is None:
        await _write_consumer(nc, spec, wanted, "create")
        report.created.append(name)
        return
    current: dict[str, Any] = found["config"]
    changed = differences(current, wanted)
    _refuse_incompatible(name, changed)
    if not changed:
        report.unchanged.append(name)
        return
    # The rest of the present configuration goes along, so that a pause ("hold executions") outlives an update.
    kept = {key: value for key, value in current.items() if not key.startswith("filter_subject")}
    await _write_consumer(nc, spec, {**kept, **wanted}, "update")
    report.updated.append(f"{name} ({', '.join(sorted(changed))})")


async def _write_consumer(
    nc: Client, spec: ConsumerSpec, config: dict[str, Any], action: Literal["create", "update"]
) -> None:
    body = {"stream_name": spec.stream, "config": config, "action": action}
    await _request(nc, f"CONSUMER.CREATE.{spec.stream}.{spec.durable}", body, f"{spec.stream}/{spec.durable}")


def _refuse_incompatible(name: str, changed: dict[str, tuple[Any, Any]]) -> None:
    for key, (found, wanted) in sorted(changed.items()):
        reason = obstacle(key, found, wanted)
        if reason:
            raise ProvisionError(
                f"{name}: {key} is {found!r}, the table wants {wanted!r}; {reason}. "
                "Nothing was changed here: bring the table in line, or move to a new stream"
            )


async def _request(nc: Client, subject: str, body: dict[str, Any], name: str) -> dict[str, Any] | None:
    """Ask the JetStream API; None means it does not exist.

    The raw API is used because every extra must be sent as an explicit `false`, also those the client does not know.
    """
    try:
        reply = await nc.request(f"$JS.API.{subject}", json.dumps(body).encode(), timeout=REQUEST_TIMEOUT_S)
    except NoRespondersError:
        raise ProvisionError(f"{name}: JetStream does not answer; is it enabled for this account?") from None
    except NatsError as error:
        raise NotNowError(
            f"{name}: no answer to {subject} within {REQUEST_TIMEOUT_S:g} s ({type(error).__name__}); "
            "a missing permission looks the same: is this the provisioner's key?"
        ) from None
    answer: dict[str, Any] = json.loads(reply.data)
    error = answer.get("error")
    if error is None:
        return answer
    if error.get("code") == NOT_FOUND and ".INFO." in subject:
        return None
    kind = NotNowError if error.get("err_code") in NOT_NOW_CODES else ProvisionError
    raise kind(f"{name}: {subject} refused: {error.get('description')} ({error.get('code')}/{error.get('err_code')})")


class ProvisionSettings(BaseSettings):
    """Environment of the job: NATS_URL, REMIT_KEYS_DIR, and for mTLS the three files."""

    nats_url: str = Field(default="nats://127.0.0.1:4222", validation_alias=AliasChoices("REMIT_NATS_URL", "NATS_URL"))
    keys_dir: Path = Field(validation_alias="REMIT_KEYS_DIR")
    tls_ca_file: Path | None = Field(default=None, validation_alias="REMIT_TLS_CA_FILE")
    tls_cert_file: Path | None = Field(default=None, validation_alias="REMIT_TLS_CERT_FILE")
    tls_key_file: Path | None = Field(default=None, validation_alias="REMIT_TLS_KEY_FILE")

    def tls(self) -> ssl.SSLContext | None:
        """Return the client context, when a CA is named."""
        if self.tls_ca_file is None:
            return None
        if self.tls_cert_file is None or self.tls_key_file is None:
            raise ConfigurationError(
                "REMIT_TLS_CA_FILE is set; mutual TLS needs REMIT_TLS_CERT_FILE and REMIT_TLS_KEY_FILE too"
            )
        context = ssl.create_default_context(cafile=str(self.tls_ca_file))
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(self.tls_cert_file, self.tls_key_file)
        return context


async def connect(settings: ProvisionSettings, *, wait_s: float, say: Callable[[str], object]) -> Client:
    """Connect with the provisioner's key, waiting for the broker and saying so.

    Raises:
        ProvisionError: the broker did not accept the connection within `wait_s`.

    """
    deadline, said = monotonic() + wait_s, False
    seed = key_ring.load_nats_seed(settings.keys_dir, "provisioner")
    context = settings.tls()
    while True:
        client = Client()
        try:
            await client.connect(
                settings.nats_url.split(","),
                nkeys_seed_str=seed,
                inbox_prefix=INBOX,
                tls=context,
                tls_handshake_first=context is not None,
                allow_reconnect=False,
                max_reconnect_attempts=1,  # of the first connect too; by default it asks 60 times before it says so
                reconnect_time_wait=1,
                connect_timeout=3,
                error_cb=_ignore,
            )
        except (OSError, NatsError, TimeoutError) as error:
            await client.close()  # nats-py leaves the socket of a refused login open
            if monotonic() >= deadline:
                raise ProvisionError(
                    f"NATS at {settings.nats_url} did not accept the provisioner within {wait_s:g} s "
                    f"({type(error).__name__}: {error}); is it started, and with the keys of {settings.keys_dir}?"
                ) from None
        else:
            return client
        if not said:
            say(f"waiting for NATS at {settings.nats_url}\n")
            said = True
        await asyncio.sleep(RETRY_S)


async def _ignore(_error: Exception) -> None:
    """Refusals are seen where they are awaited; nats-py would log them a second time."""


async def run(settings: ProvisionSettings, sizing: Sizing, *, rebuild: bool, wait_s: float) -> Report:
    """Connect, provision and disconnect."""
    nc = await connect(settings, wait_s=wait_s, say=sys.stderr.write)
    try:
        return await provision_within(nc, sizing, rebuild=rebuild, wait_s=wait_s)
    finally:
        await nc.close()


def main() -> int:
    """Make streams and consumers; prints what was created, updated and unchanged. Exit code 1 when refused."""
    parser = argparse.ArgumentParser(prog="python -m infra.provision", description=main.__doc__)
    parser.add_argument("--replicas", type=int, choices=(1, 3, 5), default=1)
    parser.add_argument("--rebuild", action="store_true", help="also make the durables of an audit rebuild")
    parser.add_argument("--wait", type=float, default=60.0, metavar="SECONDS", help="patience with the broker")
    options = parser.parse_args()
    try:
        settings = ProvisionSettings()  # pyright: ignore[reportCallIssue]  # its fields come from the environment
    except ValidationError as error:
        sys.stderr.write(f"set REMIT_KEYS_DIR to the keys directory: {error.errors()[0]['msg']}\n")
        return 1
    sizing = Sizing(replicas=options.replicas)
    try:
        report = asyncio.run(run(settings, sizing, rebuild=options.rebuild, wait_s=options.wait))
    except (ConfigurationError, ProvisionError, FileNotFoundError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write("".join(f"{line}\n" for line in report.lines()))
    return 0


if __name__ == "__main__":
    sys.exit(main())

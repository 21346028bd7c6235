"""The one subscriber shape: pull, manual ack, no reply, own inbox prefix on both layers, raw bytes.

Every other shape that FastStream offers loses, duplicates or forges something (design, bus section 3, table F1-F12).
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from faststream.middlewares import AckPolicy
from faststream.nats import JStream, NatsBroker, PullSub
from faststream.nats.security import NatsNKey

from remit.errors import ConfigurationError
from remit.events import Event, subject_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from remit.pipeline import Consumption
    from remit.runtime.delivery import Engine, RawHandler
    from remit.runtime.settings import ServiceSettings

FETCH_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pull:
    """One durable to bind: any one of its filters binds it, because the server does the filtering."""

    consumption: Consumption
    subject: str
    workers: int


def build_broker(
    settings: ServiceSettings,
    *,
    service: str,
    nkey_seed: str,
    error_cb: Callable[[Exception], Awaitable[None]],
    closed_cb: Callable[[], Awaitable[None]],
) -> NatsBroker:
    """Return a broker that never gives up reconnecting and reports everything to the callbacks."""
    context = tls_context(settings)
    return NatsBroker(
        settings.nats_url.split(","),
        name=settings.replica or service,
        security=NatsNKey.from_seed(
            nkey_seed, ssl_context=context, use_ssl=context is not None, tls_handshake_first=context is not None
        ),
        inbox_prefix=f"_IBX.{service}",
        max_reconnect_attempts=-1,
        reconnect_time_wait=1,
        connect_timeout=3,
        ping_interval=10,
        max_outstanding_pings=2,
        graceful_timeout=settings.graceful_timeout_s,
        error_cb=error_cb,
        closed_cb=closed_cb,
        apply_types=False,
        logger=None,
    )


def tls_context(settings: ServiceSettings) -> ssl.SSLContext | None:
    """Return the client context for mutual TLS, or None where no certificate authority is named.

    Raises:
        ConfigurationError: the authority is named, the client's own certificate is not.

    """
    if settings.tls_ca_file is None:
        return None
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        raise ConfigurationError(
            "REMIT_TLS_CA_FILE is set; mutual TLS needs REMIT_TLS_CERT_FILE and REMIT_TLS_KEY_FILE too"
        )
    context = ssl.create_default_context(cafile=settings.tls_ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(settings.tls_cert_file, settings.tls_key_file)
    return context


async def _raw(message: Any) -> bytes:  # noqa: ANN401  (FastStream's decoder type)
    """Hand on the bytes: the signature is checked before any parsing."""
    return message.body


def subscribe(broker: NatsBroker, pull: Pull, *, service: str, engine: Engine, work: RawHandler) -> None:
    """Bind a durable to the engine by `workers` pulls of one message each.

    So exactly that many handlers run at once, nothing is prefetched, no slow handler holds up the others, and no message waits
    for a batch to fill: nats-py 2.16 keeps a partial `fetch(n)` until its timeout (ARCHITECTURE.md decision 11).
    """
    consumer = pull.consumption.name

    async def on_message(body: bytes) -> None:  # noqa: ARG001  (FastStream passes the decoded body)
        await engine.on_message(broker.context.get_local("message").raw_message, consumer, work)

    for number in range(1, pull.workers + 1):
        subscriber = broker.subscriber(
            pull.subject,
            stream=JStream(pull.consumption.stream, declare=False),
            durable=pull.consumption.durable,
            pull_sub=PullSub(batch_size=1, timeout=FETCH_TIMEOUT_S),
            ack_policy=AckPolicy.MANUAL,
            no_reply=True,
            decoder=_raw,
            inbox_prefix=f"_IBX.{service}.".encode(),
            title=f"{consumer}/{number}",
        )
        subscriber(on_message)


def announce(broker: NatsBroker, events: tuple[type[Event], ...]) -> None:
    """Show what a service publishes to the drift test; a stream named by text alone would be created or changed (F8)."""
    for event in events:
        broker.publisher(subject_of(event), stream=JStream(event.stream, declare=False))

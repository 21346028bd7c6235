"""One command, one request on `human.<command>`, one reply; no reply within three seconds is *not known*."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import nats
import nats.errors

from remit.cli.output import UNKNOWN, CliError
from remit.commands import REPLY_TIMEOUT_S, Command, Reply, parse_reply

if TYPE_CHECKING:
    from remit.cli.settings import CliSettings

CONNECT_TIMEOUT_S = 3.0
INBOX = b"_IBX.cli"
"""The only reply space the principal `cli` may listen on (design, bus section 9)."""


async def _silent(_: Exception) -> None:
    """Errors of the connection come back as the result of the request."""


async def _request(settings: CliSettings, command: Command) -> Reply:
    client = await nats.connect(
        settings.nats_url.split(","),
        name="remit-cli",
        nkeys_seed_str=settings.seed(),
        inbox_prefix=INBOX,
        tls=settings.tls(),
        tls_handshake_first=settings.tls() is not None,
        allow_reconnect=False,
        max_reconnect_attempts=1,  # otherwise an unreachable server is tried for ever
        reconnect_time_wait=0,
        connect_timeout=int(CONNECT_TIMEOUT_S),
        error_cb=_silent,
    )
    try:
        answer = await client.request(command.subject(), command.to_wire(), timeout=REPLY_TIMEOUT_S)
    finally:
        await client.close()
    return parse_reply(answer.data)


def send(settings: CliSettings, command: Command) -> Reply:
    """Send a command and return its reply.

    Raises:
        CliError: the bus cannot be reached, or nobody answered; the effect is then not known.

    """
    again = f"repeat with --key {command.idempotency_key}"
    try:
        return asyncio.run(asyncio.wait_for(_request(settings, command), CONNECT_TIMEOUT_S + 2 * REPLY_TIMEOUT_S))
    except nats.errors.NoRespondersError:
        raise CliError(f"approval is not running, nothing was decided; {again}", UNKNOWN) from None
    except (TimeoutError, nats.errors.TimeoutError):
        raise CliError(f"no reply from approval: it is not known whether it was decided; {again}", UNKNOWN) from None
    except (OSError, nats.errors.Error, ValueError) as error:
        detail = (
            f"the bus at {settings.nats_url} cannot be used ({type(error).__name__}); check REMIT_NATS_URL and the seed"
        )
        raise CliError(detail, UNKNOWN) from None

"""What every command to approval shares: who is at the keyboard, which key, send, show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from remit.cli import bus, session
from remit.cli.output import CliError, show_reply
from remit.cli.settings import CliSettings
from remit.ids import fresh_key

if TYPE_CHECKING:
    from remit.commands import Command, Reply


def build(command: type[Command], settings: CliSettings, *, key: str, **fields: Any) -> Command:  # noqa: ANN401  (fields of the command)
    """Return a command signed by nobody but carrying the token of whoever is logged in.

    Raises:
        CliError: nobody is logged in, or a field does not fit; the message names it.

    """
    token = session.load(settings).token
    try:
        return command(id_token=token, idempotency_key=key, **fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or command.name
        raise CliError(f"{where}: {first['msg']}") from None


def ask(command: type[Command], *, key: str | None, as_json: bool, **fields: Any) -> Reply:  # noqa: ANN401  (as above)
    """Send one command, show its answer, and exit unless it is ok.

    Raises:
        CliError: it could not be sent, or nobody answered.

    """
    settings = CliSettings()
    key = key or fresh_key()
    reply = bus.send(settings, build(command, settings, key=key, **fields))
    show_reply(reply, as_json=as_json, key=key)
    return reply

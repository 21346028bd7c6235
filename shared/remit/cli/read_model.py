"""The one read of the command line: open approvals from the read model, with the dashboard's reading role."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from remit.cli.output import UNKNOWN, CliError

if TYPE_CHECKING:
    from remit.cli.settings import CliSettings

TIMEOUT_S = 5.0
JSON_COLUMNS = frozenset({"args", "votes"})
COLUMNS = ("action_id", "tier", "action", "resource_id", "agent_name", "human_sub", "approver_group", "expires_at")
"""What a list shows; a card shows `CARD` as well."""
CARD = ("remit_id", "task", "args", "args_digest", "shown_digest", "round", "quorum", "votes", "rule_id", "rationale")
_OPEN = "FROM audit.actions_all WHERE approval_status = 'requested' AND terminal IS NULL"
_PENDING = f"SELECT {', '.join(COLUMNS)} {_OPEN} ORDER BY expires_at LIMIT 200"
_ONE = f"SELECT {', '.join((*COLUMNS, *CARD))} {_OPEN} AND action_id = $1"


def pending(settings: CliSettings) -> list[dict[str, Any]]:
    """Return open approvals, the next to expire first: `COLUMNS`, times as text.

    Raises:
        CliError: DATABASE_URL is missing, or the database does not answer.

    """
    return _fetch(settings, _PENDING)


def one(settings: CliSettings, action_id: str) -> dict[str, Any]:
    """Return one open approval: `COLUMNS` and `CARD`, JSON columns decoded.

    Raises:
        CliError: it is not open, or the database does not answer.

    """
    rows = _fetch(settings, _ONE, action_id)
    if not rows:
        raise CliError(f"no approval is open for action {action_id}; see: remit pending", 1)
    return rows[0]


def _fetch(settings: CliSettings, query: str, *arguments: str) -> list[dict[str, Any]]:
    if settings.database_url is None:
        raise CliError("DATABASE_URL is not set; name the read model, or give --args-digest of what you saw elsewhere")
    try:
        import asyncpg  # noqa: PLC0415  (an extra)
    except ImportError:
        raise CliError("reading the database needs asyncpg: pip install 'remit[postgres]'", UNKNOWN) from None

    async def read(url: str) -> list[dict[str, Any]]:
        connection = await asyncpg.connect(url, timeout=TIMEOUT_S, command_timeout=TIMEOUT_S)
        try:
            rows = await connection.fetch(query, *arguments)
        finally:
            await connection.close(timeout=TIMEOUT_S)
        return [{name: _plain(name, value) for name, value in row.items()} for row in rows]

    try:
        return asyncio.run(read(settings.database_url.get_secret_value()))
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
        raise CliError(
            f"the read model does not answer ({type(error).__name__}); check DATABASE_URL", UNKNOWN
        ) from None


def _plain(name: str, value: object) -> object:
    if name in JSON_COLUMNS and isinstance(value, str):
        return json.loads(value)
    return value if value is None or isinstance(value, str | int | bool | list) else str(value)

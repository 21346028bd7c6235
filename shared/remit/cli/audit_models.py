"""Compares the tables that people read with what the ledger's events add up to; Postgres compares, so both get the same casts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from remit import tables
from remit.ledger_models import is_shown
from remit.ledger_uses import Use
from remit.projection.encoding import to_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import asyncpg
    from sqlalchemy import Table

    from remit.ledger_models import ExpectedAction, RemitFold
    from remit.ledger_proof import Verifier
    from remit.projection.tracking import Row

    Connection = asyncpg.Connection[asyncpg.Record]

CODE = "projection"
PREFETCH = 500
_GRANT = "grant {grant_no} of remit {remit_id}"
CONCEALABLE = ("args", "resource_id")
"""Columns in which the registry may have had values hidden."""


def _names(table: Table, *without: str) -> list[str]:
    return [name for name in table.columns.keys() if name not in without]  # noqa: SIM118  (a collection of columns)


def _differences(table: str, key: tuple[str, ...], columns: list[str], more: str = "") -> str:
    """Return the query for rows that differ from `$1`, with the names of their differing columns; a missing row has none."""
    named = ", ".join(f"CASE WHEN a.{c} IS DISTINCT FROM e.{c} THEN '{c}' END" for c in columns)
    return f"""
    SELECT {", ".join(f"e.{c}" for c in key)}, a.{key[0]} IS NULL AS is_missing,
           array_remove(ARRAY[{named}], NULL) AS differing{more}
    FROM json_populate_recordset(NULL::{table}, $1::json) AS e LEFT JOIN {table} AS a USING ({", ".join(key)})
    WHERE ({", ".join(f"a.{c}" for c in columns)}) IS DISTINCT FROM ({", ".join(f"e.{c}" for c in columns)})
    """


_ACTIONS = _differences(
    "audit.actions_all", ("action_id",), _names(tables.actions_all, "action_id", "flags"), ", a.args, a.resource_id"
)
_REMITS = _differences("audit.remits", ("remit_id",), _names(tables.remits, "remit_id", "last_action_at"))
_GRANTS = _differences(
    "audit.grants", ("remit_id", "grant_no"),
    _names(tables.grants, "remit_id", "grant_no", "used", "last_used_at"),
)  # fmt: skip
_USES = "SELECT remit_id, grant_no, used, last_used_at FROM audit.grants ORDER BY 1, 2"
_LAST_ACTIONS = "SELECT remit_id, agent_id, last_action_at FROM audit.remits ORDER BY 1"


async def compare_actions(
    connection: Connection, verifier: Verifier, remits: RemitFold, settled: Sequence[ExpectedAction]
) -> None:
    """Compare the rows of settled actions."""
    expected = {each.row["action_id"]: each for each in settled}
    rows = [remits.complete(each.row) for each in settled]
    for found in await connection.fetch(_ACTIONS, to_json(rows)):
        each = expected[found["action_id"]]
        for column in _really(found, each):
            verifier.note(each.seq, CODE, f"action {found['action_id']}: {column}")


def _really(found: asyncpg.Record, expected: ExpectedAction) -> list[str]:
    """Return what is wrong with a row, in words; what the registry of its day may have hidden is not wrong."""
    if found["is_missing"]:
        return ["it has events and no row"]
    stored = {"args": json.loads(found["args"]) if found["args"] else None, "resource_id": found["resource_id"]}
    return [
        f"the column {name} is not what its events add up to"
        for name in found["differing"]
        if name not in CONCEALABLE or not is_shown(name, stored[name], expected)
    ]


async def compare_all_actions(connection: Connection, verifier: Verifier) -> None:
    """Compare flags, and find rows of actions that have no events; every expected action must be settled."""
    flags, last_seq = verifier.actions.flags, 0
    query = "SELECT action_id, flags, last_seq FROM audit.actions_all"
    async for row in connection.cursor(query, prefetch=PREFETCH):
        expected, last_seq = flags.get(row["action_id"]), row["last_seq"]
        if expected is None:
            verifier.note(last_seq, CODE, f"action {row['action_id']}: it has a row and no events")
        elif sorted(expected) != row["flags"]:
            verifier.note(
                last_seq, CODE, f"action {row['action_id']}: the column flags is not what its events add up to"
            )
    await _compare_uses(connection, verifier)


async def _compare_uses(connection: Connection, verifier: Verifier) -> None:
    """Hold what grants and remits say about their use against the outcomes and proposals."""
    uses = verifier.actions.uses
    for row in await connection.fetch(_USES):
        use, named = uses.grants.get((row["remit_id"], row["grant_no"]), Use()), _GRANT.format_map(dict[str, Any](row))
        if row["used"] != use.count:
            verifier.note(0, CODE, f"{named}: used says {row['used']}, outcomes are {use.count}")
        if not use.allows(row["last_used_at"]):
            verifier.note(0, CODE, f"{named}: the column last_used_at is not what its events add up to")
    for row in await connection.fetch(_LAST_ACTIONS):
        if uses.proposed.get((row["remit_id"], row["agent_id"])) != row["last_action_at"]:
            told = f"remit {row['remit_id']}: the column last_action_at is not what its events add up to"
            verifier.note(0, CODE, told)


async def compare_remits(connection: Connection, verifier: Verifier) -> None:
    """Compare remits and their grants."""
    fold = verifier.remits
    await _compare(connection, verifier, _REMITS, fold.remits.values(), "remit {remit_id}")
    await _compare(connection, verifier, _GRANTS, fold.grants.values(), _GRANT)
    for row in await connection.fetch("SELECT remit_id, last_seq FROM audit.remits"):
        if row["remit_id"] not in fold.remits:
            verifier.note(row["last_seq"], CODE, f"remit {row['remit_id']}: it has a row and no events")
    for row in await connection.fetch("SELECT remit_id, grant_no FROM audit.grants"):
        if (row["remit_id"], row["grant_no"]) not in fold.grants:
            told = f"{_GRANT.format_map(dict[str, Any](row))}: it has a row and no events"
            verifier.note(_seq(fold, row["remit_id"]), CODE, told)


async def _compare(connection: Connection, verifier: Verifier, query: str, rows: Iterable[Row], name: str) -> None:
    waiting: list[Row] = []
    for row in rows:
        waiting.append(row)
        if len(waiting) >= PREFETCH:
            await _compare_some(connection, verifier, query, waiting, name)
            waiting = []
    await _compare_some(connection, verifier, query, waiting, name)


async def _compare_some(connection: Connection, verifier: Verifier, query: str, rows: list[Row], name: str) -> None:
    for found in await connection.fetch(query, to_json(rows)) if rows else []:
        named, seq = name.format_map(dict[str, Any](found)), _seq(verifier.remits, found["remit_id"])
        if found["is_missing"]:
            verifier.note(seq, CODE, f"{named}: it has events and no row")
            continue
        for column in found["differing"]:
            verifier.note(seq, CODE, f"{named}: the column {column} is not what its events add up to")


def _seq(fold: RemitFold, remit_id: str) -> int:
    """Return the row of a remit's last event, or 0 when it has none."""
    return fold.remits[remit_id]["last_seq"] if remit_id in fold.remits else 0

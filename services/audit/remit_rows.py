"""Writes what a remit event changes: the remit's row and its grants, with the uses that its actions already made.

The two streams are projected side by side, so an action may have its row before its remit has one, and the other way round.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from remit import tables
from remit.projection.encoding import to_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from remit.projection.tracking import Row
    from services.audit.database import Connection

_GRANT_COLUMNS = [name for name in tables.grants.columns.keys() if name not in {"used", "last_used_at", "revoked_at"}]  # noqa: SIM118  (a collection of columns)
_RENEWED = ", ".join(f"{c} = excluded.{c}" for c in _GRANT_COLUMNS if c not in {"remit_id", "grant_no", "granted_at"})

_UPSERT_GRANTS = f"""
INSERT INTO audit.grants ({", ".join(_GRANT_COLUMNS)}, used, last_used_at)
SELECT {", ".join(f"r.{c}" for c in _GRANT_COLUMNS)}, coalesce(u.n, 0), u.at
FROM json_populate_recordset(NULL::audit.grants, $1::json) AS r
LEFT JOIN (SELECT grant_no, count(*) AS n, max(executed_at) AS at FROM audit.actions_all
           WHERE remit_id = $2 AND executed_at IS NOT NULL GROUP BY grant_no) AS u ON u.grant_no = r.grant_no
ON CONFLICT (remit_id, grant_no) DO UPDATE SET {_RENEWED}, revoked_at = NULL
"""
_DROP_GRANTS = """
UPDATE audit.grants SET revoked_at = $3::text::timestamptz WHERE remit_id = $1 AND grant_no > $2 AND revoked_at IS NULL
"""
_CATCH_UP_REMIT = """
UPDATE audit.remits AS r SET last_action_at =
    (SELECT max(a.proposed_at) FROM audit.actions_all AS a WHERE a.remit_id = r.remit_id AND a.agent_id = r.agent_id)
WHERE r.remit_id = $1
"""
_CATCH_UP_ACTIONS = """
UPDATE audit.actions_all AS a SET
    task = r.task, task_shape = r.task_shape, human = coalesce(a.human, r.human),
    human_iss = coalesce(a.human_iss, r.human_iss), human_sub = coalesce(a.human_sub, r.human_sub)
FROM audit.remits AS r
WHERE r.remit_id = $1 AND a.remit_id = r.remit_id AND a.agent_id = r.agent_id AND a.task IS DISTINCT FROM r.task
"""


async def write_remit(connection: Connection, row: Row, grants: list[Row], *, ours: Callable[[str], str]) -> None:
    """Write one remit event: the first one makes the row, later ones change the columns they name.

    `ours` turns a statement over `audit` into one over the schema that is written.
    """

    async def execute(statement: str, *arguments: object) -> None:
        await connection.execute(ours(statement), *arguments)

    remit_id, columns = row["remit_id"], list(row)
    names = ", ".join(columns)
    source = f"SELECT {names} FROM json_populate_record(NULL::audit.remits, $1::json)"
    if "granted_at" in row:
        await execute(f"INSERT INTO audit.remits ({names}) {source}", to_json(row))
        await execute(_CATCH_UP_REMIT, remit_id)
    else:
        changed = f"UPDATE audit.remits SET ({names}) = ({source}) WHERE remit_id = $2"
        await execute(changed, to_json(row), remit_id)
    if grants:
        await execute(_UPSERT_GRANTS, to_json(grants), remit_id)
        await execute(_DROP_GRANTS, remit_id, len(grants), grants[0]["granted_at"])
        await execute(_CATCH_UP_ACTIONS, remit_id)
    if row.get("status") == "revoked":
        await execute(_DROP_GRANTS, remit_id, 0, row["ended_at"])

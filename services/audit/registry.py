"""Shows the registry: the bundle in force becomes the tables `tools` and `agents`, and names what is hidden in arguments.

A copy for people; nothing is decided from it.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

from remit import tables
from remit.errors import StaleBundleError
from remit.projection.encoding import to_json
from remit.projection.fields import clean, clean_or_none
from services.audit.database import Pool, answering

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from datetime import datetime

    from remit.evaluation import CompiledBundle
    from remit.evaluation.actions import CompiledAction
    from remit.projection.tracking import Row

LOOK_EVERY_S = 5.0
WIDTH_EVERY = timedelta(hours=24)
"""Grant width is looked at in weeks (design, dashboard section 3.7: a nightly job)."""
MAX_DESCRIPTION = 4_000

_TOOL_COLUMNS = ", ".join(name for name in tables.tools.columns.keys())  # noqa: SIM118  (a collection of columns)
_TOOLS = f"""
INSERT INTO audit.tools ({_TOOL_COLUMNS})
SELECT {_TOOL_COLUMNS} FROM json_populate_recordset(NULL::audit.tools, $1::json)
"""
_AGENTS = """
INSERT INTO audit.agents (agent_id, name, client_id, owner, runtime, model, config_digest, state, bundle_version)
SELECT agent_id, name, client_id, owner, runtime, model, config_digest, state, bundle_version
FROM json_populate_recordset(NULL::audit.agents, $1::json)
ON CONFLICT (agent_id) DO UPDATE SET
    name = excluded.name, client_id = excluded.client_id, owner = excluded.owner, runtime = excluded.runtime,
    model = excluded.model, config_digest = excluded.config_digest, state = excluded.state,
    bundle_version = excluded.bundle_version
"""
_GONE = "UPDATE audit.agents SET state = 'removed' WHERE bundle_version IS NOT NULL AND bundle_version < $1"
# Which resources an unconstrained grant reaches is estimated from everything ever seen on the action; a constrained one is
# known to its tool alone and stays null, "not checked".
_WIDTH = """
WITH used AS (
    SELECT g.agent_id, g.tool, g.action, g.shape_digest, count(DISTINCT a.resource_id) AS res_used,
           bool_and(g.arguments IS NULL) AS free
    FROM audit.grants AS g
    LEFT JOIN audit.actions AS a ON a.remit_id = g.remit_id AND a.grant_no = g.grant_no AND a.outcome = 'succeeded'
    WHERE g.granted_at >= now() - interval '90 days'
    GROUP BY 1, 2, 3, 4
), reach AS (
    SELECT tool, action, count(DISTINCT resource_id) AS resources FROM audit.actions
    WHERE proposed_at >= now() - interval '90 days' AND resource_id IS NOT NULL GROUP BY 1, 2
)
INSERT INTO audit.grant_width (agent_id, tool, action, shape_digest, res_used, res_matched, computed_at)
SELECT u.agent_id, u.tool, u.action, u.shape_digest, u.res_used, CASE WHEN u.free THEN r.resources END, now()
FROM used AS u LEFT JOIN reach AS r USING (tool, action)
"""


class Registry:
    """Follows the bundle in force."""

    def __init__(self, pool: Pool, *, current: Callable[[], CompiledBundle], clock: Callable[[], datetime]) -> None:
        """Read the bundle where every service reads it."""
        self._pool, self._current, self._clock = pool, current, clock
        self._shown = ""
        self._width_at: datetime | None = None

    def sensitive(self, action: str) -> Collection[str] | None:
        """Return the arguments of `tool.action` that are hidden on display; None, all of them, while nobody can say which."""
        tool, _, name = action.partition(".")
        try:
            found = self._current().action(tool, name)
        except StaleBundleError:
            return None
        return found.sensitive if found else None

    async def run(self) -> None:
        """Keep the tables in step with the bundle, for ever.

        Raises:
            TransientError: Postgres is down or unwilling.

        """
        while True:
            try:
                bundle = self._current()
            except StaleBundleError:
                bundle = None  # What is shown stays; the age of the bundle is the reader's metric.
            if bundle is not None and bundle.digest != self._shown:
                await self.show(bundle)
            if self._width_at is None or self._clock() - self._width_at >= WIDTH_EVERY:
                await self.measure_width()
            await asyncio.sleep(LOOK_EVERY_S)

    async def show(self, bundle: CompiledBundle) -> None:
        """Replace the tables with one bundle; agents that are gone stay, marked removed."""
        tools = [_tool(action, bundle.version) for action in bundle.actions()]
        agents = [
            {
                "agent_id": clean(agent.id),
                "name": agent.name,
                "client_id": clean(agent.client_id),
                "owner": clean(agent.owner),
                "runtime": clean(agent.runtime),
                "model": clean(f"{agent.model_family} {agent.model_version}"),
                "config_digest": clean(agent.config_digest),
                "state": "active",
                "bundle_version": bundle.version,
            }
            for agent in bundle.content.agents.values()
        ]
        with answering():
            async with self._pool.acquire() as connection, connection.transaction():
                await connection.execute("DELETE FROM audit.tools")
                await connection.execute(_TOOLS, to_json(tools))
                await connection.execute(_AGENTS, to_json(agents))
                await connection.execute(_GONE, bundle.version)
        self._shown = bundle.digest

    async def measure_width(self) -> None:
        """Compute how much of each grant shape was used."""
        with answering():
            async with self._pool.acquire() as connection, connection.transaction():
                await connection.execute("DELETE FROM audit.grant_width")
                await connection.execute(_WIDTH)
        self._width_at = self._clock()


def _tool(action: CompiledAction, version: int) -> Row:
    tool, entry = action.tool, action.entry
    return {
        "tool": tool.tool,
        "action": action.name,
        "tier": int(entry.risk[1]),
        "effect": entry.effect,
        "reversibility": entry.reversibility,
        "idempotency": entry.idempotency,
        "environment": clean(tool.environment),
        "owner": clean(tool.owner),
        "connector": tool.connector,
        "resource": clean(tool.resource),
        "description": clean(entry.description, MAX_DESCRIPTION),
        "summary": clean_or_none(entry.summary),
        "sinks": list(action.sinks),
        "sensitive": sorted(action.sensitive),
        "resource_argument": action.resource_argument,
        "arguments": entry.arguments,
        "schema_digest": action.schema_digest,
        # The projector sees no live tool: null means "not checked".
        "live_digest": None,
        "bundle_version": version,
    }

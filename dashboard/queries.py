"""Every read of the dashboard: SQL over schema `audit`, typed rows out, one read-only connection each.

The names of columns in a statement are the names of the row's fields; values are always bound.
Source: design, dashboard section 3.11.
"""

from __future__ import annotations

from dataclasses import fields
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

from sqlalchemy import text

from dashboard import sql
from dashboard.model.rows import (
    ActionRow,
    AgentRow,
    Cursor,
    EventRow,
    FoundRow,
    GrantRow,
    History,
    LatencyRow,
    QueueItem,
    RegisteredAction,
    RemitRow,
    SwitchRow,
    TodayRow,
    ToolInfo,
    ToolRow,
    VerdictCount,
    Vote,
)
from dashboard.model.search import like
from remit.clock import now

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Engine

    from dashboard.model.search import Query
    from dashboard.model.viewer import Viewer

HISTORY = timedelta(days=90)
STAGES = ("policy", "approval", "tokens", "executor", "total")
"""Stages in pipeline order; what an executor measured beside them is shown on one action only."""
Row = TypeVar("Row")


class Queries:
    """Reads of the pages. Each opens a connection of its own; nothing is held between two of them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def close(self) -> None:
        """Give all connections back."""
        self._engine.dispose()

    def _all(self, statement: str, kind: type[Row], **values: Any) -> list[Row]:  # noqa: ANN401  (bound parameters)
        with self._engine.connect() as connection:
            found = connection.execute(text(statement), values).mappings().all()
        return [_typed(kind, dict(row)) for row in found]

    def _first(self, statement: str, kind: type[Row], **values: Any) -> Row | None:  # noqa: ANN401  (the same)
        return next(iter(self._all(statement, kind, **values)), None)

    def cursor(self) -> Cursor:
        """Return how far the read model has come; an empty one before the projector ran."""
        return self._first(sql.CURSOR, Cursor) or Cursor(version="", touched_at=None, position=0)

    def queue(self, person: Viewer | None) -> list[QueueItem]:
        """Return what waits for a person's groups or is done for them (None: all), the riskiest first, then the most urgent."""
        human, groups = (person.key, sorted(person.roles)) if person else (None, [])
        return self._all(sql.QUEUE, QueueItem, human=human, groups=groups)

    def action(self, action_id: str) -> ActionRow | None:
        """Return one action, decided or not."""
        return self._first(sql.ACTION, ActionRow, action_id=action_id)

    def history(self, row: ActionRow) -> History:
        """Return what people decided about calls like this one, and the last approved call to compare with."""
        found = self._first(
            sql.HISTORY,
            History,
            action_id=row.action_id,
            agent_id=row.agent_id,
            since=now() - HISTORY,
            **_named(row.name),
        )
        return found or History(
            approved=0, denied=0, last_denied_at=None, previous_args=None, previous_at=None, waiting_alike=0
        )

    def tool(self, name: str) -> ToolInfo | None:
        """Return what the registry says about an action, if it is registered."""
        return self._first(sql.TOOL, ToolInfo, **_named(name))

    def registry(self) -> list[RegisteredAction]:
        """Return every action that can be granted."""
        return self._all(sql.REGISTRY, RegisteredAction)

    def remit(self, remit_id: str) -> RemitRow | None:
        """Return one delegation, ended or not."""
        return self._first(sql.REMIT, RemitRow, remit_id=remit_id)

    def remits(self, human: str | None) -> list[RemitRow]:
        """Return the active delegations of one person (`<iss>|<sub>`), or of everybody."""
        return self._all(sql.REMITS, RemitRow, human=human)

    def grants(self, remit_id: str) -> list[GrantRow]:
        """Return the grants of a remit with their use."""
        return self._all(sql.GRANTS, GrantRow, remit_id=remit_id)

    def today(self, start: datetime, stop: datetime) -> TodayRow:
        """Return the counts of a range."""
        return self._all(sql.TODAY, TodayRow, start=start, stop=stop)[0]

    def verdicts(self, start: datetime, stop: datetime, bucket: timedelta) -> list[VerdictCount]:
        """Return verdicts by time bucket."""
        return self._all(sql.VERDICTS, VerdictCount, start=start, stop=stop, bucket=bucket)

    def latency(self, start: datetime, stop: datetime) -> list[LatencyRow]:
        """Return the durations of the stages, in pipeline order."""
        found = self._all(sql.LATENCY, LatencyRow, start=start, stop=stop, stages=list(STAGES))
        return sorted(found, key=lambda row: STAGES.index(row.stage))

    def top_tools(self, start: datetime, stop: datetime) -> list[ToolRow]:
        """Return the most used actions by agent, beside the range before."""
        return self._all(sql.TOP_TOOLS, ToolRow, start=start, stop=stop, prev=start - (stop - start))

    def search(self, query: Query) -> list[FoundRow]:
        """Return the newest actions a search means."""
        values = {
            "exact": query.text,
            "anywhere": f"%{like(query.text)}%",
            "start": f"{like(query.text)}%",
            "digest_start": f"sha-256:{like(query.text.removeprefix('sha-256:'))}%",
            "by_digest": query.also_digest,
        }
        return self._all(sql.SEARCH[query.kind], FoundRow, **values)

    def events(self, action_id: str) -> list[EventRow]:
        """Return what is recorded of one action, in stream order."""
        return self._all(sql.EVENTS, EventRow, action_id=action_id)

    def switches(self) -> list[SwitchRow]:
        """Return the engaged kill switches, the newest first."""
        return self._all(sql.SWITCHES, SwitchRow)

    def agents(self) -> list[AgentRow]:
        """Return the agents that are registered or were seen."""
        return self._all(sql.AGENTS, AgentRow)


def _typed(kind: type[Row], found: dict[str, Any]) -> Row:
    """Build a row; arrays become tuples, votes their own type."""
    if "votes" in found:
        found["votes"] = tuple(_vote(item) for item in found["votes"] or ())
    if kind is ActionRow:
        found["scopes"] = tuple(tuple(found.pop(f"scopes_{name}") or ()) for name in ("requested", "granted", "used"))
    json_fields = {"args", "arguments", "previous_args"}
    make: Any = kind
    values = {
        item.name: tuple(value)
        if isinstance(value := found[item.name], list) and item.name not in json_fields
        else value
        for item in fields(make)
    }
    return cast("Row", make(**values))


def _named(name: str) -> dict[str, str]:
    tool, _, action = name.partition(".")
    return {"tool": tool, "action": action}


def _vote(item: dict[str, Any]) -> Vote:
    return Vote(human=str(item.get("by", "")), at=None)

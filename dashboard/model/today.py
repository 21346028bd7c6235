"""The sentence and numbers of Today: a template over counts; no model writes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dashboard.model import words

if TYPE_CHECKING:
    from dashboard.model.rows import TodayRow


def _plural(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def sentence(row: TodayRow) -> str:
    """Return the state of autonomous work in two sentences."""
    if row.n == 0:
        return "No agent activity in this range."
    who = f"{_plural(row.agents, 'agent', 'agents')} for {_plural(row.humans, 'person', 'people')}"
    verdicts = (
        f"{words.percent(row.by_rule, row.n)} ran by rule, {words.percent(row.asked, row.n)} asked a person, "
        f"{words.percent(row.blocked, row.n)} were blocked."
    )
    return f"{_plural(row.n, 'action', 'actions')} by {who}. {verdicts} {_results(row)}"


def _results(row: TodayRow) -> str:
    compared = row.matched + row.differs
    if not compared:
        found = "No result was compared with its approval yet"
    elif row.differs:
        verb = "differs" if row.differs == 1 else "differ"
        found = f"{words.percent(row.matched, compared)} of results matched what was approved; {row.differs} {verb}"
    else:
        found = f"All {compared:,} compared results matched what was approved"
    wait = f" Median wait for a person {words.duration(row.wait_p50_ms / 1000)}." if row.wait_p50_ms is not None else ""
    return f"{found}.{wait}"

"""Charts as plain option data for ECharts: one axis of time, one series a verdict, nothing derived from foreign text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dashboard.model.words import VERDICTS

if TYPE_CHECKING:
    from datetime import datetime

    from dashboard.model.rows import LatencyRow, VerdictCount


def verdicts_over_time(rows: list[VerdictCount], start: datetime, stop: datetime) -> dict[str, Any]:
    """Return a stacked bar chart of verdicts by time bucket, over the whole range even where nothing happened."""
    times = sorted({row.at for row in rows})
    counts = {(row.at, row.verdict): row.n for row in rows}
    series = [
        {
            "type": "bar",
            "stack": "verdicts",
            "name": word,
            "barMaxWidth": 28,
            "data": [[at.isoformat(), counts.get((at, verdict), 0)] for at in times],
        }
        for verdict, word in VERDICTS.items()
    ]
    return {
        "aria": {"enabled": True},
        "animation": False,
        "grid": {"left": 40, "right": 12, "top": 32, "bottom": 28},
        "legend": {"top": 0, "left": 0, "itemWidth": 12, "itemHeight": 12},
        "tooltip": {"trigger": "axis"},
        "xAxis": {"type": "time", "min": start.isoformat(), "max": stop.isoformat()},
        "yAxis": {"type": "value", "minInterval": 1},
        "series": series,
    }


def latency_by_stage(rows: list[LatencyRow]) -> dict[str, Any]:
    """Return a horizontal bar chart: median and 95th percentile of each stage, in milliseconds."""
    stages = [row.stage for row in rows][::-1]
    return {
        "aria": {"enabled": True},
        "animation": False,
        "grid": {"left": 96, "right": 24, "top": 32, "bottom": 28},
        "legend": {"top": 0, "left": 0, "itemWidth": 12, "itemHeight": 12},
        "tooltip": {"trigger": "axis"},
        "xAxis": {"type": "log", "name": "ms", "nameGap": 6},
        "yAxis": {"type": "category", "data": stages},
        "series": [
            {"type": "bar", "name": "median", "data": [max(1, round(row.p50)) for row in rows][::-1]},
            {"type": "bar", "name": "95th percentile", "data": [max(1, round(row.p95)) for row in rows][::-1]},
        ],
    }

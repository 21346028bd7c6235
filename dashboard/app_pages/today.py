"""Today: is autonomous work healthy, what changed? One sentence, then the numbers behind it."""

from __future__ import annotations

from datetime import timedelta

import streamlit as st

from dashboard import process, session
from dashboard.components.charts import latency_by_stage, verdicts_over_time
from dashboard.components.header import freshness
from dashboard.components.untrusted import untrusted
from dashboard.model import today, words
from remit.clock import now

RANGES = {"24 h": timedelta(hours=24), "7 d": timedelta(days=7), "30 d": timedelta(days=30)}
BUCKETS = {"24 h": timedelta(minutes=30), "7 d": timedelta(hours=6), "30 d": timedelta(days=1)}
session.must_viewer()
backend = process.backend()

chosen = st.segmented_control("Range", list(RANGES), default="24 h", required=True, bind="query-params", key="range")
stop = now()
start = stop - RANGES[chosen]
row = backend.queries.today(start, stop)
st.markdown(today.sentence(row))
st.caption(freshness(backend.queries.cursor()))
if row.n == 0:
    st.markdown("Grant a remit on *Delegate*, and let an agent propose a call.")
    st.stop()

with st.container(horizontal=True, gap="small"):
    st.metric("Actions", f"{row.n:,}", border=True)
    st.metric("By rule", words.percent(row.by_rule, row.n), border=True)
    st.metric("Asked", words.percent(row.asked, row.n), border=True)
    st.metric("Blocked", words.percent(row.blocked, row.n), border=True)
    st.metric(
        "Median wait", words.duration(row.wait_p50_ms / 1000 if row.wait_p50_ms is not None else None), border=True
    )
    st.metric("Matched", words.percent(row.matched, row.matched + row.differs), border=True)
    st.metric("Unknown outcome", f"{row.unknown:,}", border=True)

left, right = st.columns((0.6, 0.4), gap="medium")
with left:
    st.header("Verdicts over time", anchor=False)
    st.echarts_chart(
        verdicts_over_time(backend.queries.verdicts(start, stop, BUCKETS[chosen]), start, stop),
        height=260,
        key="verdicts",
    )
with right:
    st.header("Latency per stage", anchor=False)
    if latency := backend.queries.latency(start, stop):
        st.echarts_chart(latency_by_stage(latency), height=260, key="latency")
    else:
        st.markdown("No action has finished in this range.")

st.header("Most used tools", anchor=False)
st.dataframe(
    [
        {
            "Action": untrusted(tool.name, 80),
            "Agent": untrusted(words.short_agent(tool.agent_id), 60),
            "Proposed": tool.n,
            "Range before": tool.before,
            "Executed, not succeeded": None if tool.not_ok is None else round(100 * tool.not_ok),
        }
        for tool in backend.queries.top_tools(start, stop)
    ],
    column_config={"Executed, not succeeded": st.column_config.NumberColumn(format="%d %%")},
    hide_index=True,
    width="stretch",
)

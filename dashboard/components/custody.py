"""The chain of custody as eight boxes in a row, then its four checks and its events."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from dashboard.components.untrusted import untrusted
from dashboard.model import words
from dashboard.model.custody import boxes, checks

if TYPE_CHECKING:
    from dashboard.model.rows import ActionRow, EventRow, RemitRow

_MARKS = {"done": ":green[●]", "open": ":gray[○]", "missing": ":gray[—]", "bad": ":red[▲]"}


def show_chain(row: ActionRow, remit: RemitRow | None) -> None:
    """Draw human -> agent -> proposed -> policy -> approved -> token -> executed -> result."""
    for column, box in zip(st.columns(8, gap="xsmall"), boxes(row, remit), strict=True):
        with column.container(border=True, gap="xxsmall", height="stretch"):
            st.markdown(f"{_MARKS[box.state]} **{box.title}**")
            st.text(untrusted(box.value, 40))
            st.text(untrusted(box.note, 60))
            st.caption(words.clock(box.at))


def show_checks(row: ActionRow) -> None:
    """Draw the four comparisons; what was not compared says so."""
    for column, check in zip(st.columns(4, gap="small"), checks(row), strict=True):
        with column.container(border=True, gap="xxsmall", height="stretch"):
            color = {"yes": "green", "NO": "red"}.get(check.answer, "gray")
            st.caption(check.question)
            st.markdown(f":{color}[**{check.answer}**]")
            st.text(untrusted(check.found, 80))


def show_events(events: list[EventRow]) -> None:
    """Draw the recorded events in order, with the gap before each."""
    previous = None
    lines: list[dict[str, object]] = []
    for event in events:
        lines.append(
            {
                "Seq": event.seq,
                "Time (UTC)": event.at.strftime("%H:%M:%S.%f")[:-3],
                "After": words.duration(event.at - previous) if previous else "",
                "Event": untrusted(event.type, 60),
                "Signed by": untrusted(event.signed_by or "nobody", 40),
                "Person": untrusted(event.actor or "", 80),
                "Digest": event.digest[:12],
                "In chain": "yes" if event.verify_status == "valid" else untrusted(f"no: {event.verify_status}", 40),
            }
        )
        previous = event.at
    if lines:
        st.dataframe(lines, hide_index=True, width="stretch")
    else:
        st.markdown("The ledger holds no event of this action.")

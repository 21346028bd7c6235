"""The rail of waiting approvals: one button an item, keyed by its id, so that a press can only mean what it shows.

Source: design, dashboard section 4 (Wrong item): a constant key approved the wrong action in 20 of 52 tries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from dashboard.components.untrusted import untrusted
from dashboard.model import words
from remit.clock import now

if TYPE_CHECKING:
    from collections.abc import Callable

    from dashboard.model.rows import QueueItem

MAX_SHOWN = 20


def show_queue(items: list[QueueItem], open_id: str | None, choose: Callable[[str], None]) -> None:
    """Draw the waiting items, the riskiest first, each with its own button; the open one is marked."""
    for item in items[:MAX_SHOWN]:
        with st.container(border=item.action_id == open_id, key=f"item_{item.action_id}", gap="xxsmall"):
            with st.container(horizontal=True, vertical_alignment="center", gap="small"):
                st.badge(words.RISKS.get(item.risk, "△ unknown risk"), color=words.RISK_COLORS.get(item.risk, "red"))  # type: ignore[arg-type]  # colours of our own table
                st.caption(f"{words.until(item.expires_at, now())} left", width="stretch")
                st.button(
                    "Shown" if item.action_id == open_id else "Open",
                    key=f"open_{item.action_id}",
                    on_click=choose,
                    args=(item.action_id,),
                    disabled=item.action_id == open_id,
                    type="tertiary",
                )
            st.text(untrusted(item.name, 60))
            st.text(untrusted(f"{words.short_human(item.human)} → {words.short_agent(item.agent_id)}", 60))
    if len(items) > MAX_SHOWN:
        st.caption(f"{len(items) - MAX_SHOWN} more wait; decide some of these first")

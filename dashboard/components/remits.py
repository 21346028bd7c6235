"""Active delegations with their use, each with its own revoke button."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from dashboard import commands, process, session
from dashboard.components.reply import show_reply
from dashboard.components.untrusted import span, untrusted
from dashboard.model import words
from remit.clock import now

if TYPE_CHECKING:
    from dashboard.model.rows import RemitRow
    from dashboard.model.viewer import Viewer

REVOKED_REASON = "taken back by its owner or an operator"


def show_remits(person: Viewer, *, only_own: bool) -> None:
    """Draw the active remits of one person, or of everybody for operators."""
    rows = process.backend().queries.remits(person.key if only_own else None)
    if not rows:
        st.markdown("You have no active remit." if only_own else "No remit is active: agents can do nothing.")
    for row in rows:
        _one(row)


def _one(row: RemitRow) -> None:
    with st.container(border=True, key=f"remit_{row.remit_id}", gap="xsmall"):
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            who = f"{span(words.short_human(row.human), 60)} → {span(words.short_agent(row.agent_id), 60)}"
            st.markdown(
                f"{who} · {row.calls} of {row.max_calls} calls used · {row.unused} of {row.grants} grants unused · "
                f"{words.until(row.expires_at, now())} left",
                width="stretch",
            )
            reply = st.session_state.get(f"reply_{row.remit_id}")
            if reply is None or reply.status != "ok":
                st.button("Revoke", key=f"revoke_{row.remit_id}", on_click=_revoke, args=(row.remit_id,))
        st.text(untrusted(row.task, 200))
        with st.expander("Grants", key=f"grants_{row.remit_id}", on_change="rerun") as grants:
            if grants.open:
                _grants(row.remit_id)
        if reply is not None:
            show_reply(reply)


def _grants(remit_id: str) -> None:
    for row in process.backend().queries.grants(remit_id):
        limit = "no own limit" if row.max_calls is None else f"{row.used} of {row.max_calls} calls used"
        st.markdown(f"{row.grant_no}. {span(row.name, 80)} · {limit}")
        if row.arguments:
            st.code(untrusted(row.arguments, 2_000), language=None, wrap_lines=True)


def _revoke(remit_id: str) -> None:
    command = commands.revoke("remit", remit_id, REVOKED_REASON, session.token())
    st.session_state[f"reply_{remit_id}"] = process.backend().sender.send(command)

"""Approvals: what needs me now? The queue is live; the open card is pinned and changes only when its own action did.

A press is a request to approval, which verifies the person and compares digest and round; nothing is decided here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from dashboard import commands, process, session
from dashboard.components.card import show_card
from dashboard.components.header import freshness, is_blind
from dashboard.components.live import live_dot
from dashboard.components.queue import show_queue
from dashboard.components.reply import show_reply
from dashboard.components.untrusted import span, untrusted
from dashboard.model import words
from dashboard.model.card import WAITING_STATES, CardState, may_approve, may_deny, state_of
from remit.clock import now

if TYPE_CHECKING:
    from dashboard.model.rows import ActionRow

OPEN = "open_action"
SEEN = "seen_state"
SCOPE = "queue_scope"
backend = process.backend()
person = session.must_viewer()


def choose(action_id: str | None) -> None:
    """Pin the cursor to one action."""
    st.session_state[OPEN] = action_id


def answered(row: ActionRow) -> str:
    """Return where the answer about one round of an action is kept; the next round is a new question."""
    return f"reply_{row.action_id}_{row.round}"


def decide(row: ActionRow, decision: str) -> None:
    """Send one decision about exactly what was drawn; a second press repeats the same request."""
    if decision == "approve":
        command = commands.approve(row, person, session.token())
    else:
        command = commands.deny(row, person, session.token(), st.session_state.get(f"reason_{row.action_id}"))
    st.session_state[answered(row)] = backend.sender.send(command)


def waiting() -> None:
    """Draw the rail, and rerun the page when the open card's own action has moved."""
    cursor = backend.queries.cursor()
    items = backend.queries.queue(person if st.session_state.get(SCOPE, "Mine") == "Mine" else None)
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.markdown(f"**{len(items)} waiting**")
        live_dot(cursor.version)
    st.caption(freshness(cursor))
    show_queue(items, st.session_state.get(OPEN), choose)
    if not items:
        st.markdown("Queue clear.")
        st.caption("New asks appear here by themselves.")
    if st.session_state.get(OPEN) is None and items:
        choose(items[0].action_id)
        st.rerun()
    _follow(st.session_state.get(OPEN))


def _follow(action_id: str | None) -> None:
    # The card stands outside this fragment, so that arrivals never move it under the reviewer.
    if action_id is None:
        return
    row = backend.queries.action(action_id)
    if row is not None and st.session_state.get(SEEN) not in {None, _mark(row)}:
        st.rerun()


def _mark(row: ActionRow) -> tuple[str, int, str, bool]:
    return row.action_id, row.round or 0, str(state_of(row, person, now())), is_blind(backend.queries.cursor())


def card(action_id: str) -> None:
    """Draw the pinned card with its actions."""
    row = backend.queries.action(action_id)
    if row is None:
        st.markdown("This action is not in the read model, or not yet.")
        return
    st.session_state[SEEN] = _mark(row)
    state = state_of(row, person, now())
    remit = backend.queries.remit(row.remit_id)
    with st.container(border=True, key="card"):
        show_card(row, state, remit, backend.queries.history(row), backend.queries.tool(row.name))
        _actions(row, state)


def _actions(row: ActionRow, state: CardState) -> None:
    reply = st.session_state.get(answered(row))
    if state not in WAITING_STATES:
        _closed(row, state)
    elif reply is not None and reply.status == "ok":
        show_reply(reply)
        st.caption("recording: this card changes as soon as the audit service has stored it")
    else:
        if reply is not None:
            show_reply(reply)
        _buttons(row, state)
    if state not in WAITING_STATES or reply is not None:
        st.button("Next waiting", key=f"next_{row.action_id}", on_click=choose, args=(None,))


def _buttons(row: ActionRow, state: CardState) -> None:
    blind = is_blind(backend.queries.cursor())
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        st.button(
            "Approve once",
            key=f"ap_{row.action_id}",
            type="primary",
            on_click=decide,
            args=(row, "approve"),
            disabled=blind or not may_approve(state),
        )
        st.button(
            "Deny",
            key=f"deny_{row.action_id}",
            on_click=decide,
            args=(row, "deny"),
            disabled=not may_deny(state, row, person),
            shortcut="d",
        )
        st.selectbox(
            "Reason for a denial, for the agent (optional)",
            words.DENY_REASONS,
            index=None,
            key=f"reason_{row.action_id}",
            placeholder="no reason",
            width=320,
        )
    if blind:
        st.caption("Approve is off while the read model is behind; Deny is not.")
    _why_not(row, state)


def _why_not(row: ActionRow, state: CardState) -> None:
    groups = " or ".join(span(group, 40) for group in row.approvers)
    notes = {
        CardState.NOT_YOURS: f"Approving needs a member of {groups or 'a group you are not in'}.",
        CardState.OWN_TASK: f"Nobody approves what is done for themselves. A member of {groups or 'another group'} must.",
        CardState.VOTED: f"Your approval counts. One more member of {groups or 'the group'} must approve.",
        CardState.UNINSPECTABLE: "This copy does not hash to what is asked for, so it cannot be approved from here.",
    }
    if state in notes:
        st.markdown(notes[state])


def _closed(row: ActionRow, state: CardState) -> None:
    when = words.ago(row.decided_at or row.last_event_at, now())
    by = f" by {span(words.short_human(row.approver))}" if row.approver else ""
    st.markdown(f"**{words.reason(state).capitalize()}**{by}, {when}.")
    if row.detail:
        st.text(untrusted(row.detail, 400))


# Only fragment reruns compare: within one full run the rail is drawn before the card it would compare with.
st.session_state[SEEN] = None
if requested := st.query_params.get("a"):
    choose(requested)
    del st.query_params["a"]
rail, main = st.columns((0.27, 0.73), gap="medium")
with rail:
    st.segmented_control("Queue", ("Mine", "All"), default="Mine", key=SCOPE, label_visibility="collapsed")
    st.fragment(waiting, run_every=5)()
with main:
    if opened := st.session_state.get(OPEN):
        card(opened)
    else:
        st.markdown("Nothing waits for you.")

"""Investigate: who, which agent, which permission, which tool, and did the result match? One box, then one chain."""

from __future__ import annotations

import streamlit as st

from dashboard import process, session
from dashboard.components.custody import show_chain, show_checks, show_events
from dashboard.components.fields import plain_field
from dashboard.components.untrusted import span, untrusted
from dashboard.model import search, words
from dashboard.model.card import exact_call
from dashboard.model.rows import ActionRow, FoundRow
from remit.canonical import canonical

session.must_viewer()
backend = process.backend()
SHOWN = "investigated"


def show(action_id: str | None) -> None:
    """Pin one action."""
    st.session_state[SHOWN] = action_id


def results(rows: list[FoundRow]) -> None:
    """Draw the actions found, each with its own button."""
    for row in rows:
        with st.container(horizontal=True, vertical_alignment="center", gap="small", key=f"found_{row.action_id}"):
            st.button("Open", key=f"show_{row.action_id}", on_click=show, args=(row.action_id,), type="tertiary")
            st.caption(f"{row.proposed_at:%d %b %H:%M:%S}", width=110)
            st.badge(words.VERDICTS.get(row.verdict or "", "not evaluated"), color="gray", width=80)
            ended = row.outcome or row.status
            differs = "  DIFFERS" if row.match == "differs" else ""
            people = f"{words.short_human(row.human)} → {words.short_agent(row.agent_id)}"
            digest = words.short_digest(row.args_digest)
            st.text(untrusted(f"{row.name}   {people}   {ended}{differs}   {digest}", 200))


def one(row: ActionRow) -> None:
    """Draw one action from human to result."""
    remit = backend.queries.remit(row.remit_id)
    st.header("Chain of custody")
    st.markdown(f"{span(row.name)} · action {span(row.action_id)} · remit {span(row.remit_id)}")
    if remit:
        plain_field("Task", remit.task)
    show_chain(row, remit)
    st.header("Does the result match what was approved?")
    show_checks(row)
    st.header("Timeline")
    show_events(backend.queries.events(row.action_id))
    arguments, result = st.columns(2, gap="medium")
    with arguments:
        st.header("Exact call")
        st.code(untrusted(exact_call(row).text or "(no canonical form)", None), language=None, wrap_lines=True)
    with result:
        st.header("Result")
        if row.result is None:
            st.markdown("No result was recorded.")
        else:
            st.code(untrusted(canonical(row.result).decode(), 8_000), language=None, wrap_lines=True)
        if row.redacted_paths:
            plain_field("Redacted", ", ".join(row.redacted_paths))


st.title("Investigate")
typed = st.text_input(
    "Action, remit, agent, person, tool, digest or token id",
    key="q",
    bind="query-params",
    placeholder="9f31c2…, rem_…, tok_…, bookkeeper, bank.send_money, emma",
    on_change=show,
    args=(None,),
)
query = search.parse(typed or "")
if query.kind == "action" and st.session_state.get(SHOWN) is None:
    show(query.text)
opened = st.session_state.get(SHOWN)
found = backend.queries.action(opened) if opened else None
if found is not None:
    if query.kind != "action":
        st.button("Back to the list", on_click=show, args=(None,), key="back", type="tertiary")
    one(found)
else:
    matches = backend.queries.search(query)
    st.header("Latest actions" if query.kind == "nothing" else "Found")
    if not matches:
        st.markdown("Nothing like this in the read model. Identifiers are searched exactly, names by any part.")
    results(matches)

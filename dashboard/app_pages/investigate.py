"""Investigate: who, which agent, which permission, which tool, and did the result match? One box, then one chain."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from dashboard import process, session
from dashboard.components.custody import show_chain, show_checks, show_events
from dashboard.components.fields import field, plain_field, spans
from dashboard.components.untrusted import span, untrusted
from dashboard.model import search, words
from dashboard.model.card import exact_call

if TYPE_CHECKING:
    from dashboard.model.rows import ActionRow, FoundRow

session.must_viewer()
backend = process.backend()
SHOWN = "investigated"
SHARES = (0.06, 0.13, 0.1, 0.23, 0.2, 0.16, 0.12)


def show(action_id: str | None) -> None:
    """Pin one action."""
    st.session_state[SHOWN] = action_id


def results(rows: list[FoundRow]) -> None:
    """Draw the actions found, each with its own button."""
    with st.container(gap="xxsmall"):
        for row in rows:
            cells = st.columns(SHARES, gap="small", vertical_alignment="center", wrap=False)
            cells[0].button("Open", key=f"show_{row.action_id}", on_click=show, args=(row.action_id,), type="tertiary")
            cells[1].caption(f"{row.proposed_at:%d %b %H:%M:%S}")
            cells[2].badge(words.VERDICTS.get(row.verdict or "", "not evaluated"), color="gray")
            cells[3].text(untrusted(row.name, 48))
            cells[4].text(untrusted(f"{words.short_human(row.human)} → {words.short_agent(row.agent_id)}", 48))
            cells[5].text(
                untrusted(f"{row.result_status or 'open'}{'  DIFFERS' if row.match == 'differs' else ''}", 48)
            )
            cells[6].text(words.short_digest(row.args_digest))


def one(row: ActionRow) -> None:
    """Draw one action from human to result."""
    remit = backend.queries.remit(row.remit_id)
    st.header("Chain of custody", anchor=False)
    st.markdown(f"{span(row.name)} · action {span(row.action_id)} · remit {span(row.remit_id)}")
    if remit:
        plain_field("Task", remit.task, 600)
    show_chain(row, remit)
    st.header("Does the result match what was approved?", anchor=False)
    show_checks(row)
    st.header("Timeline", anchor=False)
    show_events(backend.queries.events(row.action_id))
    arguments, evidence = st.columns(2, gap="medium")
    with arguments:
        st.header("Exact call", anchor=False)
        st.code(untrusted(exact_call(row).text or "(no canonical form)", None), language=None, wrap_lines=True)
    with evidence:
        st.header("Evidence", anchor=False)
        for name, scopes in zip(("Requested", "Granted", "Used"), row.scopes, strict=True):
            field(name, spans(scopes, none="no scopes"))
        field("Result", f"digest {span(words.short_digest(row.result_digest), 20)}")
        field("Redacted", spans(row.redacted_paths, none="nothing"))
        field("Findings", spans(row.flags, none="none"))
        if row.detail:
            plain_field("Detail", row.detail)


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
    st.header("Latest actions" if query.kind == "nothing" else "Found", anchor=False)
    if not matches:
        st.markdown("Nothing like this in the read model. Identifiers are searched exactly, names by any part.")
    results(matches)

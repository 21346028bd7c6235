"""Delegate: what may which agent do for me, and until when? Typed terms, the words they mean, then the grant.

The preview and the grant carry one key, so approval can tell that what it grants is what was shown.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import streamlit as st

from dashboard import commands, process, session
from dashboard.components.header import is_blind
from dashboard.components.remits import show_remits
from dashboard.components.reply import show_reply
from dashboard.components.untrusted import span, untrusted
from dashboard.model import words
from dashboard.model.delegate import TermsError, example, explain, parse_terms
from remit import ids
from remit.clock import now

if TYPE_CHECKING:
    from dashboard.model.rows import RegisteredAction
    from remit.remits import RemitTerms

KEY, TEXT, PREVIEW, GRANTED = "draft_key", "draft_text", "draft_preview", "draft_granted"
person = session.must_viewer()
backend = process.backend()


def changed() -> None:
    """Forget the preview: what was shown is no longer what is typed."""
    st.session_state[PREVIEW] = None
    st.session_state[KEY] = ids.fresh_key()
    st.session_state[GRANTED] = None


def preview() -> None:
    """Ask approval what these terms would grant; it has no effect."""
    try:
        terms = parse_terms(st.session_state[TEXT])
    except TermsError as error:
        st.session_state[PREVIEW] = (None, str(error))
        return
    reply = backend.sender.send(commands.grant(terms, session.token(), key=st.session_state[KEY]))
    st.session_state[PREVIEW] = (terms, reply)


def grant() -> None:
    """Grant exactly the previewed terms."""
    terms, shown = st.session_state[PREVIEW]
    command = commands.grant(terms, session.token(), key=st.session_state[KEY], preview_digest=shown.remit_digest)
    st.session_state[GRANTED] = backend.sender.send(command)


def in_words(terms: RemitTerms) -> None:
    """Draw what would be enforced, computed from the grants."""
    agent = span(words.short_agent(terms.agent_id), 60)
    st.markdown(f"Until {terms.expires_at:%d %b %H:%M} UTC {agent} may, for you:")
    for number, item in enumerate(terms.grants, 1):
        clause = explain(item)
        bounds = " · ".join(span(bound, 120) for bound in clause.bounds)
        st.markdown(f"{number}. {span(clause.name, 80)} {bounds} · {clause.calls}")
        if clause.raw:
            st.caption("no plain words for")
            st.code(untrusted(clause.raw, None), language=None, wrap_lines=True)
    total = "1 call" if terms.max_calls == 1 else f"{terms.max_calls} calls"
    st.markdown(f"Nothing else. {total} in all.")


def draft() -> None:
    """Draw the form and, beside it, its meaning."""
    left, right = st.columns(2, gap="medium")
    with left:
        st.text_area("Terms (YAML or JSON)", key=TEXT, height=380, on_change=changed)
        st.button("Preview", key="preview", on_click=preview)
    with right:
        st.header("In plain words: what will be enforced", anchor=False)
        found = st.session_state.get(PREVIEW)
        if found is None:
            st.caption("Press Preview: the words come from the terms, and approval checks them without granting.")
            return
        terms, reply = found
        if terms is None:
            st.error("The terms cannot be read.")
            st.text(untrusted(reply, 600))
            return
        in_words(terms)
        _grant_button(reply)


def registry(rows: list[RegisteredAction]) -> None:
    """Draw what exists, so that terms need no guessing."""
    if not rows:
        st.markdown("No bundle is applied: every action is denied.")
        return
    lines = [
        {
            "Action": untrusted(row.name, 80),
            "Risk": words.RISKS.get(row.risk, "unknown"),
            "Effect": untrusted(row.effect, 40),
            "Undo": untrusted(row.reversibility, 40),
            "Environment": untrusted(row.environment, 60),
            "Destinations": untrusted(", ".join(row.sinks), 120),
        }
        for row in rows
    ]
    st.dataframe(lines, hide_index=True, width="stretch")


def _grant_button(reply: object) -> None:
    if getattr(reply, "status", None) != "ok":
        show_reply(reply)  # type: ignore[arg-type]  # session state is untyped
        return
    granted = st.session_state.get(GRANTED)
    if granted is not None:
        show_reply(granted)
        if granted.status == "ok":
            st.markdown(f"Remit {span(granted.remit_id)}")
            st.button("New draft", key="new_draft", on_click=changed)
            return
    if not person.is_delegator:
        st.caption("Granting needs the role delegator, which your sign-in does not name.")
    blind = is_blind(backend.queries.cursor())
    st.button("Grant remit", key="grant", type="primary", on_click=grant, disabled=blind)
    if blind:
        st.caption("Grant is off while the read model is behind.")


if KEY not in st.session_state:
    changed()
actions = backend.queries.registry()
if TEXT not in st.session_state:
    agents = backend.queries.agents()
    agent_id = agents[0].agent_id if agents else "spiffe://acme.example/agent/bookkeeper"
    environment = actions[0].environment if actions else backend.environment
    st.session_state[TEXT] = example(agent_id, environment, now(), now() + timedelta(hours=8))
with st.expander("Delegate a task", expanded=True):
    draft()
with st.expander("Actions that can be granted", key="registry"):
    registry(actions)
st.header("Active remits", anchor=False)
# A grant and a revocation appear here when the projector has recorded them, a moment after the answer.
st.fragment(show_remits, run_every=5)(person, only_own=not person.is_operator)

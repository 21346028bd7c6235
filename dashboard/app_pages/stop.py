"""Stop: how do I stop it now? Kill switches for an agent, a tool, a person, a remit, or everything.

Stopping is the safe direction: one preset reason, no waiting. When the answer comes, no later claim can commit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast, get_args

import streamlit as st

from dashboard import commands, process, session
from dashboard.components.reply import show_reply
from dashboard.components.untrusted import span, untrusted
from dashboard.model import words
from remit.commands import RevokeKind

if TYPE_CHECKING:
    from dashboard.model.rows import SwitchRow

KINDS: dict[str, tuple[RevokeKind, str]] = {
    "Agent": ("agent", "spiffe://…/agent/bookkeeper"),
    "Tool": ("tool", "tool.action, such as bank.send_money"),
    "Person": ("human", "issuer|subject"),
    "Remit": ("remit", "rem_…"),
    "Action": ("action", "32 hex characters"),
    "Everything": ("global", "*"),
}
assert {kind for kind, _ in KINDS.values()} == set(get_args(RevokeKind))  # noqa: S101  (a new kind needs a word here)
person = session.must_viewer()
backend = process.backend()


def stop(kind: RevokeKind, target: str | None = None) -> None:
    """Engage one switch; without a target it is the typed one."""
    target = target or ("*" if kind == "global" else cast("str", st.session_state["target"]).strip())
    if not target:
        return
    reason = st.session_state.get("stop_reason") or words.STOP_REASONS[0]
    st.session_state["stop_reply"] = backend.sender.send(commands.revoke(kind, target, reason, session.token()))


def lift(row: SwitchRow) -> None:
    """Release one switch; approval decides who may."""
    command = commands.revoke(cast("RevokeKind", row.kind), row.target, "lifted", session.token(), lift=True)
    st.session_state["stop_reply"] = backend.sender.send(command)


def engage() -> None:
    """Draw the form: what, which one, why, and the button."""
    chosen = st.segmented_control("What", list(KINDS), default="Agent", required=True, key="stop_kind")
    kind, hint = KINDS[chosen]
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        if kind != "global":
            st.text_input("Which one", key="target", placeholder=hint, width=420)
        st.selectbox("Reason", words.STOP_REASONS, key="stop_reason", width=260)
        st.button(f"Stop {chosen.lower()}", key="stop", type="primary", on_click=stop, args=(kind,))
    if (reply := st.session_state.get("stop_reply")) is not None:
        show_reply(reply)
        if reply.status == "unavailable":
            st.markdown("The same act on the command line:")
            st.code("remit revoke --help", language=None)


def engaged() -> None:
    """Draw the switches that are on."""
    rows = backend.queries.switches()
    if not rows:
        st.markdown("Nothing is stopped.")
    for row in rows:
        with st.container(
            border=True, horizontal=True, vertical_alignment="center", key=f"switch_{row.kind}_{row.target}"
        ):
            st.badge(f"stopped {row.kind}", color="red")
            by = f" by {span(words.short_human(row.by), 60)}" if row.by else ""
            st.markdown(f"{span(row.target, 160)} since {words.clock(row.engaged_at)} UTC{by}", width="stretch")
            st.text(untrusted(row.reason or "", 120))
            if row.kind != "remit":
                st.button("Lift", key=f"lift_{row.kind}_{row.target}", on_click=lift, args=(row,))


if not person.is_operator:
    st.markdown("Operators stop anything; you can stop your own remits and actions. Approval checks each request.")
engage()
st.header("Engaged now", anchor=False)
engaged()
st.header("Agents", anchor=False)
for agent in backend.queries.agents():
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key=f"agent_{agent.agent_id}"):
        st.badge("stopped" if agent.is_stopped else "running", color="red" if agent.is_stopped else "gray")
        reach = "1 open remit" if agent.open_remits == 1 else f"{agent.open_remits} open remits"
        st.text(untrusted(f"{agent.agent_id}   {agent.model or ''}   {reach}", 200), width="stretch")
        if not agent.is_stopped:
            st.button("Stop", key=f"stop_{agent.agent_id}", on_click=stop, args=("agent", agent.agent_id))

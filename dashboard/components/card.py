"""The approval card: fields 0 to 9, then the actions. Everything an agent, tool or person wrote is foreign text.

Source: design, dashboard section 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from dashboard.components.fields import field, plain_field, spans
from dashboard.components.untrusted import span, untrusted
from dashboard.model import words
from dashboard.model.card import (
    MAX_INLINE_ARGS,
    WAITING_STATES,
    CardState,
    changes,
    exact_call,
    sentence,
)
from remit.clock import now

if TYPE_CHECKING:
    from dashboard.model.rows import ActionRow, History, RemitRow, ToolInfo

STATES: dict[CardState, tuple[str, str]] = {
    CardState.WAITING: ("waiting for you", "blue"),
    CardState.VOTED: ("you approved, another person must too", "gray"),
    CardState.NOT_YOURS: ("waiting, not yours", "gray"),
    CardState.OWN_TASK: ("your own task: somebody else must approve", "gray"),
    CardState.UNINSPECTABLE: ("uninspectable", "red"),
    CardState.EXPIRED: ("expired, refused", "gray"),
    CardState.DENIED: ("denied", "gray"),
    CardState.WITHDRAWN: ("withdrawn", "gray"),
    CardState.APPROVED: ("approved, token next", "green"),
    CardState.EXECUTING: ("approved, executing", "green"),
    CardState.SUCCEEDED: ("succeeded", "green"),
    CardState.FAILED: ("failed", "red"),
    CardState.UNKNOWN: ("outcome unknown, not retried", "red"),
    CardState.REFUSED: ("refused", "gray"),
    CardState.NOT_ASKED: ("nobody is asked", "gray"),
}


def show_card(
    row: ActionRow, state: CardState, remit: RemitRow | None, history: History, tool: ToolInfo | None
) -> None:
    """Draw the card down to the exact call; the actions below it are the page's."""
    _strip(row, state)
    with st.container(gap="xsmall"):
        _fields(row, state, remit, history, tool)
    _exact(row)


def _fields(row: ActionRow, state: CardState, remit: RemitRow | None, history: History, tool: ToolInfo | None) -> None:
    parts = (span(part.text) if part.is_value else part.text for part in sentence(row, tool.summary if tool else None))
    st.header("What will happen" if state in WAITING_STATES else "What was asked", anchor=False)
    st.markdown("".join(parts))
    field("Effect", _effect(row, tool))
    _changed(row, history)
    field("Asked", _asked(row))
    _for(row, remit)
    field("Permit", _permit(row))
    field("History", _history(history))
    _agent_says(row)


def _strip(row: ActionRow, state: CardState) -> None:
    word, color = STATES[state]
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.badge(words.RISKS.get(row.risk, "△ unknown risk"), color=words.RISK_COLORS.get(row.risk, "red"))  # type: ignore[arg-type]  # colours of our own table
        st.badge(word, color=color)  # type: ignore[arg-type]  # the same
        if state in WAITING_STATES:
            left = words.until(row.expires_at, now())
            st.markdown(f"expires in **{left}** ({words.clock(row.expires_at)} UTC), then refused")
            if row.quorum and row.quorum > 1:
                st.markdown(f"**{len(row.votes)} of {row.quorum}** approvals given")


def _effect(row: ActionRow, tool: ToolInfo | None) -> str:
    undo = words.UNDO.get(tool.reversibility if tool else "", "whether it can be undone is not declared")
    parts = [words.EFFECTS.get(row.effect, "effect not declared"), undo, f"in {span(row.environment, 40)}"]
    if row.resource_id is not None:
        parts.append(f"resource {span(row.resource_id)}")
    return " · ".join(parts)


def _changed(row: ActionRow, history: History) -> None:
    sinks = f" · destination nobody named: {spans(row.unnamed_sinks, none='')}" if row.unnamed_sinks else ""
    if history.previous_at is None:
        field("Changed", f"**First time** for this agent and action{sinks}")
        return
    found = changes(history.previous_args, row.args)
    if not found:
        field("Changed", f"nothing against the last approved call, {words.ago(history.previous_at, now())}{sinks}")
        return
    lines = [f"{span(change.path, 60)} {_side(change.old)} → {_side(change.new)}" for change in found]
    field("Changed", "  \n".join(lines) + sinks)


def _side(value: str | None) -> str:
    return "(absent)" if value is None else span(value, 80)


def _asked(row: ActionRow) -> str:
    rules = spans(row.rule_ids, none="no rule recorded")
    version = f" · bundle v{row.bundle_version}" if row.bundle_version is not None else ""
    groups = f" · may approve: {spans(row.approvers, none='nobody')}" if row.approvers else ""
    return f"{words.reason(row.reason)} by {rules}{version}{groups}"


def _for(row: ActionRow, remit: RemitRow | None) -> None:
    grant = f"grant {row.grant_no}" if row.grant_no is not None else "**no grant covers this**"
    calls = f", {remit.calls} of {remit.max_calls} calls used" if remit else ""
    who = f"{span(words.short_human(row.human), 60)} → {span(words.short_agent(row.agent_id), 60)}"
    field("For", f"{who} · {grant}{calls}")
    if remit:
        plain_field("Task", remit.task)


def _permit(row: ActionRow) -> str:
    where = f" on {span(row.resource_id, 60)}" if row.resource_id is not None else ""
    return f"{span(row.name, 80)}{where} · these exact arguments · 1 use · 60 s"


def _history(history: History) -> str:
    last = f" (last {history.last_denied_at:%d %b})" if history.last_denied_at else ""
    alike = f" · {history.waiting_alike} more like this waiting" if history.waiting_alike else ""
    return f"90 days: {history.approved} approved, {history.denied} denied{last}{alike}"


def _agent_says(row: ActionRow) -> None:
    left, right = st.columns((0.14, 0.86), gap="small", wrap=False)
    left.caption("Agent says")
    with right.container(border=True, gap="xxsmall"):
        st.caption("unverified")
        st.text(untrusted(row.rationale, 280) if row.rationale else "nothing")


def _exact(row: ActionRow) -> None:
    call = exact_call(row)
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.caption("Exact call", width="content")
        st.markdown(f"sha256 {span(words.short_digest(row.args_digest), 20)}", width="content")
        if call.fidelity == "redacted":
            st.badge("secrets taken out of this copy; the digest covers them", color="gray")
        elif call.fidelity == "altered":
            st.badge("this copy does not hash to the digest: do not approve by it", color="red")
    text = untrusted(call.text, None) if call.text else "(no canonical form)"
    st.code(text, language=None, wrap_lines=True, height=320 if call.is_long else "content", width="stretch")
    if call.is_long:
        st.caption(f"longer than {MAX_INLINE_ARGS} bytes: scroll through all of it")

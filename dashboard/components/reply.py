"""Approval's answer to a press, drawn where it was pressed; never painted as success on a guess."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from dashboard.components.untrusted import untrusted
from dashboard.model.replies import answer

if TYPE_CHECKING:
    from remit.commands import Reply


def show_reply(reply: Reply) -> None:
    """Draw the answer: our own title in its tone, approval's detail as plain text."""
    found = answer(reply)
    draw = {"good": st.success, "neutral": st.warning, "bad": st.error}[found.tone]
    draw(found.title)
    if found.detail:
        st.text(untrusted(found.detail, 400))

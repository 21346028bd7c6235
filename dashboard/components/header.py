"""The line above every page: its title, the environment, who is signed in; and how fresh the read model is."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import streamlit as st

from dashboard import process
from dashboard.components.untrusted import untrusted
from dashboard.model import words
from remit.clock import now

if TYPE_CHECKING:
    from dashboard.model.rows import Cursor
    from dashboard.model.viewer import Viewer

STALE_AFTER = timedelta(seconds=10)
"""The projector touches its cursor every 5 s even when idle; older than this is said in amber."""
BLIND_AFTER = timedelta(seconds=15)
"""From here Approve and Grant are disabled, Deny and stopping are not (design, dashboard section 3)."""


def is_blind(cursor: Cursor) -> bool:
    """Return whether the read model is too old to approve by."""
    return cursor.touched_at is None or now() - cursor.touched_at > BLIND_AFTER


def freshness(cursor: Cursor) -> str:
    """Return how old the read model is, in our own markdown."""
    if cursor.touched_at is None:
        return ":orange[the audit service has recorded nothing yet]"
    if now() - cursor.touched_at > STALE_AFTER:
        return f":orange[as of {words.clock(cursor.touched_at)} UTC, the audit service is behind]"
    return f"as of {words.clock(cursor.touched_at)} UTC"


def header(title: str, person: Viewer) -> None:
    """Draw the page's title and, on the same line, where this is and who is signed in as what."""
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.title(title, width="stretch", anchor=False)
        roles = " · ".join(sorted(person.roles)) or "no roles"
        st.text(untrusted(f"{process.backend().environment}  ·  {person.name}  ·  {roles}", 160))
        st.button("Sign out", key="sign_out", on_click=st.logout, type="tertiary")

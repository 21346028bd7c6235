"""The signed-in person of this browser session; checked again on every rerun, because nothing else ends it.

Streamlit fixes `st.user` when the browser connects and keeps its cookie for 30 days, whatever the token says.
Source: design, dashboard section 4 (Identity).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st
from pydantic import SecretStr

from dashboard import process
from dashboard.model.viewer import viewer_of
from remit.clock import now
from remit.errors import ConfigurationError

if TYPE_CHECKING:
    from dashboard.model.viewer import Viewer


def viewer() -> Viewer | None:
    """Return who is signed in, or None when nobody is or the ID token has ended."""
    if not st.user.is_logged_in:
        return None
    found = viewer_of(st.user.to_dict(), process.backend().roles_claim)
    return found if found is not None and found.expires_at > now() and found.iss == process.backend().issuer else None


def must_viewer() -> Viewer:
    """Return who is signed in; a page that runs without the gate stops here.

    Raises:
        ConfigurationError: a page ran without `app.py` before it.

    """
    found = viewer()
    if found is None:
        raise ConfigurationError("nobody is signed in; open the dashboard at its first page")
    return found


def token() -> SecretStr:
    """Return the person's ID token, which travels with each command and goes nowhere else."""
    return SecretStr(st.user.tokens["id"])

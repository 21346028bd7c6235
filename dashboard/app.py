"""Sign-in gate and navigation, nothing else: runs before every page, because pages are not reachable without it.

The pages stand in `app_pages`. In a folder named `pages` Streamlit would serve each of them without this file.
"""

from __future__ import annotations

import streamlit as st

from dashboard import session
from dashboard.components.header import header

PAGES = (
    ("approvals", "Approvals"),
    ("today", "Today"),
    ("delegate", "Delegate"),
    ("investigate", "Investigate"),
    ("stop", "Stop"),
)


def _gate() -> None:
    with st.container(border=True, width=460, key="gate"):
        st.title("Remit", anchor=False)
        if st.user.is_logged_in:
            st.markdown("Your sign-in has ended. Approvals need a fresh one.")
        else:
            st.markdown("Task-shaped authority for AI agents. Sign in to approve, delegate, stop or investigate.")
        st.button("Sign in", type="primary", on_click=st.login, key="sign_in")
    st.stop()


st.set_page_config(page_title="Remit", layout="wide")
person = session.viewer()
if person is None:
    _gate()
else:
    page = st.navigation(
        [
            st.Page(f"app_pages/{name}.py", title=title, url_path=name, default=name == "approvals")
            for name, title in PAGES
        ],
        position="top",
    )
    header(page.title, person)
    page.run()

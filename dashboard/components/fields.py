"""Labelled lines: a constant of ours on the left, on the right our own markdown or foreign text as plain text."""

from __future__ import annotations

import streamlit as st

from dashboard.components.untrusted import span, untrusted

LABEL_SHARE = (0.14, 0.86)


def field(label: str, markdown: str) -> None:
    """Draw a line whose right side is our own markdown; values in it must have gone through `span`."""
    left, right = st.columns(LABEL_SHARE, gap="small", wrap=False)
    left.caption(label)
    right.markdown(markdown)


def plain_field(label: str, value: object, limit: int | None = 280) -> None:
    """Draw a line whose right side is foreign text."""
    left, right = st.columns(LABEL_SHARE, gap="small", wrap=False)
    left.caption(label)
    right.text(untrusted(value, limit))


def spans(values: tuple[str, ...] | list[str], *, none: str) -> str:
    """Return values as code spans in a row, or our own word for none."""
    return " ".join(span(value, 80) for value in values) or none

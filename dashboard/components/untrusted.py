"""Text that other people, agents or tools wrote, made safe to show: nothing in it is invisible, nothing becomes markup.

`untrusted` is for `st.text`, `st.code(language=None)` and dataframe cells. `span` is the only form that may stand inside
our own markdown. No other element ever gets foreign text: headings, labels, captions, alerts, metrics and tables all
render markdown, and an image link in it makes a request. Source: design, dashboard section 4 (Forged text).
"""

from __future__ import annotations

import unicodedata

SHOWN = {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"}
"""Unicode categories made visible: control, bidi and zero-width, unassigned, private, surrogates, separators."""


def untrusted(value: object, limit: int | None = 120) -> str:
    """Return a value as plain text with invisible characters spelled out, cut after `limit` characters."""
    text = unicodedata.normalize("NFC", str(value))
    text = "".join(f"⟨U+{ord(c):04X}⟩" if unicodedata.category(c) in SHOWN and c != "\n" else c for c in text)
    return text if limit is None or len(text) <= limit else f"{text[:limit]}…(+{len(text) - limit})"


def span(value: object, limit: int | None = 120) -> str:
    """Return a value as a code span of our own markdown, which nothing inside it can leave."""
    return "`` " + untrusted(value, limit).replace("`", "ˋ").replace("\n", "⏎") + " ``"  # noqa: RUF001  (looks like it, is not)

"""What a person typed into Investigate's one box: which kind of identifier it can be.

Source: design, dashboard section 3.5.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from remit.ids import ACTION_ID, REMIT_ID

Kind = Literal["action", "remit", "jti", "digest", "agent", "text", "nothing"]
DIGEST = re.compile(r"^(?:sha-256:)?[A-Za-z0-9_-]{8,43}$")
JTI = re.compile(r"^tok_[0-9a-f]{1,32}$")
MAX_LENGTH = 200


@dataclass(frozen=True, slots=True)
class Query:
    """One search: `text` is what to compare with; `also_digest` when it may be the start of a digest as well."""

    kind: Kind
    text: str
    also_digest: bool = False


def parse(typed: str) -> Query:
    """Return what was meant; words that are no identifier search people, agents and tools."""
    text = typed.strip()[:MAX_LENGTH]
    if not text:
        return Query("nothing", "")
    for kind, pattern in (("action", ACTION_ID), ("remit", REMIT_ID), ("jti", JTI)):
        if pattern.match(text):
            return Query(kind, text)  # type: ignore[arg-type]  # the literals of the line above
    if text.startswith("spiffe://"):
        return Query("agent", text)
    if text.startswith("sha-256:"):
        return Query("digest", text, also_digest=True)
    return Query("text", text, also_digest=DIGEST.match(text) is not None)


def like(text: str) -> str:
    """Return the text for a LIKE pattern, none of its characters being a wildcard."""
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")

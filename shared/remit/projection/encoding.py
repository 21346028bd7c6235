"""JSON as Postgres takes it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import orjson

if TYPE_CHECKING:
    from collections.abc import Sequence

    from remit.projection.tracking import Row


def to_json(rows: Sequence[Row] | Row) -> str:
    """Return one JSON text; Postgres text holds no NUL, so its escape becomes that of U+FFFD."""
    try:
        text = orjson.dumps(rows).decode()
    except TypeError:
        text = json.dumps(rows)  # Integers beyond 64 bits: refused long before here, unless a service signs nonsense.
    return text.replace("\\u0000", "\\ufffd")

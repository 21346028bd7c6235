"""Looks for secrets in what is stored or printed: raw, in base64 and base64url at every alignment, and in hexadecimal."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from remit.canonical import b64url_decode
from remit.errors import CanonicalError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    import asyncpg

PUBLIC_FILES = frozenset({"trust.json", "trust.sig", "trust.root"})
SHORTEST = 8
"""A shorter needle would be found anywhere."""
JWS = re.compile(rb"eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{20,}")
"""Any signed token at all; a sealed box does not look like this."""
CHUNK = 1 << 20
TABLES = """
SELECT format('%I.%I', table_schema, table_name) FROM information_schema.tables
WHERE table_schema NOT IN ('pg_catalog', 'information_schema') ORDER BY 1
"""


def spellings(secret: bytes) -> dict[str, bytes]:
    """Return the forms in which a secret may stand; base64 without what depends on its neighbours, for each alignment."""
    found = {"raw": secret, "hex": secret.hex().encode(), "HEX": secret.hex().upper().encode()}
    for shift in range(3):
        encoded = base64.b64encode(b"\x00" * shift + secret)
        inner = encoded[4 if shift else 0 :].rstrip(b"=")[: -1 if (shift + len(secret)) % 3 else None]
        found[f"base64+{shift}"] = inner
        found[f"base64url+{shift}"] = inner.replace(b"+", b"-").replace(b"/", b"_")
    return {form: value for form, value in found.items() if len(value) >= SHORTEST}


@dataclass
class Scanner:
    """Needles by label; `hits` are (where, label, form). A label in `allowed` may stand where the text before ':' says."""

    needles: dict[bytes, tuple[str, str]] = field(default_factory=dict[bytes, tuple[str, str]])
    hits: list[tuple[str, str, str]] = field(default_factory=list[tuple[str, str, str]])
    places: dict[str, int] = field(default_factory=dict[str, int])
    """Bytes that were looked at, by kind of place."""

    def know(self, label: str, secret: str | bytes) -> None:
        """Look for one more secret."""
        raw = secret.encode() if isinstance(secret, str) else secret
        assert len(raw) >= SHORTEST, f"{label} is too short to look for"
        for form, value in spellings(raw).items():
            self.needles.setdefault(value, (label, form))

    def look(self, kind: str, where: str, content: bytes) -> None:
        """Search one piece of content."""
        self.places[kind] = self.places.get(kind, 0) + len(content)
        self.hits += [
            (f"{kind} {where}", label, form) for value, (label, form) in self.needles.items() if value in content
        ]
        self.hits += [(f"{kind} {where}", "a signed token", "raw")] * bool(JWS.search(content))

    def look_at_files(self, kind: str, files: Iterable[Path]) -> None:
        """Search whole files, in pieces that overlap."""
        longest = max(map(len, self.needles), default=1)
        for path in files:
            content = path.read_bytes()
            for start in range(0, max(len(content), 1), CHUNK):
                self.look(kind, path.name, content[max(0, start - longest) : start + CHUNK])

    async def look_at_database(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        """Search every column of every table and view, bytes as they are and everything else as text."""
        for (table,) in await connection.fetch(TABLES):
            for row in await connection.fetch(f"SELECT * FROM {table}"):
                for column, value in row.items():
                    if value is not None:
                        content = value if isinstance(value, bytes) else str(value).encode()
                        self.look("table", f"{table}.{column}", content)

    def unexpected(self, allowed: Mapping[str, Iterable[str]]) -> set[tuple[str, str, str]]:
        """Return the hits without those that `allowed` lists: label to beginnings of places."""
        return {
            (where, label, form)
            for where, label, form in self.hits
            if not any(where.startswith(place) for place in allowed.get(label, ()))
        }


def private_keys(directory: Path) -> dict[str, list[bytes]]:
    """Return what must never be seen of a key directory, by file: the text, and what it spells in base64url."""
    found: dict[str, list[bytes]] = {}
    for path in sorted(each for each in directory.rglob("*") if each.is_file() and each.name not in PUBLIC_FILES):
        text = path.read_text().strip()
        if not path.name.endswith((".json", ".pem", ".key", ".nk", ".secret", ".password")):
            continue
        found[str(path.relative_to(directory))] = [part for piece in _pieces(path, text) for part in _forms(piece)]
    return found


def _pieces(path: Path, text: str) -> list[str]:
    if path.suffix != ".json":
        return [text]
    document: dict[str, Any] = json.loads(text)
    return [document["seed"]] if "seed" in document else [row["pem"] for row in document["keys"]]


def _forms(piece: str) -> list[bytes]:
    if piece.startswith("-----BEGIN"):
        body = "".join(piece.splitlines()[1:-1])
        return [piece.splitlines()[1].encode(), base64.b64decode(body)[36:68]]
    try:
        raw = b64url_decode(piece)
    except CanonicalError:
        return [piece.encode()]
    return [piece.encode(), raw] if len(raw) >= SHORTEST else [piece.encode()]

"""All rows of the matrix, and what each of them needs of the machine. Source: design, bus section 10."""

from __future__ import annotations

import importlib
import os
import pkgutil
import shutil
import subprocess
from typing import TYPE_CHECKING

from tests.faults import rows as rows_package

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faults.row import Row

RELEASE = frozenset({1, 3, 5, 6, 8, 9, 10, 12, 13, 14, 16, 18, 21, 22, 24, 26, 27, 28, 29, 31, 32, 33, 34, 36, 37, 38})
"""The release minimum of the design."""


def all_rows() -> dict[int, list[Row]]:
    """Return the rows by number, in order; a number may have several (a power cut of NATS, and one of Postgres)."""
    found: list[Row] = []
    for module in pkgutil.iter_modules(rows_package.__path__):
        found.extend(getattr(importlib.import_module(f"{rows_package.__name__}.{module.name}"), "ROWS", ()))
    ordered: dict[int, list[Row]] = {}
    for row in sorted(found, key=lambda row: row.number):
        ordered.setdefault(row.number, []).append(row)
    return ordered


def choose(text: str, rows: dict[int, list[Row]]) -> list[Row]:
    """Return the rows that `release`, `quick`, `all` or a list such as `1,5,8-10` names.

    Raises:
        ValueError: a number without a row, or another word.

    """
    everything = [row for group in rows.values() for row in group]
    if text == "all":
        return everything
    if text == "quick":
        return [row for row in everything if row.quick]
    if text == "release":
        missing = sorted(RELEASE - set(rows))
        if missing:
            raise ValueError(f"the release minimum has no row {', '.join(map(str, missing))}")
        return [row for row in everything if row.number in RELEASE]
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        numbers.extend(range(int(first), int(last or first) + 1))
    unknown = [number for number in numbers if number not in rows]
    if unknown:
        raise ValueError(f"there is no row {', '.join(map(str, unknown))}; there are {', '.join(map(str, rows))}")
    return [row for number in numbers for row in rows[number]]


def _is_root() -> bool:
    return os.geteuid() == 0


def _can(*command: str) -> Callable[[], bool]:
    return lambda: (
        _is_root()
        and shutil.which(command[0]) is not None
        and not subprocess.run(command, capture_output=True, check=False).returncode
    )


NEEDS: dict[str, tuple[Callable[[], bool], str]] = {
    "root": (_is_root, "run as root"),
    "loop": (_can("losetup", "--find"), "run as root where loop devices exist (losetup --find)"),
    "netns": (
        _can("unshare", "--net", "true"),
        "run as root where network namespaces are allowed (unshare --net true)",
    ),
    "mount": (_can("unshare", "--mount", "true"), "run as root where mounts are allowed (unshare --mount true)"),
    "faketime": (lambda: shutil.which("faketime") is not None, "apt-get install faketime"),
    "iptables": (lambda: shutil.which("iptables") is not None, "apt-get install iptables"),
}


def unmet(row: Row) -> list[str]:
    """Return the remedies for what a row needs and this machine does not offer."""
    return [remedy for name in row.needs for offered, remedy in (NEEDS[name],) if not offered()]

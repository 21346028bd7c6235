"""The next release of a service: it reads version 2 of one event beside version 1, and writes version 2 where it is the writer.

`python -m tests.faults.rigs.next_version FOLDER python -m MODULE ...` runs MODULE; a service forked from it is the next release
if FOLDER holds a file of its name at that moment. So a rolling upgrade is: put the file there, restart the replicas one by one.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from remit.events import ActionEvaluated
from tests.faults.rigs.birth import at_birth, become

if TYPE_CHECKING:
    from collections.abc import Generator

NEXT = "io.remit.action.evaluated.v2"
BOTH = Literal["io.remit.action.evaluated.v1", "io.remit.action.evaluated.v2"]


@dataclass(frozen=True, slots=True)
class Releases:
    """Which release the processes of a service are that start from now on; at first all are the current one."""

    folder: Path

    def set(self, service: str, *, is_next: bool) -> None:
        """Choose; processes that run stay what they are."""
        if is_next:
            (self.folder / service).touch()
        else:
            (self.folder / service).unlink(missing_ok=True)

    def prefix(self) -> tuple[str, ...]:
        """Return the command prefix of every service."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return (sys.executable, "-m", "tests.faults.rigs.next_version", str(self.folder))


def upgrade() -> None:
    """Let this process read both versions and write the newer one."""
    _change(BOTH, NEXT)


@contextmanager
def reading_both() -> Generator[None]:
    """Let this process read both versions inside the block, as whoever proves the ledger afterwards must."""
    field = ActionEvaluated.model_fields["type"]
    annotation, default = field.annotation, field.default
    _change(BOTH, default)
    try:
        yield
    finally:
        _change(annotation, default)


def _change(annotation: Any, default: str) -> None:
    field = ActionEvaluated.model_fields["type"]
    field.annotation, field.default = annotation, default
    ActionEvaluated.model_rebuild(force=True)


def main() -> None:
    """Let every fork look which release it is, then become the module."""
    folder, *command = sys.argv[1:]

    def choose(service: str) -> None:
        if (Path(folder) / service).exists():
            upgrade()

    at_birth(choose)
    become(command)


if __name__ == "__main__":
    main()

"""What the command line prints and how it exits, so that scripts can rely on it.

Everything printed goes through `visible`: agents, tools and people write the values, and a terminal obeys control characters.
Exit codes: 0 done · 1 refused (decided, stale, forbidden, invalid, too late) · 2 wrong usage · 3 log in first ·
4 not known (no reply, unavailable): repeat with the same key.
"""

from __future__ import annotations

import json
import unicodedata
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, Never, ParamSpec

import typer
from rich.console import Console
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from remit.errors import RemitError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from rich.console import ConsoleOptions, RenderableType

    from remit.commands import Reply

OK, REFUSED, USAGE, LOGIN, UNKNOWN = 0, 1, 2, 3, 4
EXIT_BY_STATUS = {"ok": OK, "login_needed": LOGIN, "unavailable": UNKNOWN, "too_early": UNKNOWN}
STYLES = {"ok": "green", "login_needed": "yellow", "unavailable": "yellow", "too_early": "yellow"}

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Key = Annotated[
    str | None,
    typer.Option("--key", help="Idempotency key of an earlier try: repeats the question, never the effect."),
]
Parameters = ParamSpec("Parameters")


INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories that are shown by their number: controls (C0, C1), format characters (bidi, zero width, tags),
surrogates, private use, unassigned, and separators of lines and paragraphs."""
LOOKS_EMPTY = frozenset("\u00a0\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
"""Letters and spaces that take part in a word without being seen, or look like an ordinary space."""


def visible(text: str, *, keep: str = "") -> str:
    """Return text in which nothing hides, moves the cursor or turns the direction of writing.

    Such characters become the escapes of JSON strings, so JSON stays the same JSON; `keep` names exceptions.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        _escaped(each)
        if each not in keep and (unicodedata.category(each) in INVISIBLE or each in LOOKS_EMPTY or _selects(each))
        else each
        for each in text
    )


def _selects(character: str) -> bool:
    """Return whether a character only selects a variation of the one before, so that data could hide in it."""
    return "\ufe00" <= character <= "\ufe0e" or "\U000e0100" <= character <= "\U000e01ef"


def _escaped(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


class _Guarded(Console):
    """Shows by number what would command the terminal, whatever is printed; lines end where the program ends them."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(visible(segment.text, keep="\n"), segment.style)


class CliError(RemitError):
    """Something the person at the keyboard can put right; `code` is the exit code."""

    def __init__(self, message: str, code: int = USAGE) -> None:
        """Keep the exit code."""
        super().__init__(message)
        self.code = code


def console() -> Console:
    """Return standard output."""
    return _Guarded(highlight=False, soft_wrap=True)


def fail(message: str, code: int = USAGE) -> Never:
    """Say what is wrong on standard error and exit."""
    out = _Guarded(stderr=True, highlight=False, soft_wrap=True)
    out.print(Text.assemble(("error: ", "bold red"), visible(message)))
    raise typer.Exit(code)


def note(text: str) -> None:
    """Print a line for the person on standard error, beside what scripts read."""
    typer.echo(visible(text, keep="\n"), err=True)


def reports_errors(command: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """Turn expected errors of a command into one sentence and an exit code instead of a traceback."""

    @wraps(command)
    def wrapped(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except CliError as error:
            fail(str(error), error.code)
        except RemitError as error:
            fail(str(error), USAGE)

    return wrapped


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object on one line."""
    typer.echo(visible(json.dumps(value, ensure_ascii=False)))


def show_reply(reply: Reply, *, as_json: bool, key: str) -> None:
    """Print an answer of approval and exit by its status."""
    if as_json:
        print_json({**reply.model_dump(mode="json", exclude_none=True), "idempotency_key": key})
    else:
        _print_reply(reply, key)
    code = EXIT_BY_STATUS.get(reply.status, REFUSED)
    if code != OK:
        raise typer.Exit(code)


def _print_reply(reply: Reply, key: str) -> None:
    out = console()
    out.print(Text.assemble((reply.status, f"bold {STYLES.get(reply.status, 'red')}"), "  ", visible(reply.detail)))
    rows = {
        "field": reply.field,
        "remit": reply.remit_id,
        "remit digest": reply.remit_digest,
        "votes": None if reply.quorum is None else f"{reply.votes} of {reply.quorum}",
        "bundle": reply.bundle_version,
        "policy version": reply.policy_version,
        "repeat with": f"--key {key}" if reply.status == "unavailable" else None,
    }
    for name, value in rows.items():
        if value is not None:
            # Values are data, never markup: a task or a detail may hold brackets.
            out.print(Text.assemble((f"  {name:<15}", "dim"), visible(str(value))))


def table(columns: Sequence[str], rows: list[list[str]]) -> None:
    """Print rows under headings; cells are data, never markup."""
    shown = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        shown.add_column(column, overflow="fold")
    for row in rows:
        shown.add_row(*(Text(visible(cell)) for cell in row))
    console().print(shown)

"""`remit pending`, `approve`, `deny`, `resolve`: what waits for people, and what they say."""

from __future__ import annotations

import json
from pathlib import Path  # noqa: TC003  (typer reads annotations at run time)
from typing import Annotated, Any, Literal, cast

import typer

from remit.cli import read_model
from remit.cli.asking import ask
from remit.cli.output import CliError, Json, Key, console, print_json, reports_errors, table
from remit.cli.settings import CliSettings
from remit.commands import ApproveCommand, DenyCommand, NarrowCommand, ResolveCommand
from remit.registry_files import load_document

ActionId = Annotated[str, typer.Argument(help="Action id, 32 hexadecimal digits.", show_default=False)]


@reports_errors
def pending(*, as_json: Json = False) -> None:
    """List what waits for an approval, the next to expire first; reads the read model named by DATABASE_URL."""
    rows = read_model.pending(CliSettings())
    if as_json:
        print_json({"pending": rows})
        return
    if not rows:
        console().print("nothing waits")
        return
    columns = list(read_model.COLUMNS)
    table(columns, [[str(row[column]) for column in columns] for row in rows])


@reports_errors
def approve(  # noqa: PLR0913  (the options of one command)
    action_id: ActionId,
    *,
    args_digest: Annotated[
        str | None, typer.Option(help="Digest of the arguments you looked at; without it you are shown them first.")
    ] = None,
    shown_digest: Annotated[
        str | None, typer.Option(help="Digest of the card you looked at; needed at T3 and T4.")
    ] = None,
    round_: Annotated[
        int | None, typer.Option("--round", min=1, help="Round of the approval you looked at; needed at T3 and T4.")
    ] = None,
    narrow: Annotated[
        Path | None, typer.Option(help="YAML or JSON file with a stricter JSON Schema over the arguments.")
    ] = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Approve one call, with exactly the arguments you saw.

    With DATABASE_URL the call is shown and you are asked; without it, give --args-digest (at T3 and T4 also --shown-digest
    and --round) of what you saw elsewhere.
    Nobody approves what is done for themselves, and a quorum needs different people.
    """
    fields: dict[str, Any] = {"args_digest": args_digest, "shown_digest": shown_digest, "version": round_}
    if args_digest is None:
        fields = _look(action_id, as_json=as_json)
    fields["action_id"] = action_id
    if narrow is None:
        ask(ApproveCommand, key=key, as_json=as_json, **fields)
    else:
        ask(NarrowCommand, key=key, as_json=as_json, narrowing=_schema(narrow), **fields)


def _look(action_id: str, *, as_json: bool) -> dict[str, Any]:
    """Show the call, ask, and return what binds the approval to what was shown; nobody approves unseen."""
    if as_json:
        raise CliError("--json does not ask; give the --args-digest of what you looked at")
    row = read_model.one(CliSettings(), action_id)
    console().print_json(json.dumps(row))
    typer.confirm("Approve exactly this?", abort=True)
    return {"args_digest": row["args_digest"], "shown_digest": row["shown_digest"], "version": row["round"]}


def _schema(path: Path) -> dict[str, Any]:
    found = load_document(path)
    if not isinstance(found, dict):
        raise CliError(f"{path}: expected a JSON Schema, which is a mapping")
    return cast("dict[str, Any]", found)


@reports_errors
def deny(
    action_id: ActionId,
    *,
    reason: Annotated[str | None, typer.Option(help="Goes back to the agent as data.")] = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Refuse one call; its like is then blocked under this remit."""
    ask(DenyCommand, key=key, as_json=as_json, action_id=action_id, reason=reason)


@reports_errors
def resolve(
    action_id: ActionId,
    outcome: Annotated[Literal["succeeded", "failed"], typer.Argument(help="What really happened.")],
    *,
    finding: Annotated[str, typer.Option(help="How you established it; kept as evidence.")],
    key: Key = None,
    as_json: Json = False,
) -> None:
    """State what became of an effect whose outcome is unknown (role operator)."""
    ask(ResolveCommand, key=key, as_json=as_json, action_id=action_id, outcome=outcome, finding=finding)

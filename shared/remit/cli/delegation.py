"""`remit grant`: delegate one task to one agent, after seeing what exactly that would be."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from pathlib import Path  # noqa: TC003  (typer reads annotations at run time)
from typing import Annotated, Any, cast

import typer
from pydantic import ValidationError

from remit.cli import bus
from remit.cli.asking import build
from remit.cli.output import CliError, Json, Key, console, reports_errors, show_reply
from remit.cli.settings import CliSettings
from remit.clock import now
from remit.commands import GrantCommand, Reply
from remit.ids import fresh_key
from remit.registry_files import load_document
from remit.remits import RemitDocument, RemitTerms

DURATION = re.compile(r"^([1-9][0-9]{0,4})([mhd])$")
UNITS = {"m": "minutes", "h": "hours", "d": "days"}


@reports_errors
def grant(
    file: Annotated[Path, typer.Argument(help="YAML or JSON file with the terms.", show_default=False)],
    *,
    preview: Annotated[bool, typer.Option("--preview", help="Show what would be granted; no effect.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Grant without asking; for scripts.")] = False,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Grant a remit: one task, one agent, these actions, these arguments, this often, until then.

    The file holds agent_id, task, grants, environment, max_calls, and either not_before and expires_at or
    valid_for (such as 90m, 8h, 2d). You are shown what would be granted before anything is.

    ```yaml
    agent_id: spiffe://acme.example/agent/bookkeeper
    task: Pay the bill in bill-december-2023.txt
    environment: production
    valid_for: 2h
    max_calls: 5
    grants:
      - {type: tool_call, tool: bank, action: read_file, max_calls: 1}
    ```
    """
    settings, terms, key = CliSettings(), read_terms(file), key or fresh_key()
    shown = bus.send(settings, build(GrantCommand, settings, key=key, terms=terms, phase="preview"))
    if preview or shown.status != "ok":
        _show_terms(shown, as_json=as_json)
        show_reply(shown, as_json=as_json, key=key)
        return
    if not yes:
        _show_terms(shown, as_json=as_json)
        _confirm(as_json=as_json)
    command = build(GrantCommand, settings, key=key, terms=terms, remit_digest=shown.remit_digest)
    show_reply(bus.send(settings, command), as_json=as_json, key=key)


def _confirm(*, as_json: bool) -> None:
    if as_json:
        raise CliError("--json does not ask; add --yes to grant or --preview to look")
    typer.confirm("Grant this?", abort=True)


def _show_terms(reply: Reply, *, as_json: bool) -> None:
    if reply.remit is None or as_json:
        return
    console().print_json(json.dumps(_readable(reply.remit)))


def _readable(document: RemitDocument) -> dict[str, Any]:
    return document.model_dump(mode="json", exclude_none=True)


def read_terms(path: Path) -> RemitTerms:
    """Return the terms of a file.

    Raises:
        CliError: a field is missing, misspelt or of the wrong kind; the message names it.

    """
    found = load_document(path)
    if not isinstance(found, dict):
        raise CliError(f"{path}: expected a mapping with agent_id, task, grants, environment, max_calls, valid_for")
    terms = _with_times(cast("dict[str, Any]", found), path)
    try:
        return RemitTerms.model_validate_json(json.dumps(terms))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "terms"
        raise CliError(f"{path}: {where}: {first['msg']}") from None


def _with_times(terms: dict[str, Any], path: Path) -> dict[str, Any]:
    valid_for = terms.get("valid_for")
    if valid_for is None:
        return terms
    match = DURATION.match(valid_for) if isinstance(valid_for, str) else None
    if match is None:
        raise CliError(f"{path}: valid_for: expected a number of minutes, hours or days, such as 90m, 8h or 2d")
    if "expires_at" in terms or "not_before" in terms:
        raise CliError(f"{path}: valid_for stands in place of not_before and expires_at; give one or the other")
    begins = now()
    ends = begins + timedelta(**{UNITS[match[2]]: int(match[1])})
    rest = {name: value for name, value in terms.items() if name != "valid_for"}
    return {**rest, "not_before": begins.isoformat(), "expires_at": ends.isoformat()}

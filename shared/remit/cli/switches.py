"""`remit revoke` and `remit lift`: stop one thing, or everything behind a switch."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from remit.cli.asking import ask
from remit.cli.output import Json, Key, reports_errors
from remit.commands import RevokeCommand, RevokeKind

Target = Annotated[
    str,
    typer.Argument(
        help="Action id, remit id, SPIFFE id of an agent, `tool.action` or `tool`, `<iss>|<sub>` of a human, or `*` for global.",
        show_default=False,
    ),
]
Why = Annotated[str, typer.Option("--reason", help="Kept as evidence and shown to people.")]


@reports_errors
def revoke(
    kind: Annotated[RevokeKind, typer.Argument(help="What to stop.", show_default=False)],
    target: Target,
    *,
    reason: Why,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Stop something: when this answers ok, no later call can start.

    An action and a remit stay revoked; agent, tool, human and global are switches that an operator can lift. You may
    always revoke your own remits and what runs under them; everything else needs the role operator. An answer
    revoke_too_late means that the call was already being made.
    """
    ask(RevokeCommand, key=key, as_json=as_json, kind=kind, target=target, reason=reason)


@reports_errors
def lift(
    kind: Annotated[
        Literal["agent", "tool", "human", "global"], typer.Argument(help="Which switch.", show_default=False)
    ],
    target: Target,
    *,
    reason: Why,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Release a switch that was engaged (role operator)."""
    ask(RevokeCommand, key=key, as_json=as_json, kind=kind, target=target, reason=reason, lift=True)

"""`remit login` and `remit whoami`: who is at the keyboard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from remit.cli import session
from remit.cli.login import login as run_login
from remit.cli.output import Json, console, note, print_json, reports_errors, visible
from remit.cli.settings import CliSettings

TokenFile = Annotated[
    Path | None, typer.Option("--token-file", help="Use an ID token obtained elsewhere (or REMIT_ID_TOKEN_FILE).")
]


@reports_errors
def login(
    *,
    port: Annotated[
        int, typer.Option(help="Loopback port of the redirect, for providers that want it registered; 0 is any.")
    ] = 0,
    browser: Annotated[bool, typer.Option(help="Open the browser, or only print the address.")] = True,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Log in at the OpenID provider and keep the ID token, readable by you alone.

    Needs REMIT_OIDC_ISSUER and, unless it is remit-cli, REMIT_OIDC_CLIENT_ID. The login uses the authorization
    code flow with PKCE; approval verifies the token again on every command. Automation brings its own token with
    --token-file or REMIT_ID_TOKEN_FILE.
    """
    settings = CliSettings()
    if token_file is None:
        token = run_login(settings, port=port, browser=browser, say=note)
    else:
        token = session.load(settings, token_file).token.get_secret_value()
    session.save(token)
    _show(session.load(settings, session.token_path()), as_json=as_json)


@reports_errors
def whoami(*, token_file: TokenFile = None, as_json: Json = False) -> None:
    """Show who is logged in, as the token itself says; approval verifies it on every command.

    Roles decide what you may do: delegator grants remits, group names approve, operator revokes and resolves, admin
    applies the registry.
    """
    _show(session.load(CliSettings(), token_file), as_json=as_json)


def _show(found: session.Session, *, as_json: bool) -> None:
    claims = found.claims
    shown = {
        "iss": claims.get("iss"),
        "sub": claims.get("sub"),
        "name": claims.get("name"),
        "roles": claims.get("roles", []),
        "expires_at": found.expires_at.isoformat() if found.expires_at else None,
    }
    if as_json:
        print_json(shown)
        return
    for name, value in shown.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        console().print(Text.assemble((f"{name:<12}", "dim"), visible(text)))

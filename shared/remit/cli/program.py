"""The commands of `remit` in one place; `remit audit` joins them when its packages are installed."""

from __future__ import annotations

import typer

from remit.cli import account, decisions, delegation, registry, switches
from remit.cli.output import UNKNOWN, fail

app = typer.Typer(
    name="remit",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Task-shaped authority for AI agents: delegate, decide, revoke, prove.\n\n"
    "Commands travel as requests to the approval service, which verifies who you are by your ID token (remit login). "
    "Every command takes --json. Exit codes: 0 done, 1 refused, 2 wrong usage, 3 log in first, "
    "4 not known: repeat with the same --key.",
)
WHO, WORK, RUN = "Who you are", "Delegate and decide", "Operate"
app.command(rich_help_panel=WHO)(account.login)
app.command(rich_help_panel=WHO)(account.whoami)
app.command(rich_help_panel=WORK)(delegation.grant)
app.command(rich_help_panel=WORK)(decisions.pending)
app.command(rich_help_panel=WORK)(decisions.approve)
app.command(rich_help_panel=WORK)(decisions.deny)
app.command(rich_help_panel=RUN)(switches.revoke)
app.command(rich_help_panel=RUN)(switches.lift)
app.command(rich_help_panel=RUN)(registry.apply)
app.command(rich_help_panel=RUN)(decisions.resolve)


def _add_audit() -> None:
    try:
        from remit.cli.audit import audit_app  # noqa: PLC0415  (its dependencies are extras)
    except ImportError as error:
        _explain_audit(error.name or "a dependency")
    else:
        app.add_typer(audit_app, name="audit", rich_help_panel=RUN)


def _explain_audit(missing: str) -> None:
    @app.command(
        name="audit",
        rich_help_panel=RUN,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )
    def audit() -> None:
        """Verify and show the evidence (needs further packages: pip install 'remit[postgres,verify]')."""
        fail(f"remit audit needs {missing}; install it with: pip install 'remit[postgres,verify]'", UNKNOWN)


_add_audit()

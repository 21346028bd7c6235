"""`remit apply`: put a registry directory in force, or only check it."""

from __future__ import annotations

import os
from pathlib import Path  # noqa: TC003  (typer reads annotations at run time)
from typing import TYPE_CHECKING, Annotated

import typer

from remit.cli import bus
from remit.cli.asking import build
from remit.cli.output import UNKNOWN, CliError, Json, Key, console, print_json, reports_errors, show_reply
from remit.cli.settings import CliSettings
from remit.commands import ApplyCommand, Reply
from remit.ids import fresh_key
from remit.registry_files import load_registry

if TYPE_CHECKING:
    from remit.bundle import BundleContent


PREFIX = "REMIT_REGISTRY_"
"""Only variables meant for it reach the bundle: a registry file could otherwise publish any secret of the environment."""


@reports_errors
def apply(  # noqa: PLR0913  (the options of one command)
    directory: Annotated[Path, typer.Argument(help="Holds `tools/*.yaml`, `agents.yaml` and `policies/*.cedar`.")],
    *,
    check: Annotated[bool, typer.Option("--check", help="Check here, change nothing.")] = False,
    base: Annotated[
        int | None, typer.Option(help="Replace only this version; without it, whichever is in force.")
    ] = None,
    values: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Fill in ${NAME}; may be repeated.")
    ] = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Put tools, agents and policies in force, whole or not at all (role admin).

    `${NAME}` in the YAML files is filled in from `--set NAME=value`, else from the environment variable
    REMIT_REGISTRY_NAME, and from nothing else; a missing one is an error that names it and the file. Approval compiles the
    bundle again, signs it, and services follow within seconds. --check needs no server.
    """
    content = load_registry(directory, _placeholders(values or []))
    if check:
        _check(content, as_json=as_json)
        return
    settings, key = CliSettings(), key or fresh_key()
    reply = _send(settings, content, base=base or 0, key=key)
    if base is None and reply.status == "stale" and reply.bundle_version is not None:
        reply = _send(settings, content, base=reply.bundle_version, key=key)
    show_reply(reply, as_json=as_json, key=key)


def _placeholders(values: list[str]) -> dict[str, str]:
    """Return what may be filled in, by name.

    Raises:
        CliError: a value is not of the form NAME=value.

    """
    environment = os.environ  # noqa: TID251  (the names are the registry's own)
    found = {name.removeprefix(PREFIX): value for name, value in environment.items() if name.startswith(PREFIX)}
    for given in values:
        name, equals, value = given.partition("=")
        if not equals or not name:
            raise CliError(f"--set {given}: expected NAME=value")
        found[name] = value
    return found


def _send(settings: CliSettings, content: BundleContent, *, base: int, key: str) -> Reply:
    return bus.send(settings, build(ApplyCommand, settings, key=key, content=content, base_version=base))


def _check(content: BundleContent, *, as_json: bool) -> None:
    try:
        from remit.evaluation import CompiledBundle  # noqa: PLC0415  (the policy engine is an extra)
    except ImportError:
        raise CliError("checking policies needs the policy engine: pip install 'remit[services]'", UNKNOWN) from None
    digest = CompiledBundle.compile(content, version=1).digest
    counts = {"tools": len(content.tools), "agents": len(content.agents), "policies": len(content.policies)}
    if as_json:
        print_json({"status": "ok", "policy_version": digest, **counts})
        return
    listed = ", ".join(f"{count} {name}" for name, count in counts.items())
    console().print(f"ok  {listed}; nothing was changed\n  policy version {digest}")

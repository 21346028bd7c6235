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


@reports_errors
def apply(
    directory: Annotated[Path, typer.Argument(help="Holds `tools/*.yaml`, `agents.yaml` and `policies/*.cedar`.")],
    *,
    check: Annotated[bool, typer.Option("--check", help="Check here, change nothing.")] = False,
    base: Annotated[
        int | None, typer.Option(help="Replace only this version; without it, whichever is in force.")
    ] = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Put tools, agents and policies in force, whole or not at all (role admin).

    `${NAME}` in the YAML files is filled in from the environment; a missing variable is an error that names it and the
    file. Approval compiles the bundle again, signs it, and services follow within seconds. --check needs no server.
    """
    content = load_registry(directory, os.environ)  # noqa: TID251  (placeholders name arbitrary variables)
    if check:
        _check(content, as_json=as_json)
        return
    settings, key = CliSettings(), key or fresh_key()
    reply = _send(settings, content, base=base or 0, key=key)
    if base is None and reply.status == "stale" and reply.bundle_version is not None:
        reply = _send(settings, content, base=reply.bundle_version, key=key)
    show_reply(reply, as_json=as_json, key=key)


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

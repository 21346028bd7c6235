"""Which server a test gets: the given URL, else a container where a Docker engine answers, else the embedded one.

`REMIT_TEST_LANE=given|containers|embedded` forces a lane for both servers. A lane that is not there fails the test where `CI` is
set and skips it elsewhere, with the sentence that cures it. Tests that stop, break or configure their server always embed it.
Source: design, parts section 4.
"""

from __future__ import annotations

import http.client
import os
import re
import socket
import subprocess
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

from infra.local import postgres_identity
from infra.local.nats_server import executable
from remit.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

LANE = "REMIT_TEST_LANE"
PING_S = 0.5
"""An engine on this machine answers in milliseconds; a socket that nobody serves must not hold up every start."""
FAILURE = (pytest.fail.Exception, pytest.skip.Exception)


class Lane(StrEnum):
    """Where a server comes from."""

    GIVEN = "given"
    CONTAINERS = "containers"
    EMBEDDED = "embedded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One of the two servers: its URL's variable, the wheel's program, and what a container of it is made from."""

    name: str
    url_variable: str
    program: Callable[[], str]
    image: str


def _postgres_program() -> str:
    return str(postgres_identity.bin_dir() / "postgres")


NATS = Kind(name="NATS", url_variable="NATS_URL", program=executable, image="nats:2.15.1-alpine")
POSTGRES = Kind(name="Postgres", url_variable="DATABASE_URL", program=_postgres_program, image="postgres:18")
USED: dict[str, set[str]] = {}
"""Versions as the servers of this run told them, by kind and lane; the last line of the report."""


def lane(kind: Kind) -> Lane:
    """Return the lane of a kind of server; skips the test, or fails it on CI, when there is none."""
    forced = os.environ.get(LANE, "")
    if forced not in {"", *Lane}:
        pytest.fail(f"{LANE}={forced!r} names no lane; use {', '.join(Lane)}")
    there = {Lane.GIVEN: _is_given, Lane.CONTAINERS: _has_engine, Lane.EMBEDDED: _is_installed}
    for candidate in [Lane(forced)] if forced else Lane:
        if there[candidate](kind):
            return candidate
    return _missing(kind, forced)


def _missing(kind: Kind, forced: str) -> NoReturn:
    cures = {
        Lane.GIVEN: f"set {kind.url_variable}",
        Lane.CONTAINERS: "start a Docker engine",
        Lane.EMBEDDED: "install the extra `local` (make setup)",
    }
    cure = cures[Lane(forced)] if forced else ", or ".join(cures.values())
    sentence = f"no {kind.name} for this test{f' in lane {forced}' if forced else ''}: {cure}"
    if os.environ.get("CI"):
        pytest.fail(sentence)
    pytest.skip(sentence)


def _is_given(kind: Kind) -> bool:
    return bool(os.environ.get(kind.url_variable))


def _has_engine(_: Kind) -> bool:
    return engine() is not None


def _is_installed(kind: Kind) -> bool:
    try:
        return Path(kind.program()).exists()
    except ConfigurationError:
        return False


@cache
def engine() -> str | None:
    """Return where a Docker engine answers, asked once a run; a client without an engine is none."""
    named = os.environ.get("DOCKER_HOST")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    usual = ["/var/run/docker.sock", str(Path.home() / ".docker/run/docker.sock")]
    sockets = usual + ([f"{runtime}/docker.sock"] if runtime else [])
    for address in [named] if named else [f"unix://{path}" for path in sockets if Path(path).is_socket()]:
        if _answers(address):
            return address
    return None


def _answers(address: str) -> bool:
    scheme, _, place = address.partition("://")
    try:
        if scheme == "unix":
            return _ping(place)
        host, _, port = place.rstrip("/").rpartition(":")
        socket.create_connection((host, int(port)), timeout=PING_S).close()
    except (OSError, ValueError, http.client.HTTPException):
        return False
    return True


def _ping(path: str) -> bool:
    connection = http.client.HTTPConnection("localhost", timeout=PING_S)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(PING_S)
    try:
        connection.sock.connect(path)
        connection.request("GET", "/_ping")
        return connection.getresponse().status == http.client.OK
    finally:
        connection.close()


def used(kind: Kind, where: Lane, version: str) -> None:
    """Note which version really served."""
    USED.setdefault(f"{kind.name} {where}", set()).add(version)


def announcement() -> str:
    """Return the header's line: each server's lane, and the version where that can be told without starting it."""
    return "servers: " + ", ".join(f"{kind.name} {_described(kind)}" for kind in (NATS, POSTGRES))


def _described(kind: Kind) -> str:
    try:
        found = lane(kind)
    except FAILURE as reason:
        return f"missing ({reason})"
    if found is Lane.EMBEDDED:
        told = subprocess.run([kind.program(), "--version"], capture_output=True, text=True, check=False).stdout
        version = re.search(r"\d+(\.\d+)+", told)
        return f"embedded {version[0] if version else told.strip()}"
    return f"containers ({kind.image})" if found is Lane.CONTAINERS else f"given ({kind.url_variable})"


def summary() -> str | None:
    """Return which versions served this run; None when no test needed a server."""
    rows = [f"{name} {' '.join(sorted(versions))}" for name, versions in sorted(USED.items())]
    return f"servers that ran: {', '.join(rows)}" if rows else None

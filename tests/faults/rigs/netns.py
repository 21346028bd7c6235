"""A private network: everything started inside lives on a loopback of its own, where packets are dropped by rule.

The calling thread moves into a new, unnamed network namespace, and its children and sockets with it. Nothing outside is touched,
several runs do not meet, and the kernel removes the namespace with its last process, also after kill -9. Who is cut off from whom
goes by group id: a `member`'s processes run under one of their own, and their connections carry its number as a mark.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Self

from remit.errors import ConfigurationError
from tests.faults.rigs.birth import at_birth, become

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from pathlib import Path
    from types import TracebackType

CLONE_NEWNET = 0x40000000
"""Flag of unshare(2)."""
PROGRAMS = {"ip": "iproute2", "iptables": "iptables", "setpriv": "util-linux"}
"""What must be installed, and the Debian package that brings it."""
FIRST_GROUP = 61_000
"""Group ids of members; nobody on a Debian system has them."""
Way = Literal["both", "to_server", "to_client"]
_libc = ctypes.CDLL(None, use_errno=True)


def missing() -> str | None:
    """Return what this machine lacks, with the remedy; None when everything is there."""
    if os.geteuid() != 0:
        return "network namespaces need root: run as root, or in a user namespace with `unshare --user --map-root-user`"
    absent = sorted({package for program, package in PROGRAMS.items() if shutil.which(program) is None})
    return f"install {', '.join(absent)}: apt-get install {' '.join(absent)}" if absent else None


@dataclass(slots=True)
class Network:
    """`with Network() as network` moves the calling thread in and out again."""

    members: dict[str, int] = field(default_factory=dict[str, int])
    _home: int = -1

    def __enter__(self) -> Self:
        """Move in; loopback is up and empty.

        Raises:
            ConfigurationError: the machine cannot; the message says what to install.

        """
        lack = missing()
        if lack is not None:
            raise ConfigurationError(lack)
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        _checked(_libc.unshare(CLONE_NEWNET), "unshare")
        try:
            _run("ip", "link", "set", "lo", "up")
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Move out."""
        self._leave()

    def _leave(self) -> None:
        home, self._home = self._home, -1
        try:
            _checked(_libc.setns(home, CLONE_NEWNET), "setns")
        finally:
            os.close(home)

    def member(self, name: str) -> tuple[str, ...]:
        """Return the command prefix under which a program's connections are told from everybody else's."""
        return ("setpriv", "--regid", str(self._group(name)), "--clear-groups")

    def services(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return the command prefix of a zygote whose forks are members by the names of their services."""
        groups = (f"{name}={self._group(name)}" for name in names)
        return (sys.executable, "-m", "tests.faults.rigs.netns", ",".join(groups))

    def _group(self, name: str) -> int:
        if name not in self.members:
            self.members[name] = number = len(self.members) + 1
            owner = ("-m", "owner", "--gid-owner", str(FIRST_GROUP + number))
            _rule(
                "-t",
                "mangle",
                "-A",
                "OUTPUT",
                "-p",
                "tcp",
                "--syn",
                *owner,
                "-j",
                "CONNMARK",
                "--set-mark",
                str(number),
            )
        return FIRST_GROUP + self.members[name]

    @contextmanager
    def nodes(self, names: Iterable[str], program: str, folder: Path) -> Generator[None]:
        """Let every nats-server that starts inside the block be the member that its configuration's folder is named after."""
        folder.mkdir(parents=True, exist_ok=True)
        wrapper, before = folder / "nats-server", os.environ.get("NATS_SERVER_BIN")
        cases = "\n".join(f'*/{name}/*) exec {shlex.join(self.member(name))} {program} "$@";;' for name in names)
        wrapper.write_text(f'#!/bin/sh\ncase "$*" in\n{cases}\nesac\nexec {program} "$@"\n', encoding="utf-8")
        wrapper.chmod(0o700)
        os.environ["NATS_SERVER_BIN"] = str(wrapper)
        try:
            yield
        finally:
            if before is None:
                del os.environ["NATS_SERVER_BIN"]
            else:
                os.environ["NATS_SERVER_BIN"] = before

    def cut(self, client: str, port: int, way: Way = "both") -> None:
        """Swallow what a member's connections to a port carry, one way or both; connecting anew is swallowed too."""
        for direction, flag in (("to_server", "--dport"), ("to_client", "--sport")):
            if way in {"both", direction}:
                _rule("-A", "OUTPUT", *_carried(self.members[client], port, flag), "-j", "DROP")

    def mend(self, client: str, port: int) -> None:
        """Take back every `cut` of one link."""
        for flag in ("--dport", "--sport"):
            rule = ("OUTPUT", *_carried(self.members[client], port, flag), "-j", "DROP")
            while _rule("-C", *rule, check=False):
                _rule("-D", *rule)

    def lose(self, port: int, probability: float) -> None:
        """Lose packets of everybody to and from a port at random; the kernel repeats them late and out of order."""
        for flag in ("--dport", "--sport"):
            random = ("-m", "statistic", "--mode", "random", "--probability", f"{probability:.3f}")
            _rule("-A", "OUTPUT", "-p", "tcp", flag, str(port), *random, "-j", "DROP")

    def heal(self) -> None:
        """Drop nothing any more; TCP repeats what was swallowed."""
        _rule("-F", "OUTPUT")


def main() -> None:
    """Let every fork take the group of its service, then become the module."""
    groups = dict(pair.split("=") for pair in sys.argv[1].split(","))
    at_birth(lambda service: os.setgid(int(groups[service])))
    become(sys.argv[2:])


def _carried(mark: int, port: int, flag: str) -> tuple[str, ...]:
    return ("-p", "tcp", flag, str(port), "-m", "connmark", "--mark", str(mark))


def _rule(*rule: str, check: bool = True) -> bool:
    return _run("iptables", "-w", *rule, check=check)


def _run(*command: str, check: bool = True) -> bool:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if check and done.returncode != 0:
        raise ConfigurationError(f"{' '.join(command)} failed: {done.stderr.strip()}")
    return done.returncode == 0


def _checked(answer: int, call: str) -> None:
    if answer != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")


if __name__ == "__main__":
    main()

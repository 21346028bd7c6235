"""Which server a test gets, decided without starting one."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING

import pytest

from remit.clock import monotonic
from remit.errors import ConfigurationError
from tests.support import lanes
from tests.support.lanes import NATS, POSTGRES, Kind, Lane

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FAILED, SKIPPED = pytest.fail.Exception, pytest.skip.Exception


@pytest.fixture(autouse=True)
def nothing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine without given servers and without an engine, whatever this one has."""
    for name in (lanes.LANE, "CI", NATS.url_variable, POSTGRES.url_variable, "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    forget = lanes.engine.cache_clear
    forget()
    yield
    forget()


def without_wheel() -> str:
    raise ConfigurationError("not installed")


BARE = Kind(name="NATS", url_variable="NATS_URL", program=without_wheel, image="none")


@pytest.mark.parametrize("kind", [NATS, POSTGRES], ids=lambda kind: kind.name)
def test_a_given_server_wins_and_the_embedded_one_comes_last(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lanes.lane(kind) is Lane.EMBEDDED
    monkeypatch.setattr(lanes, "engine", lambda: "unix:///engine")
    assert lanes.lane(kind) is Lane.CONTAINERS
    monkeypatch.setenv(kind.url_variable, "nats://elsewhere:4222")
    assert lanes.lane(kind) is Lane.GIVEN


def test_a_forced_lane_is_taken_even_where_an_earlier_one_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATS_URL", "nats://elsewhere:4222")
    monkeypatch.setenv(lanes.LANE, "embedded")
    assert lanes.lane(NATS) is Lane.EMBEDDED


@pytest.mark.parametrize(("forced", "cure"), [("given", "set NATS_URL"), ("containers", "start a Docker engine")])
def test_a_forced_lane_that_is_not_there_says_what_cures_it(
    forced: str, cure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(lanes.LANE, forced)
    with pytest.raises(SKIPPED, match=f"in lane {forced}: {cure}"):
        lanes.lane(NATS)


def test_no_server_skips_here_and_fails_on_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SKIPPED, match=r"set NATS_URL, or start a Docker engine, or install the extra `local`"):
        lanes.lane(BARE)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(FAILED, match="no NATS for this test"):
        lanes.lane(BARE)


def test_a_misspelt_lane_fails_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(lanes.LANE, "container")
    with pytest.raises(FAILED, match="names no lane; use given, containers, embedded"):
        lanes.lane(NATS)


def test_a_socket_that_nobody_serves_is_no_engine_and_costs_less_than_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen(1)
        monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
        began = monotonic()
        assert lanes.engine() is None
        assert monotonic() - began < 1.0
    assert capfd.readouterr() == ("", "")


def test_an_engine_that_answers_its_ping_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen(1)

        def answer() -> None:
            peer, _ = listening.accept()
            with peer:
                assert peer.recv(4096).startswith(b"GET /_ping ")
                peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK")

        serving = threading.Thread(target=answer)
        serving.start()
        monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
        assert lanes.engine() == f"unix://{path}"
        serving.join()


def test_the_header_names_lanes_and_versions_without_starting_anything() -> None:
    line = lanes.announcement()
    assert "NATS embedded 2." in line
    assert "Postgres embedded 1" in line

"""Whom to believe while the process runs: rotation and distrust reach it, a file that does not verify changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from infra.local import keys as key_files
from remit.runtime import trust as under_test
from remit.runtime.keys import ROOT_FILE, SIGNATURE_FILE, TRUST_FILE, load_service_keys
from tests.support.servers import make_keys

if TYPE_CHECKING:
    from pathlib import Path

    from remit.runtime.trust import TrustRing


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(under_test, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return make_keys(tmp_path)


@pytest.fixture
def ring(directory: Path, clock: list[float]) -> TrustRing:
    assert clock
    return load_service_keys(directory, "tokens").trust


def test_rotated_kid_is_believed_without_a_restart(directory: Path, ring: TrustRing) -> None:
    kid = key_files.rotate(directory, "approval")
    assert ring[kid].service == "approval"


def test_unknown_kids_cause_one_look_a_second(directory: Path, ring: TrustRing, clock: list[float]) -> None:
    assert ring.get("nobody") is None
    kid = key_files.rotate(directory, "approval")
    assert kid not in ring
    clock[0] += 1.0
    assert kid in ring


def test_distrusted_kid_is_forgotten(directory: Path, ring: TrustRing) -> None:
    old = next(kid for kid in ring if ring[kid].service == "approval")
    key_files.rotate(directory, "approval")
    key_files.distrust(directory, old)
    assert old in ring
    ring.refresh()
    assert old not in ring


def test_file_that_does_not_verify_changes_nothing_and_is_told(directory: Path, ring: TrustRing) -> None:
    told: list[str] = []
    ring.on_refused = told.append
    before, genuine = set(ring), (directory / TRUST_FILE).read_text()
    (directory / TRUST_FILE).write_text(genuine.replace('"policy"', '"approval"'))
    ring.refresh()
    assert (set(ring), len(told)) == (before, 1)
    (directory / TRUST_FILE).write_text(genuine)
    kid = key_files.rotate(directory, "policy")
    ring.refresh()
    assert kid in ring


def test_another_root_is_not_believed_by_a_running_process(directory: Path, ring: TrustRing, tmp_path: Path) -> None:
    other = make_keys(tmp_path / "other")
    for name in (TRUST_FILE, SIGNATURE_FILE, ROOT_FILE):
        (directory / name).write_text((other / name).read_text())
    before = {kid: bytes(ring[kid].key) for kid in ring}
    ring.refresh()
    assert {kid: bytes(ring[kid].key) for kid in ring} == before


def test_vanished_file_changes_nothing(directory: Path, ring: TrustRing) -> None:
    before = set(ring)
    (directory / TRUST_FILE).unlink()
    ring.refresh()
    assert set(ring) == before

"""A retired checkpoint key goes on proving what it signed; nothing but the signed key file says which keys there are."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from infra.local import keys, trust
from remit.runtime.keys import load_checkpoint, load_document, load_trust
from tests.support.servers import make_keys

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_a_rotated_checkpoint_key_signs_and_the_old_one_stays_known(tmp_path: Path) -> None:
    make_keys(tmp_path)
    old_kid, old = load_checkpoint(tmp_path)
    assert load_trust(tmp_path).checkpoint_keys == {old_kid: old.verify_key}
    kid = keys.rotate_checkpoint(tmp_path)
    new_kid, new = load_checkpoint(tmp_path)
    assert (new_kid, kid != old_kid) == (kid, True)
    assert load_trust(tmp_path).checkpoint_keys == {old_kid: old.verify_key, kid: new.verify_key}
    keys.generate(tmp_path, load_document(tmp_path)["environment"])
    assert load_trust(tmp_path).checkpoint_keys == {old_kid: old.verify_key, kid: new.verify_key}


def test_a_key_file_without_retired_keys_stays_as_it_is(tmp_path: Path) -> None:
    make_keys(tmp_path)
    before = (tmp_path / trust.SIGNATURE_FILE).read_bytes()
    assert "checkpoints" not in load_document(tmp_path)
    keys.generate(tmp_path, load_document(tmp_path)["environment"])
    assert (tmp_path / trust.SIGNATURE_FILE).read_bytes() == before


def test_the_program_rotates_the_checkpoint_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_keys(tmp_path)
    monkeypatch.setattr(sys, "argv", ["keys", str(tmp_path), "--rotate", "checkpoint"])
    keys.main()
    assert capsys.readouterr().out == f"{load_checkpoint(tmp_path)[0]} signs from the next start on\n"

"""The bundle in force: never older, never another of the same version, and too old when nothing better can be believed."""

from __future__ import annotations

from typing import Any

import pytest

from remit.bundle import BundleContent
from remit.bundle_store import EncodedBundle, encode_bundle
from remit.errors import StaleBundleError
from remit.runtime import bundles
from remit.runtime.bundles import BundleReader
from remit.runtime.bus import Bus, Stored
from remit.runtime.telemetry import Telemetry
from tests.support.factories import NOW, SIGNERS, TRUST
from tests.unit.intake.door import TOOL, agent

STALE_S = 60.0


class Bucket(Bus):
    """A key-value bucket in memory."""

    def __init__(self) -> None:
        self.values: dict[str, Stored] = {}
        self.revision = 0

    def put(self, key: str, value: bytes) -> None:
        self.revision += 1
        subject = f"$KV.REGISTRY.{key}"
        self.values[subject] = Stored(subject, self.revision, value, {})

    def apply(self, bundle: EncodedBundle) -> None:
        for key, part in bundle.parts.items():
            self.put(key, part)
        self.put("bundle", bundle.value)

    async def leader_read(self, stream: str, query: dict[str, Any]) -> Stored | None:
        assert stream == "KV_REGISTRY"
        return self.values.get(query["last_by_subj"])


def bundle(version: int, *agents: str) -> EncodedBundle:
    content = {"tools": {"bank": TOOL}, "agents": {name: agent(name) for name in agents}, "policies": {}}
    return encode_bundle(
        BundleContent.model_validate(content), version=version, issued_at=NOW, applied_by="test",
        signer=SIGNERS["approval"],
    )  # fmt: skip


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1_000.0]
    monkeypatch.setattr(bundles, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def bucket() -> Bucket:
    return Bucket()


@pytest.fixture
def reader(bucket: Bucket, clock: list[float]) -> BundleReader:
    assert clock
    return BundleReader(bus=bucket, trust=TRUST, telemetry=Telemetry("t"), poll_s=10, stale_s=STALE_S)


async def test_newest_bundle_is_in_force(bucket: Bucket, reader: BundleReader) -> None:
    with pytest.raises(StaleBundleError, match="no registry bundle"):
        reader.current()
    for version, name in ((1, "a1"), (2, "a2")):
        bucket.apply(bundle(version, name))
        await reader.refresh()
        assert (reader.current().version, list(reader.current().content.agents)) == (version, [name])


@pytest.mark.parametrize("junk", [b'{"stream":"KV_REGISTRY","seq":9}', b"", bundle(3, "a1").value[:-9]])
async def test_refused_value_lets_the_age_grow_until_nothing_is_permitted(
    bucket: Bucket, reader: BundleReader, clock: list[float], junk: bytes
) -> None:
    bucket.apply(bundle(1, "a1"))
    await reader.refresh()
    bucket.put("bundle", junk)
    clock[0] += STALE_S - 1
    await reader.refresh()
    assert reader.current().version == 1
    clock[0] += 2
    await reader.refresh()
    with pytest.raises(StaleBundleError):
        reader.current()
    bucket.apply(bundle(2, "a1"))
    await reader.refresh()
    assert reader.current().version == 2


async def test_part_that_comes_late_is_found(bucket: Bucket, reader: BundleReader) -> None:
    encoded = bundle(1, "a1")
    bucket.put("bundle", encoded.value)
    await reader.refresh()
    with pytest.raises(StaleBundleError):
        reader.current()
    for key, part in encoded.parts.items():
        bucket.put(key, part)
    await reader.refresh()
    assert reader.current().version == 1


async def test_older_version_is_refused_even_when_the_newer_one_could_not_be_adopted(
    bucket: Bucket, reader: BundleReader, clock: list[float]
) -> None:
    bucket.apply(bundle(1, "a1"))
    await reader.refresh()
    bucket.put("bundle", bundle(2).value)
    await reader.refresh()
    bucket.apply(bundle(1, "a1"))
    clock[0] += STALE_S + 1
    await reader.refresh()
    with pytest.raises(StaleBundleError):
        reader.current()


async def test_same_version_with_another_content_is_refused(bucket: Bucket, reader: BundleReader) -> None:
    bucket.apply(bundle(2, "a1"))
    await reader.refresh()
    bucket.apply(bundle(2, "a2"))
    await reader.refresh()
    assert list(reader.current().content.agents) == ["a1"]


async def test_same_bundle_stored_again_is_taken(bucket: Bucket, reader: BundleReader, clock: list[float]) -> None:
    for _ in range(2):
        bucket.apply(bundle(2, "a1"))
        await reader.refresh()
        clock[0] += STALE_S - 1
    assert reader.current().version == 2


async def test_vanished_value_lets_the_age_grow(bucket: Bucket, reader: BundleReader, clock: list[float]) -> None:
    bucket.apply(bundle(1, "a1"))
    await reader.refresh()
    bucket.values.clear()
    clock[0] += STALE_S + 1
    await reader.refresh()
    with pytest.raises(StaleBundleError):
        reader.current()

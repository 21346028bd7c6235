"""The registry bundle as a service sees it: polled, verified, compiled once per version, and stale after a minute.

A cache hint, never a barrier: what must hold at the moment of the effect is checked in the claim. Source: design, bus section 2.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from remit.bundle_store import assemble, decode_manifest
from remit.clock import monotonic
from remit.errors import BundleError, StaleBundleError, TransientError
from remit.evaluation import CompiledBundle

if TYPE_CHECKING:
    from collections.abc import Mapping

    from remit.bundle import Manifest
    from remit.envelope import TrustedKey
    from remit.runtime.bus import Bus
    from remit.runtime.telemetry import Telemetry

log = structlog.get_logger("remit.bundles")


async def read_value(bus: Bus, key: str) -> tuple[bytes, int] | None:
    """Return value and revision of a REGISTRY key by a leader read, or None."""
    stored = await bus.leader_read("KV_REGISTRY", {"last_by_subj": f"$KV.REGISTRY.{key}"})
    return None if stored is None else (stored.body, stored.seq)


class BundleReader:
    """Keeps the newest valid bundle; an invalid one is refused whole, and what is in force grows old meanwhile."""

    def __init__(
        self, *, bus: Bus, trust: Mapping[str, TrustedKey], telemetry: Telemetry, poll_s: float, stale_s: float
    ) -> None:
        """Remember where to look and how old an answer may be."""
        self._bus, self._trust, self._telemetry = bus, trust, telemetry
        self._poll_s, self._stale_s = poll_s, stale_s
        self._current: CompiledBundle | None = None
        self._newest: Manifest | None = None
        """The highest version that approval's signature was seen on, whether or not it could be adopted."""
        self._read_at = 0.0
        self._revision = 0

    def current(self) -> CompiledBundle:
        """Return the bundle in force.

        Raises:
            StaleBundleError: none was ever read, or the last successful read is older than the limit.

        """
        if self._current is None:
            raise StaleBundleError("no registry bundle was applied yet; run `remit apply DIRECTORY`")
        if monotonic() - self._read_at > self._stale_s:
            raise StaleBundleError(f"the registry bundle was last read {monotonic() - self._read_at:.0f} s ago")
        return self._current

    async def refresh(self) -> None:
        """Read once; what is missing, unsigned, older or invalid is refused and looked at again the next time.

        Only a bundle that may be in force renews the age of what is in force.
        """
        found = await read_value(self._bus, "bundle")
        if found is None:
            return
        value, revision = found
        if revision != self._revision:
            try:
                await self._adopt(value)
            except BundleError as error:
                self._telemetry.alarms.labels(kind="bundle_refused").inc()
                log.error("bundle refused, the old one stays until it is too old", detail=str(error))  # noqa: TRY400  (no stack needed)
                return
            self._revision = revision
        self._read_at = monotonic()

    async def _adopt(self, value: bytes) -> None:
        manifest = decode_manifest(value, self._trust)
        self._refuse_older(manifest)
        self._newest = manifest
        parts: list[bytes] = []
        for name in manifest.parts:
            part = await read_value(self._bus, f"part.{name}")
            if part is None:
                raise BundleError(f"bundle version {manifest.version}: part {name[:12]} is missing")
            parts.append(part[0])
        compiled = CompiledBundle.compile(assemble(manifest, parts), version=manifest.version)
        self._refuse_older(manifest)  # another refresh may have seen a newer one meanwhile
        self._current = compiled
        self._telemetry.bundle_version.set(manifest.version)
        log.info("bundle in force", version=manifest.version, digest=compiled.digest)

    def _refuse_older(self, manifest: Manifest) -> None:
        newest = self._newest
        if newest is None or manifest.version > newest.version:
            return
        if manifest.version < newest.version:
            raise BundleError(f"bundle version {manifest.version} is older than version {newest.version} seen before")
        if manifest.content_digest != newest.content_digest:
            raise BundleError(f"bundle version {manifest.version} was seen with another content before")

    async def poll(self) -> None:
        """Refresh for ever; failures leave the age growing until everything is denied."""
        while True:
            try:
                await self.refresh()
            except TransientError as error:
                log.warning("bundle not read", detail=str(error))
            await asyncio.sleep(self._poll_s if self._current is not None else min(self._poll_s, 0.5))

"""Putting a registry and policy bundle in force: compiled whole, signed, stored by compare-and-set.

Stop rows come before the manifest, so that no registered tool or agent is ever without its kill switch.
Source: design, section 5; bus section 2 (REGISTRY).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from remit.bundle_store import BUNDLE_KEY, decode_manifest, encode_bundle
from remit.commands import Reply
from remit.errors import BundleError
from remit.evaluation import CompiledBundle
from remit.runtime.bus import ConflictError
from services.approval.answers import invalid, stale
from services.approval.authority import ADMIN, needs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from datetime import datetime

    from remit.bundle import BundleContent, Manifest
    from remit.bundle_store import EncodedBundle
    from remit.commands import ApplyCommand
    from remit.envelope import Signer, TrustedKey
    from services.approval.stop_store import Stop, StopStore
    from services.approval.voting import Voter


class Bucket(Protocol):
    """The bucket REGISTRY as the service reads and writes it."""

    async def kv_get(self, key: str) -> tuple[bytes, int] | None:
        """Return value and revision, or None."""
        ...

    async def kv_put(self, key: str, value: bytes, *, expected_revision: int) -> int:
        """Write if the revision still is the expected one; raise ConflictError otherwise."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """The command by which an administrator changes what exists and by which rules."""

    clock: Callable[[], datetime]
    bucket: Bucket
    switches: StopStore
    signer: Signer
    trust: Mapping[str, TrustedKey]
    refresh: Callable[[], Awaitable[None]]

    async def apply(self, command: ApplyCommand, voter: Voter) -> Reply:
        """Replace the bundle in force if it still is the one the new content was written against."""
        refusal = needs(voter.person, ADMIN)
        if refusal is not None:
            return refusal
        in_force, revision = await self._in_force()
        digest = command.content.digest()
        if in_force is not None and in_force.content_digest == digest:
            return _applied(in_force, "this content is in force already")
        version = in_force.version if in_force else 0
        if command.base_version != version:
            detail = f"bundle {version} is in force, not {command.base_version}; compare and apply again"
            return stale(detail).model_copy(update={"bundle_version": version})
        try:
            # In a thread: a large registry takes long enough to starve heartbeats.
            await asyncio.to_thread(CompiledBundle.compile, command.content, version=version + 1)
            encoded = self._encode(command.content, version + 1, voter)
        except BundleError as error:
            return invalid("content", str(error))
        return await self._store(command.content, encoded, revision)

    async def _in_force(self) -> tuple[Manifest | None, int]:
        found = await self.bucket.kv_get(BUNDLE_KEY)
        return (None, 0) if found is None else (decode_manifest(found[0], self.trust), found[1])

    def _encode(self, content: BundleContent, version: int, voter: Voter) -> EncodedBundle:
        human = voter.person.human
        return encode_bundle(
            content,
            version=version,
            issued_at=self.clock(),
            applied_by=f"{human.iss}|{human.sub}",
            signer=self.signer,
        )

    async def _store(self, content: BundleContent, encoded: EncodedBundle, revision: int) -> Reply:
        for key, part in encoded.parts.items():
            if await self.bucket.kv_get(key) is None:
                await self._put_part(key, part)
        await self.switches.ensure(_stops(content))
        try:
            await self.bucket.kv_put(BUNDLE_KEY, encoded.value, expected_revision=revision)
        except ConflictError:
            return stale("another bundle was put in force at the same moment; compare and apply again")
        await self.refresh()
        return _applied(encoded.manifest, "in force; services follow within seconds")

    async def _put_part(self, key: str, part: bytes) -> None:
        try:
            await self.bucket.kv_put(key, part, expected_revision=0)
        except ConflictError:
            return  # A part is named by its digest: whoever stored it first stored these bytes.


def _stops(content: BundleContent) -> list[Stop]:
    tools = [("tool", f"{name}.{action}") for name, tool in content.tools.items() for action in tool.actions]
    return [("global", "*"), *tools, *(("agent", agent.id) for agent in content.agents.values())]


def _applied(manifest: Manifest, detail: str) -> Reply:
    return Reply(status="ok", detail=detail, bundle_version=manifest.version, policy_version=manifest.content_digest)

"""Environment of audit."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from remit.runtime.settings import ServiceSettings


class AuditSettings(ServiceSettings):
    """How the projector batches, and how long an action may stand still; durations carry their unit."""

    checkpoint_dir: Path = Field(
        default=Path(".remit/checkpoints"),
        description="Where signed checkpoints go; keep it off the database's machine.",
    )
    projector_batch: int = Field(default=500, ge=1, le=1_000, description="Most events of one transaction.")
    projector_linger_ms: int = Field(default=30, ge=0, le=1_000, description="How long a partial batch waits for more.")
    checkpoint_every_events: int = Field(default=10_000, ge=1)
    checkpoint_every_s: float = Field(default=60.0, gt=0)
    heartbeat_s: float = Field(default=5.0, gt=0, le=20.0, description="Claims stop when it is 60 s old.")
    resolution_window_s: float = Field(
        default=86_400.0, ge=0, description="How long the receipt of an unknown outcome waits for its resolution."
    )
    reconcile_every_s: float = Field(default=60.0, gt=0)
    action_sla_s: float = Field(default=60.0, gt=0, description="An unfinished action older than this is driven again.")
    memory_actions: int = Field(default=2_048, ge=1, description="Unfinished actions held in memory.")

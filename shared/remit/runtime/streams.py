"""The streams and durable consumers as data: what the provisioner makes is what every service later insists on.

Only the provisioner creates or updates them; services bind, and die when what they find differs. Source: design, bus section 2.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from remit.canonical import digest
from remit.pipeline import PIPELINE

if TYPE_CHECKING:
    from collections.abc import Mapping

KIB, MIB, GIB = 2**10, 2**20, 2**30
MAX_REPLICAS = 8
"""Replicas of one service that a durable can keep busy."""
WORKERS = 16
"""Concurrent handlers of one replica that a durable can keep busy."""
PROJECTOR_ACK_PENDING = 2_000
"""The projector fetches 500 at a time and commits them in one transaction."""
ACK_WAIT = timedelta(seconds=30)
"""Handlers send `in_progress` every third of it (design, bus section 2)."""
AGENT_QUOTA = 256
"""Proposals of one agent that may wait in INTAKE. The next one is answered at once, across the account border, in place of
the acknowledgement: `{"error": {"code": 503, "err_code": 10077, "description": "maximum messages per subject exceeded"}}`.
Nothing was stored: back off and propose again with the same idempotency key."""

TAKES_ALL = frozenset({"intake", "audit", "audit_rebuild"})
"""Durables of a whole stream; they have no filter. What a service lets the broker deliver to a stream's own subject is stored
there under the subject it had before (bus section 9, `MSG.NEXT`): a filter would hide that from the projector, for whom a hidden
sequence is a lost one, and leave it in INTAKE for ever."""

EXTRAS_OFF: dict[str, bool] = {
    "allow_rollup_hdrs": False,
    "allow_direct": False,
    "mirror_direct": False,
    "allow_msg_ttl": False,
    "allow_msg_schedules": False,
    "allow_atomic": False,
    "allow_batched": False,
    "allow_msg_counter": False,
    "no_ack": False,
    "sealed": False,
}
"""Each of them forges, erases, or reads stale followers; switched off, the server refuses its header (bus sections 1, 9)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizing:
    """What differs between an embedded server and a cluster; the rest of the table is the same everywhere."""

    replicas: Literal[1, 3, 5] = 1
    max_bytes: Mapping[str, int] = field(
        default_factory=lambda: {
            "INTAKE": 256 * MIB,
            "ACTIONS": 4 * GIB,
            "REMITS": 256 * MIB,
            "DLQ": 256 * MIB,
            "ADVISORIES": 64 * MIB,
            "KV_REGISTRY": 128 * MIB,
        }
    )
    agent_quota: int = AGENT_QUOTA

    @property
    def total_bytes(self) -> int:
        """Bytes that the streams reserve on each node."""
        return sum(self.max_bytes.values())


EMBEDDED = Sizing()
"""One node, as `make demo` and `make test` start it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSpec:
    """One stream; `config` is the JSON of the JetStream API, spelled out so that no default can creep in."""

    name: str
    subjects: tuple[str, ...]
    retention: Literal["limits", "workqueue"] = "limits"
    discard: Literal["new", "old"] = "new"
    max_age: timedelta = timedelta(0)
    max_msg_size: int = 64 * KIB
    max_msgs_per_subject: int = -1
    per_agent_quota: bool = False
    duplicate_window: timedelta = timedelta(minutes=2)
    deny_delete: bool = False
    deny_purge: bool = False

    def config(self, sizing: Sizing = EMBEDDED) -> dict[str, Any]:
        """Return the configuration for `$JS.API.STREAM.CREATE`; durations in nanoseconds."""
        quota = sizing.agent_quota if self.per_agent_quota else self.max_msgs_per_subject
        return {
            "name": self.name,
            "subjects": list(self.subjects),
            "retention": self.retention,
            "storage": "file",
            "compression": "none",
            "num_replicas": sizing.replicas,
            "discard": self.discard,
            "discard_new_per_subject": self.per_agent_quota,
            "max_msgs": -1,
            "max_msgs_per_subject": quota,
            "max_bytes": sizing.max_bytes[self.name],
            "max_age": _nanoseconds(self.max_age),
            "max_msg_size": self.max_msg_size,
            "duplicate_window": _nanoseconds(self.duplicate_window),
            "deny_delete": self.deny_delete,
            "deny_purge": self.deny_purge,
            **EXTRAS_OFF,
        }


PLAIN: dict[str, Any] = {
    "backoff": [],
    "inactive_threshold": 0,
    "headers_only": False,
    "mem_storage": False,
    "rate_limit_bps": 0,
    "priority_groups": [],
}
"""What no durable has; spelled out, so that provisioning takes it away again from one that was given it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerSpec:
    """One durable pull consumer with explicit acks; retries and giving up are the service's code, not the server's."""

    stream: str
    durable: str
    subjects: tuple[str, ...]
    max_ack_pending: int = MAX_REPLICAS * WORKERS

    def config(self, sizing: Sizing = EMBEDDED) -> dict[str, Any]:
        """Return the configuration for `$JS.API.CONSUMER.CREATE`; durations in nanoseconds."""
        return {
            "name": self.durable,
            "durable_name": self.durable,
            "deliver_policy": "all",
            "ack_policy": "explicit",
            "replay_policy": "instant",
            "ack_wait": _nanoseconds(ACK_WAIT),
            "max_deliver": -1,
            "max_ack_pending": self.max_ack_pending,
            "num_replicas": sizing.replicas,
            **PLAIN,
            **self._filter(),
        }

    def _filter(self) -> dict[str, Any]:
        if self.durable in TAKES_ALL:
            return {}
        single = len(self.subjects) == 1
        return {"filter_subject": self.subjects[0]} if single else {"filter_subjects": list(self.subjects)}

    @property
    def hash(self) -> str:
        """What `config_hash` of the live consumer must return."""
        return config_hash(self.config())


def _nanoseconds(duration: timedelta) -> int:
    return duration // timedelta(microseconds=1) * 1_000


TRUTH: dict[str, Any] = {
    "duplicate_window": timedelta(minutes=10),
    "deny_delete": True,
    "deny_purge": True,
}
STREAMS: tuple[StreamSpec, ...] = (
    # A purged proposal would be gone without an answer to its agent; handled ones leave by their acknowledgement.
    StreamSpec(
        name="INTAKE",
        subjects=("in.propose.*",),
        retention="workqueue",
        per_agent_quota=True,
        deny_delete=True,
        deny_purge=True,
    ),
    StreamSpec(name="ACTIONS", subjects=("action.*.*",), **TRUTH),
    StreamSpec(name="REMITS", subjects=("remit.*.*",), **TRUTH),
    StreamSpec(
        name="DLQ",
        subjects=("dlq.*",),
        max_age=timedelta(days=90),
        max_msg_size=256 * KIB,
        deny_delete=True,
        deny_purge=True,
    ),
    StreamSpec(
        name="ADVISORIES",
        subjects=(
            "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.>",
            "$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.>",
        ),
        discard="old",
        max_age=timedelta(days=30),
    ),
    # A key-value bucket by subject only: `create_key_value` would switch rollup on and need rights that nobody has.
    StreamSpec(
        name="KV_REGISTRY",
        subjects=("$KV.REGISTRY.>",),
        max_msgs_per_subject=64,
        max_msg_size=256 * KIB,
        deny_delete=True,
        deny_purge=True,
    ),
)
CONSUMERS: tuple[ConsumerSpec, ...] = tuple(
    ConsumerSpec(
        stream=row.stream,
        durable=row.durable,
        subjects=row.subjects,
        max_ack_pending=PROJECTOR_ACK_PENDING if row.durable == "audit" else MAX_REPLICAS * WORKERS,
    )
    for service in PIPELINE
    for row in service.consumes
)
REBUILD: tuple[ConsumerSpec, ...] = tuple(
    ConsumerSpec(
        stream=stream,
        durable="audit_rebuild",
        subjects=(subjects,),
        max_ack_pending=PROJECTOR_ACK_PENDING,
    )
    for stream, subjects in (("ACTIONS", "action.>"), ("REMITS", "remit.>"))
)
"""Read both chained streams again from sequence 1 under the operator's key; made on demand only (design, bus section 8)."""
STREAM_BY_NAME: dict[str, StreamSpec] = {stream.name: stream for stream in STREAMS}


def consumer_spec(stream: str, durable: str) -> ConsumerSpec:
    """Return the row of one durable.

    Raises:
        KeyError: the table has no such consumer.

    """
    for spec in (*CONSUMERS, *REBUILD):
        if (spec.stream, spec.durable) == (stream, durable):
            return spec
    raise KeyError(f"{stream}/{durable} is not in the table of consumers")


_CONSUMER_KEYS: dict[str, Any] = {
    "durable_name": "",
    "deliver_policy": "all",
    "ack_policy": "explicit",
    "replay_policy": "instant",
    "ack_wait": 30_000_000_000,
    "max_deliver": -1,
    "max_ack_pending": 1_000,
    "deliver_subject": "",
    **PLAIN,
}
"""What a service depends on, each with what the server means when it leaves the key out. `num_replicas` and a pause differ
by deployment and by hour; neither changes what is delivered."""
_STREAM_KEYS: dict[str, Any] = {
    "retention": "limits",
    "storage": "file",
    "compression": "none",
    "discard": "old",
    "discard_new_per_subject": False,
    "max_msgs": -1,
    "max_age": 0,
    "max_msg_size": -1,
    "duplicate_window": 120_000_000_000,
    "deny_delete": False,
    "deny_purge": False,
    "mirror": None,
    "sources": [],
    "republish": None,
    "subject_transform": None,
    **EXTRAS_OFF,
}
"""The same for a stream; sizes and replica count belong to the deployment."""


def config_hash(config: Mapping[str, Any]) -> str:
    """Return the digest of what matters in a consumer configuration, ours or the `config` of a raw `CONSUMER.INFO` answer.

    Stable against the order of filters and against defaults that the server fills in or leaves out.
    """
    filters = config.get("filter_subjects") or [config.get("filter_subject") or ">"]
    return digest({**_watched(config, _CONSUMER_KEYS), "filters": sorted(filters)})


def stream_hash(config: Mapping[str, Any]) -> str:
    """Return the same for a stream configuration, ours or the `config` of a raw `STREAM.INFO` answer."""
    return digest({**_watched(config, _STREAM_KEYS), "subjects": sorted(config.get("subjects") or [])})


def _watched(config: Mapping[str, Any], keys: Mapping[str, Any]) -> dict[str, Any]:
    return {key: config.get(key) or default or None for key, default in keys.items()}

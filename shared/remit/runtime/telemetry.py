"""Every metric and log setting of the services: name, kind, unit. Labels never hold ids, so series stay few."""

from __future__ import annotations

import logging
import sys

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Seconds; from one local hop to a slow tool."""


class Telemetry:
    """The metrics of one process, in their own registry so that tests can build several."""

    def __init__(self, service: str) -> None:
        """Create all series; whoever scrapes knows the service and the replica by the target."""
        self.registry = CollectorRegistry()
        self.service = service
        self.handled = Counter(
            "remit_messages_handled_total", "Messages by result.", ["durable", "result"], registry=self.registry
        )
        self.handling_seconds = Histogram(
            "remit_message_handling_seconds",
            "Seconds from delivery to acknowledgement.",
            ["durable"],
            buckets=LATENCY_BUCKETS,
            registry=self.registry,
        )
        self.invalid_events = Counter(
            "remit_invalid_events_total", "Events not believed, by code.", ["code"], registry=self.registry
        )
        self.append_retries = Counter(
            "remit_append_retries_total", "Appends repeated without an answer.", registry=self.registry
        )
        self.superseded = Counter(
            "remit_superseded_total", "Decisions that lost their compare-and-set.", registry=self.registry
        )
        self.dead_letters = Counter(
            "remit_dead_letters_total", "Dead letters by code.", ["code"], registry=self.registry
        )
        self.alarms = Counter("remit_alarms_total", "Things a person should look at.", ["kind"], registry=self.registry)
        self.requests_dropped = Counter(
            "remit_requests_dropped_total",
            "Core requests not answered, by subject and why.",
            ["subject", "why"],
            registry=self.registry,
        )
        self.in_flight = Gauge("remit_messages_in_flight", "Messages being handled.", registry=self.registry)
        self.bundle_version = Gauge("remit_bundle_version", "Registry bundle in force.", registry=self.registry)

    def handled_message(self, consumer: str, result: str, seconds: float) -> None:
        """Count one delivery of a consumer (`STREAM/durable`) and how long it took."""
        durable = consumer.rpartition("/")[2]
        self.handled.labels(durable, result).inc()
        self.handling_seconds.labels(durable).observe(seconds)


def configure_logs(level: str) -> None:
    """Log JSON lines to standard error; nothing is written to files by a service itself."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s", force=True)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )

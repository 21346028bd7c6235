"""`make bench`: interleaved rounds of reference and pipeline; medians; where the CPU time goes."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import uvloop

from infra.demo.__main__ import scale_of
from infra.local.nats_server import NatsServer, server_config
from tests.bench import cpu
from tests.bench.pipeline import Pipeline
from tests.bench.reference import Reference

OPEN = {
    "accounts": {
        "SYS": {"users": [{"user": "sys", "password": "sys"}]},
        "REF": {"jetstream": True, "users": [{"user": "ref", "password": "ref"}]},
    },
    "no_auth_user": "ref",
}
"""The reference has no accounts and no permissions to check; storage and syncing are those of the real server."""


@dataclass(slots=True)
class Figures:
    """What the rounds gave; rates a second, latencies in seconds, CPU in microseconds an action."""

    reference: list[float] = field(default_factory=list[float])
    pipeline: list[float] = field(default_factory=list[float])
    reference_cpu: list[float] = field(default_factory=list[float])
    reference_latency: list[float] = field(default_factory=list[float])
    latency: list[float] = field(default_factory=list[float])
    cpu: list[dict[str, float]] = field(default_factory=list[dict[str, float]])

    def result(self) -> dict[str, object]:
        """Return the closing figures."""
        parts = {name: statistics.median(round_[name] for round_ in self.cpu) for name in self.cpu[0]}
        whole = sum(parts.values())
        return {
            "throughput_ratio": round(
                statistics.median(p / r for p, r in zip(self.pipeline, self.reference, strict=True)), 3
            ),
            "cpu_ratio": round(statistics.median(self.reference_cpu) / whole, 3),
            "pipeline_per_s": round(statistics.median(self.pipeline)),
            "reference_per_s": round(statistics.median(self.reference)),
            "p50_ms": round(statistics.median(self.latency) * 1e3, 1),
            "p99_ms": round(statistics.quantiles(self.latency, n=100)[98] * 1e3, 1),
            "reference_p50_ms": round(statistics.median(self.reference_latency) * 1e3, 1),
            "per_service_cpu_us": {name: round(value) for name, value in parts.items()},
            "rounds": len(self.pipeline),
        }


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def _round(reference: Reference, server: NatsServer, pipeline: Pipeline, figures: Figures, count: int) -> None:
    workers = [*reference.pids, server.pid]
    before = cpu.seconds(workers)
    figures.reference.append(await reference.throughput(count * 4))
    figures.reference_cpu.append((cpu.seconds(workers) - before) / (count * 4) * 1e6)
    figures.reference_latency += await reference.latencies(30)
    before_all = pipeline.cpu()
    figures.pipeline.append(await pipeline.throughput(count))
    figures.cpu.append({name: (used - before_all[name]) / count * 1e6 for name, used in pipeline.cpu().items()})
    figures.latency += await pipeline.latencies(60)


async def bench(options: argparse.Namespace, directory: Path) -> Figures:
    """Run the rounds."""
    figures = Figures()
    async with AsyncExitStack() as stack:
        pipeline = await stack.enter_async_context(Pipeline(directory / "pipeline", scale_of(options.scale)))
        mine = directory / "reference"
        config = replace(server_config(pipeline.environment.keys_dir, mine), allowed_extra=OPEN)
        server = await stack.enter_async_context(NatsServer(config, mine))
        reference = await stack.enter_async_context(Reference(server.url))
        for number in range(1, options.rounds + 1):
            await _round(reference, server, pipeline, figures, options.count)
            rates = (figures.reference[-1], figures.pipeline[-1])
            ratio = rates[1] / rates[0]
            _say(
                f"round {number}/{options.rounds}: reference {rates[0]:.0f}/s, pipeline {rates[1]:.0f}/s, ratio {ratio:.3f}"
            )
    return figures


def main() -> None:
    """Measure and print; the last line is `RESULT bench {json}`."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--count", type=int, default=1000, help="actions a round; the reference sends four times as many"
    )
    parser.add_argument("--scale", default="", help='replicas, such as "executor=2"')
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="remit-bench-") as directory:
        result = uvloop.run(bench(options, Path(directory))).result()
    _say(f"RESULT bench {json.dumps(result)}")


if __name__ == "__main__":
    main()

"""The metrics of a pass, which Ray exports to Prometheus from every node.

Each metric is labelled with the name of a pool, such as `annotate:teacher`. A pool consists of all engines of one pass.
Counters increase when a shard is committed, so that their sums agree with the files. Gauges show an engine's current
load.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import fields

from ray.util.metrics import Counter, Gauge

from mpa_ray.observability.usage import Load, Usage

_PUBLISH_EVERY_S = 2.0


class Counters:
    """A pool's counters, in the driver."""

    def __init__(self, pool: str) -> None:
        self._pool = pool
        self._images = _counter("images", "Images in committed shards")
        self._rows = _counter("rows", "Committed rows: pairs, verdicts or predictions", "state", "reason")
        self._tokens = _counter("tokens", "Tokens; cached tokens are also counted as prompt tokens", "kind")
        self._bytes = _counter("bytes_read", "Bytes of image files read")
        self._seconds = _counter("seconds", "Seconds, summed over images that may be processed concurrently", "kind")

    def count(self, num_images: int, outcomes: Mapping[tuple[str, str], int], usage: Usage) -> None:
        """Count a committed shard.

        Args:
            num_images: The number of its images.
            outcomes: The numbers of its rows, by state and reason.
            usage: The seconds, tokens and bytes that it took.
        """
        _add(self._images, num_images, pool=self._pool)
        for (state, reason), num_rows in outcomes.items():
            _add(self._rows, num_rows, pool=self._pool, state=state, reason=reason)
        _add(self._bytes, usage.num_bytes_read, pool=self._pool)
        for field in fields(usage):
            value = getattr(usage, field.name)
            if field.name.endswith("_s"):
                _add(self._seconds, value, pool=self._pool, kind=field.name.removesuffix("_s"))
            elif field.name.endswith("_tokens"):
                kind = field.name.removeprefix("num_").removesuffix("_tokens")
                _add(self._tokens, value, pool=self._pool, kind=kind)


class Gauges:
    """Publishes the load of one replica's engine, from the actor that holds the engine."""

    def __init__(self, pool: str, load: Load) -> None:
        self._load, self._tags = load, {"pool": pool}
        self._gauges = {
            "num_waiting": _gauge("images_waiting", "Images that have been read and wait for a slot in the engine"),
            "num_rendering": _gauge("images_rendering", "Images that are being decoded, scaled and processed"),
            "num_in_engine": _gauge("engine_requests", "Requests in the engine, running or queued"),
        }

    async def keep_publishing(self) -> None:
        """Set the gauges every few seconds, forever."""
        while True:
            for name, gauge in self._gauges.items():
                gauge.set(getattr(self._load, name), self._tags)
            await asyncio.sleep(_PUBLISH_EVERY_S)


def _counter(name: str, description: str, *tags: str) -> Counter:
    return Counter(f"mpa_ray_{name}", description, ("pool", *tags))


def _gauge(name: str, description: str) -> Gauge:
    return Gauge(f"mpa_ray_{name}", description, ("pool",))


def _add(counter: Counter, value: float, **tags: str) -> None:
    # Ray refuses to add 0.
    if value > 0:
        counter.inc(value, tags)

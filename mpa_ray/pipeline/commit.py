"""The last operator of a graph: write a shard's rows and publish them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Generic

from mpa_ray.errors import RunError
from mpa_ray.pipeline.graph_rows import ShardFailed, VisitedShard, decode, encode
from mpa_ray.pipeline.pass_spec import ShardDone
from mpa_ray.run.dataset import ShardTarget
from mpa_ray.stages.image_work import OutT, failed_images, outcomes


@dataclass(frozen=True)
class CommitShard(Generic[OutT]):
    """Commit a visited shard."""

    target: ShardTarget[OutT]

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        visited = decode(row, VisitedShard)
        if visited.failure:
            return encode(ShardFailed(visited.shard, visited.failure))
        started = time.monotonic()
        rows: list[OutT] = visited.rows
        try:
            if not self.target.commit(visited.shard, rows):
                # Another attempt was first, so its rows count.
                rows = self.target.read(visited.shard)
        except (RunError, OSError, ValueError) as error:
            return encode(ShardFailed(visited.shard, str(error)))
        visited.usage.write_s += time.monotonic() - started
        return encode(
            ShardDone(
                shard=visited.shard,
                num_images=visited.num_images,
                outcomes=outcomes(rows),
                failed=failed_images(rows),
                visit_s=visited.visit_s,
                usage=visited.usage,
            )
        )

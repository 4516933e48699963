"""The last operator of a pass's graph: it writes a shard's rows and publishes them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Generic

from mpa_ray.errors import ConfigError, RunError
from mpa_ray.pipeline.graph_rows import EncodedShard, Failure, ShardFailed, VisitedShard, decode, encode
from mpa_ray.pipeline.pass_spec import ShardDone
from mpa_ray.run.dataset import ShardTarget
from mpa_ray.stages.image_work import OutT, failed_images, outcomes, unparsed_replies


@dataclass(frozen=True)
class CommitShard(Generic[OutT]):
    """Commit a visited shard."""

    target: ShardTarget[OutT]

    def __call__(self, row: EncodedShard) -> EncodedShard:
        visited = decode(row, VisitedShard)
        if visited.fetched.left is not None:
            return encode(visited.fetched.left)
        if visited.failure is not None:
            return encode(ShardFailed(visited.shard, visited.failure))
        started = time.monotonic()
        try:
            rows = self._commit(visited)
        except (RunError, ConfigError, OSError, ValueError) as error:
            return encode(ShardFailed(visited.shard, Failure.of(error)))
        visited.usage.write_s += time.monotonic() - started
        num_replies, unparsed = unparsed_replies(rows)
        return encode(
            ShardDone(
                shard=visited.shard,
                num_images=visited.num_images,
                outcomes=outcomes(rows),
                failed=failed_images(rows),
                num_replies=num_replies,
                unparsed=unparsed,
                num_unread=visited.fetched.num_unread,
                num_kept=len(visited.fetched.plan.kept),
                visit_s=visited.visit_s,
                usage=visited.usage,
            )
        )

    def _commit(self, visited: VisitedShard) -> list[OutT]:
        """Commit the shard if it is not committed yet. Returns its rows without those kept from an older generation."""
        shard, plan = visited.shard, visited.fetched.plan
        rows = plan.merge(visited.fetched.order, visited.rows)
        versions = visited.versions
        if not plan.is_current and self.target.commit(shard, rows, plan.generation, plan.source_generation, versions):
            return [row for row in rows if row.image_id not in plan.kept]
        # Another attempt or another driver has committed this generation first, and its rows are valid.
        return [row for row in self.target.read(shard) if row.image_id not in plan.kept]

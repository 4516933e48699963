"""The outcomes of a pass: its last line on the terminal, and the shards that are left unfinished."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from mpa_ray.config import LimitsConfig
from mpa_ray.errors import Unfinished
from mpa_ray.errors.remedies import Remedy
from mpa_ray.pipeline.pass_spec import ShardDone, ShardLeft
from mpa_ray.records import Reason, State

_NUM_REASONS_SHOWN = 3


@dataclass
class PassOutcomes:
    """Sums over the shards of a pass, without the rows that were kept from previous generations."""

    num_images: int = 0
    rows: Counter[tuple[str, str]] = field(default_factory=Counter)
    """The numbers of rows by state and reason."""
    num_unread: int = 0
    """The number of images that could not be read for a reason that may be temporary, in committed shards."""
    left: list[ShardLeft] = field(default_factory=list)

    def count(self, shard: ShardDone) -> None:
        """Add a committed shard."""
        self.num_images += shard.num_images
        self.num_unread += shard.num_unread
        self.rows.update(shard.outcomes)

    def leave(self, shard: ShardLeft, limits: LimitsConfig, label: str) -> None:
        """Add a shard that is left unfinished, so that the same command must be run again.

        Raises:
            Unfinished: too many images cannot be read now, so the other shards are not tried.
        """
        self.left.append(shard)
        num_unread = sum(left.num_unread for left in self.left)
        num_seen = self.num_images + sum(left.num_images for left in self.left)
        if num_seen >= limits.min_images and num_unread > limits.max_failed_rate * num_seen:
            raise self._unfinished(label)

    @property
    def may_pass(self) -> Counter[str]:
        """The numbers of images that this pass could not visit for reasons that may be temporary, by reason.

        Rows that failed in an earlier phase are not counted.
        """
        return Counter({str(Reason.STORAGE): self.num_unread} if self.num_unread else {})

    def line(self, label: str) -> str:
        """The last line on the terminal: the shares of failed and dropped rows, with their most frequent reasons."""
        shares = (f"{self._share(State.FAILED)} failed", f"{self._share(State.DROPPED)} were dropped")
        reasons = (self._reasons(State.FAILED), self._reasons(State.DROPPED))
        failed, dropped = (share + named for share, named in zip(shares, reasons, strict=True))
        return f"{label}: of {self.rows.total()} rows, {failed}, {dropped}"

    def check_complete(self, label: str) -> None:
        """Raise Unfinished if shards are left."""
        if self.left:
            raise self._unfinished(label)

    def _unfinished(self, label: str) -> Unfinished:
        num_unread, detail = sum(left.num_unread for left in self.left), self.left[0].detail
        shards = "1 shard is" if len(self.left) == 1 else f"{len(self.left)} shards are"
        images = "1 image" if num_unread == 1 else f"{num_unread} images"
        return Unfinished(
            f"{label}: {shards} unfinished, because {images} could not be read ({detail}). {Remedy.SAME_COMMAND}"
        )

    def _by_reason(self, state: State) -> Counter[str]:
        return Counter({reason: num for (row_state, reason), num in self.rows.items() if row_state == state})

    def _share(self, state: State) -> str:
        total = self.rows.total()
        return f"{self._by_reason(state).total() / total:.1%}" if total else "0.0%"

    def _reasons(self, state: State) -> str:
        named = [f"{reason}: {num}" for reason, num in self._by_reason(state).most_common(_NUM_REASONS_SHOWN)]
        return f" ({', '.join(named)})" if named else ""

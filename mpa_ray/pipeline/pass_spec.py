"""A pass and the results of its shards. Imports no Ray, so that a finished phase answers at once."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic

from mpa_ray.config import LimitsConfig, ModelConfig, ReadingConfig
from mpa_ray.corpus.read import Reader
from mpa_ray.engine.protocol import VisionLanguageModel
from mpa_ray.models.shared_engines import Adapter
from mpa_ray.observability.usage import Usage
from mpa_ray.records import Annotation
from mpa_ray.run.dataset import ShardedDataset, ShardSource, ShardTarget
from mpa_ray.run.phase_record import PhaseKey
from mpa_ray.run.redo import Redo
from mpa_ray.stages.image_work import OutT, Stage


@dataclass(frozen=True)
class Pass(Generic[OutT]):
    """One pass of one engine's models over the shards of a dataset."""

    key: PhaseKey
    """The phase that the pass belongs to."""
    models: tuple[str, ...]
    """The names of the models that are asked about each image: the engine's model, its adapters, or both."""
    source: ShardSource[Any]
    target: ShardTarget[OutT]
    model: ModelConfig
    make_stage: Callable[[VisionLanguageModel], Stage[Any, OutT]]
    """Called in the actor, so it must be picklable."""
    reader: Reader
    reading: ReadingConfig
    limits: LimitsConfig
    needs_image: Callable[[Any], bool] = lambda _: True
    """Whether a row's image has to be read."""
    deduplicated: ShardedDataset[Annotation] | None = None
    """The dataset in which duplicates are found: an image with the same bytes as an earlier one is not shown to the
    model. None finds no duplicates."""
    adapters: Mapping[str, Adapter] = field(default_factory=dict)
    """The adapters that the engine loads, by the models' names."""
    run_dir: str = ""
    redo: Redo | None = None
    """What of the committed shards is made again; None makes whole shards that are missing."""
    command: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Identifies the command that the pass belongs to. A command counts once, however often it reads a shard."""

    @property
    def pool(self) -> str:
        """Names the engines of the pass in metrics and errors: `annotate:teacher`, `identify:small+2`."""
        arm = f" {self.key.arm}" if self.key.arm != "parity" else ""
        return f"{self.key.kind}:{self.models_label}{arm}"

    @property
    def log_fields(self) -> dict[str, str]:
        """The fields that the log records of the pass carry."""
        return {"run": self.run_dir, **self.key.log_fields, "student": self.models_label}

    @property
    def models_label(self) -> str:
        """The first model, and the number of others that share its engine."""
        first, *others = self.models
        return f"{first}+{len(others)}" if others else first


@dataclass(frozen=True)
class ShardDone:
    """What the driver learns about a committed shard."""

    shard: str
    num_images: int
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Rows by state and reason, without those of kept images."""
    failed: Counter[str] = field(default_factory=Counter)
    """Images whose rows all failed, by reason."""
    num_unread: int = 0
    """Images among them that could not be read for reasons that may pass."""
    num_kept: int = 0
    """Images whose rows were kept from the shard's generation before."""
    visit_s: float = 0.0
    """Seconds from the shard's arrival at an engine to its last image."""
    usage: Usage = field(default_factory=Usage)
    """What the replica spent since the last shard that it finished, partly on other shards."""


@dataclass(frozen=True)
class ShardLeft:
    """A shard that is left for the next run of the command, because images could not be read for now."""

    shard: str
    num_images: int
    num_unread: int
    detail: str
    """Why one of them could not be read."""

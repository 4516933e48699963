"""A pass and the results of its shards. This module does not import Ray, so that a phase without work ends quickly."""

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
    branch: str
    """The branch of the configuration that describes the model, such as `students.0`."""
    make_stage: Callable[[VisionLanguageModel], Stage[Any, OutT]]
    """Called in the actor that holds the engine, so it must be picklable."""
    reader: Reader
    reading: ReadingConfig
    limits: LimitsConfig
    needs_image: Callable[[Any], bool] = lambda _: True
    """Whether a row's image has to be read."""
    deduplicated: ShardedDataset[Annotation] | None = None
    """The dataset with the digests of the images of committed shards. An image with the same bytes as an earlier one is
    not shown to the model. If None, the pass does not look for duplicates."""
    adapters: Mapping[str, Adapter] = field(default_factory=dict)
    """The adapters that the engine loads, by the models' names."""
    run_dir: str = ""
    redo: Redo | None = None
    """Decides which images of committed shards are visited again; None if the pass only makes missing shards."""
    command: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Identifies the run of the command that the pass belongs to. The dataset counts the runs that could not read a
    shard; each run counts once, no matter how often it tried."""

    @property
    def pool(self) -> str:
        """The name of the pass's engines in metrics and errors, such as `annotate:teacher` or `identify:small+2`."""
        arm = f" {self.key.arm}" if self.key.arm != "parity" else ""
        return f"{self.key.kind}:{self.models_label}{arm}"

    @property
    def log_fields(self) -> dict[str, str]:
        """The fields that the log records of the pass carry."""
        return {"run": self.run_dir, **self.key.log_fields, "student": self.models_label}

    @property
    def models_label(self) -> str:
        """The name of the first model, and the number of others that share its engine: `small+2`."""
        first, *others = self.models
        return f"{first}+{len(others)}" if others else first


@dataclass(frozen=True)
class ShardDone:
    """The result of a committed shard, for the driver."""

    shard: str
    num_images: int
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    """The numbers of rows by state and reason, without the rows that were kept from the previous generation."""
    failed: Counter[str] = field(default_factory=Counter)
    """The numbers of images whose rows all failed, by reason."""
    num_replies: int = 0
    """The number of the models' replies in this pass."""
    unparsed: Counter[str] = field(default_factory=Counter)
    """The numbers of replies that cannot be used, by reason."""
    num_unread: int = 0
    """The number of failed images that could not be read for a reason that may be temporary."""
    num_kept: int = 0
    """The number of images whose rows were kept from the shard's previous generation."""
    visit_s: float = 0.0
    """Seconds from the shard's arrival at an engine until its last image was done."""
    usage: Usage = field(default_factory=Usage)
    """The usage of the replica since it finished its previous shard; it includes work on other shards."""


@dataclass(frozen=True)
class ShardLeft:
    """A shard that is left for the next run of the command: images could not be read, but perhaps only temporarily."""

    shard: str
    num_images: int
    num_unread: int
    detail: str
    """Why one of the unread images could not be read."""

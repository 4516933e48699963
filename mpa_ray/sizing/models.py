"""Read the sizes of a run's models and of the GPUs that they run on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from mpa_ray.config import ModelConfig, ObjectStoreConfig, PlanConfig, StudentConfig
from mpa_ray.errors import ConfigError
from mpa_ray.models.checkpoints import model_settings, processor_settings
from mpa_ray.models.gpus import GPUS, Gpu
from mpa_ray.sizing.architecture import Architecture, architecture_of
from mpa_ray.sizing.rates import UNKNOWN, Rate
from mpa_ray.sizing.roofline import Roofline
from mpa_ray.sizing.sequence import VisitText


@dataclass(frozen=True)
class Models:
    """Reads each checkpoint's config.json once."""

    plan: PlanConfig
    object_store: ObjectStoreConfig
    notes: list[str]
    """If the sizes of a checkpoint cannot be read, the error is added to this list."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """For each checkpoint, the dotted name of the setting that names it. Errors contain this name."""
    visit_text: VisitText | None = None
    """The text of the longest visit, which gives the maximum sequence length; None means the models' own limits."""
    _architectures: dict[tuple[str, str], Architecture | None] = field(default_factory=dict, init=False, repr=False)

    def architecture(self, model: ModelConfig) -> Architecture | None:
        """The model's architecture; None if it has no checkpoint, or its sizes cannot be read."""
        if not model.engine.has_checkpoint:
            return None
        # An engine's arguments for the processor may change the tokens of an image.
        key = model.model, repr(model.engine.processor_arguments)
        if key not in self._architectures:
            self._architectures[key] = self._read(model)
        return self._architectures[key]

    def _read(self, model: ModelConfig) -> Architecture | None:
        try:
            return read_architecture(model, self.object_store)
        except ConfigError as error:
            self.notes.append(str(error.with_field(self.settings.get(model.model, "model"), model.model)))
            return None

    def image_tokens(self, model: ModelConfig) -> int | None:
        """The most tokens that an image can have within the model's pixel limits.

        None if neither the plan nor the checkpoint gives them.
        """
        if self.plan.image_tokens is not None:
            return self.plan.image_tokens
        sizes = self.architecture(model)
        return sizes.image_rule.most_tokens(model.min_pixels, model.max_pixels) if sizes is not None else None

    def gpu_name(self, model: ModelConfig) -> str:
        """The kind of GPU that the model runs on; empty if the settings name none."""
        return model.accelerator_type or self.plan.gpu or ""

    def gpu(self, model: ModelConfig) -> Gpu | None:
        """The model's GPU; None if its kind is not known."""
        gpu = GPUS.get(self.gpu_name(model))
        if gpu is not None and self.plan.gpu_memory_gib is not None:
            return replace(gpu, memory_gib=self.plan.gpu_memory_gib)
        return gpu

    def gpu_memory_gib(self, model: ModelConfig) -> float | None:
        """The memory of one GPU; None if neither the plan nor the kind of GPU gives it."""
        gpu = self.gpu(model)
        return gpu.memory_gib if gpu is not None else self.plan.gpu_memory_gib

    def estimate(
        self, model: ModelConfig, num_gpus: float, seconds: Callable[[Roofline, Architecture, int], float]
    ) -> Rate:
        """Estimate units per second from the roofline of the model's GPU.

        Args:
            model: The model.
            num_gpus: The GPUs of a replica or worker. If it is 0, there is no estimate.
            seconds: Computes the seconds of one unit from the roofline, the model's sizes and the tokens of an image.
        """
        gpu, sizes, image_tokens = self.gpu(model), self.architecture(model), self.image_tokens(model)
        if gpu is None or sizes is None or image_tokens is None or not num_gpus:
            return UNKNOWN
        return Rate(1 / seconds(Roofline(gpu, self.plan.efficiency), sizes, image_tokens), "estimated")


def read_architecture(model: ModelConfig, object_store: ObjectStoreConfig) -> Architecture:
    """The architecture of a checkpoint. No weights are read or downloaded.

    Raises:
        ConfigError: its settings cannot be read, or lack a size.
    """
    settings, processor = model_settings(model.model, object_store), processor_settings(model.model, object_store)
    return architecture_of(settings, model.model, processor, model.engine.processor_arguments)


def num_parameters(model: ModelConfig, object_store: ObjectStoreConfig) -> int:
    """The number of a model's parameters; 0 if it has no checkpoint, or its sizes cannot be read."""
    if not model.engine.has_checkpoint:
        return 0
    try:
        return read_architecture(model, object_store).total
    except ConfigError:
        return 0


def answers_alike(one: ModelConfig, other: ModelConfig) -> bool:
    """Whether two models give the same answers: the model and all settings that affect answers are the same."""
    return _answer_settings(one) == _answer_settings(other)


def first_of_same_model(students: Sequence[StudentConfig]) -> list[StudentConfig]:
    """The first student of each model. It answers the questions; later students with the same model copy its
    answers."""
    first: list[StudentConfig] = []
    for student in students:
        if not any(answers_alike(student, other) for other in first):
            first.append(student)
    return first


def _answer_settings(model: ModelConfig) -> tuple[object, ...]:
    """The settings that affect answers."""
    return (
        *(model.model, model.engine.kind, model.engine.identity_fields()),
        *(model.min_pixels, model.max_pixels, model.max_image_pixels),
        *(model.chat_template_args, model.max_reasoning_tokens),
    )

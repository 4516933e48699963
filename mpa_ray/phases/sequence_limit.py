"""The default maximum length of the sequences of a run's engines."""

from __future__ import annotations

from mpa_ray.config import EvaluationRunConfig
from mpa_ray.errors import ConfigError
from mpa_ray.phases.context import RunContext
from mpa_ray.sizing.models import read_architecture
from mpa_ray.sizing.sequence import ModelT, VisitText


def with_sequence_limit(context: RunContext[EvaluationRunConfig], model: ModelT) -> ModelT:
    """Return the model with a maximum sequence length that is enough for every visit.

    The model is unchanged if its settings have a maximum, or if the sizes of its checkpoint are not known.
    """
    if model.engine.limits_sequences or not model.engine.has_checkpoint:
        return model
    try:
        sizes = read_architecture(model, context.config.object_store)
    except ConfigError:
        return model
    return VisitText.of(context.config, context.task).with_limit(model, sizes)

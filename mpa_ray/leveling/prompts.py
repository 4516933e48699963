"""Check whether a student can be prompted with a sample's question."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from mpa_ray.config import ObjectStoreConfig
from mpa_ray.models.chat_template import SpecialTokenInText, load_processor, render
from mpa_ray.models.checkpoints import processor_folder
from mpa_ray.records import ParitySample
from mpa_ray.tasks.task import Task


class PromptCheck:
    """Checks that no question contains a special token of the student, such as the one that ends a turn."""

    def __init__(self, model: str, object_store: ObjectStoreConfig, task: Task) -> None:
        """Check questions for a student's model, whose processor is loaded when the first question is checked."""
        self._model = model
        self._object_store = object_store
        self._task = task

    def __call__(self, sample: ParitySample) -> bool:
        """Whether the student can be prompted with the sample's question."""
        if sample.num_prompt_tokens:
            # The student was already prompted with this question in identification.
            return True
        try:
            render(self._processor, self._task.answer_prompt(sample.question))
        except SpecialTokenInText:
            return False
        return True

    @cached_property
    def _processor(self) -> Any:
        return load_processor(processor_folder(self._model, self._object_store))

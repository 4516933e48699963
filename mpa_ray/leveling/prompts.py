"""Check whether a student can be prompted with a sample's question."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from mpa_ray.config import ModelConfig, ObjectStoreConfig
from mpa_ray.models.chat_template import SpecialTokenInText, load_processor, render
from mpa_ray.models.checkpoints import processor_folder
from mpa_ray.records import ParitySample
from mpa_ray.tasks.task import Task


class PromptCheck:
    """Checks that no question contains a special token of the student, such as the one that ends a turn."""

    def __init__(self, student: ModelConfig, object_store: ObjectStoreConfig, task: Task) -> None:
        """Check questions for a student's model, whose processor is loaded when the first question is checked."""
        self._student = student
        self._object_store = object_store
        self._task = task

    def __call__(self, sample: ParitySample) -> bool:
        """Whether the student can be prompted with the sample's question."""
        if sample.num_prompt_tokens:
            # The student was already prompted with this question in identification.
            return True
        try:
            prompt = self._task.answer_prompt(sample.question)
            render(self._processor, prompt, self._student.chat_template_args)
        except SpecialTokenInText:
            return False
        return True

    @cached_property
    def _processor(self) -> Any:
        return load_processor(processor_folder(self._student.model, self._object_store))

"""Settings of the Pseudo Annotator."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mpa_ray.config.models import SamplingConfig
from mpa_ray.config.settings import Settings


class AnnotateConfig(Settings):
    """The Pseudo Annotator: the teacher writes questions and answers."""

    sampling: SamplingConfig = SamplingConfig(temperature=0.7, top_p=0.95)
    """How the teacher's question-answer pairs are sampled."""
    reply: Literal["free", "json"] = "free"
    """The form of the teacher's reply: `json` makes the engine produce a JSON object with a question and an answer;
    with `free`, only the prompt asks for a form."""
    num_questions: int = Field(1, ge=1)
    """Question-answer pairs to draw for each image. A repeated question is dropped."""
    num_second_answers: int = Field(1, ge=1)
    """How many times the teacher answers each question again. With 1, the second answer is greedy. With a larger
    number, answers are drawn with `sampling`, and the most frequent one becomes the second answer (self-consistency,
    arXiv 2203.11171)."""

    @model_validator(mode="after")
    def _draws_differ(self) -> AnnotateConfig:
        for name in ("num_questions", "num_second_answers"):
            if getattr(self, name) > 1 and self.sampling.temperature == 0:
                raise ValueError(
                    f"{name}: more than 1 needs sampling.temperature over 0: greedy replies are all the same"
                )
        return self

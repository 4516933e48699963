"""Settings of the Pseudo Annotator."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mpa_ray.config.models import SamplingConfig
from mpa_ray.config.settings import Settings


class AnnotateConfig(Settings):
    """The Pseudo Annotator."""

    sampling: SamplingConfig = SamplingConfig(temperature=0.7, top_p=0.95)
    """How the teacher writes a pair."""
    reply: Literal["free", "json"] = "free"
    """`json` makes the engine write an object with a question and an answer, whatever the model is inclined to."""
    num_questions: int = Field(1, ge=1)
    """Pairs drawn for each image, in one visit; a question that the image has already is dropped."""
    num_second_answers: int = Field(1, ge=1)
    """1 answers each question afresh once, greedily. More are drawn as `sampling` says and put to the vote: the answer
    given most often is the second answer, stored with its share of the votes (self-consistency, arXiv 2203.11171)."""

    @model_validator(mode="after")
    def _draws_differ(self) -> AnnotateConfig:
        for name in ("num_questions", "num_second_answers"):
            if getattr(self, name) > 1 and self.sampling.temperature == 0:
                raise ValueError(f"{name} over 1 needs sampling.temperature over 0: greedy replies are all the same")
        return self

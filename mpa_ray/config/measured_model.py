"""The names of a run's students in the evaluation, where each student is measured before and after training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import get_args

from mpa_ray.config.level import Arm

_BEFORE, _AFTER = "before", "after"


@dataclass(frozen=True)
class MeasuredModel:
    """A student as the evaluation measures it: before training, or after training on an arm."""

    student: str
    arm: Arm | None
    """The arm that the model was trained on; None for the student before training."""

    @property
    def when(self) -> str:
        """`before` for the model before training, `after` for the arm `parity`, and the arm's name for any other
        arm."""
        if self.arm is None:
            return _BEFORE
        return _AFTER if self.arm == "parity" else self.arm

    @property
    def name(self) -> str:
        """The name of the model in predictions, scores and reports, such as `small.after`."""
        return f"{self.student}.{self.when}"

    @classmethod
    def from_name(cls, name: str) -> MeasuredModel | None:
        """The inverse of `name`; None if the name is not that of a student's model, such as `teacher`."""
        student, _, when = name.rpartition(".")
        models = [cls(student, None), *cls.trained(student, get_args(Arm))]
        return next((model for model in models if student and model.when == when), None)

    @classmethod
    def trained(cls, student: str, arms: Iterable[Arm]) -> list[MeasuredModel]:
        """A student after training on each of the arms."""
        return [cls(student, arm) for arm in arms]

    @classmethod
    def all_of(cls, student: str, arms: Iterable[Arm]) -> list[MeasuredModel]:
        """A student before training, then after training on each of the arms."""
        return [cls(student, None), *cls.trained(student, arms)]

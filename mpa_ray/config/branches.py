"""The branches of the configuration that describe the models of a run."""

from __future__ import annotations

from dataclasses import dataclass, field

from mpa_ray.config.measured_model import MeasuredModel
from mpa_ray.config.run import EvaluationRunConfig, RunConfig


@dataclass(frozen=True)
class ModelBranches:
    """The dotted name of the branch of each model, such as `students.0`."""

    students: dict[str, str] = field(default_factory=dict)
    """The branches of students by their names. All rounds of a student have the same branch."""
    measured: dict[str, str] = field(default_factory=dict)
    """The branches of measured models by their names, such as `small.after`."""

    @classmethod
    def of(cls, config: EvaluationRunConfig) -> ModelBranches:
        """The branches of a configuration as the user wrote it."""
        students: dict[str, str] = {}
        measured: dict[str, str] = {}
        if isinstance(config, RunConfig):
            measured["teacher"] = "teacher"
            for index, student in enumerate(config.students):
                for name in (student.name_in(number) for number in range(1, student.rounds + 1)):
                    students[name] = f"students.{index}"
                    for model in MeasuredModel.all_of(name, student.arms):
                        measured[model.name] = f"students.{index}"
        for index, named in enumerate(config.evaluate.models if config.evaluate is not None else ()):
            measured[named.name] = f"evaluate.models.{index}"
        return cls(students, measured)

    def of_model(self, name: str) -> str:
        """The branch of a student or of a measured model."""
        return self.students.get(name) or self.measured[name]

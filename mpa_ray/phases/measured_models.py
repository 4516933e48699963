"""The models of an evaluation: their names, where they come from, and what is compared with what."""

from __future__ import annotations

from mpa_ray.config import EvaluateConfig, EvaluationRunConfig, ModelConfig, RunConfig, StudentConfig, measured_as
from mpa_ray.phases.context import RunContext
from mpa_ray.run.run import Run


def measured_models(context: RunContext[EvaluationRunConfig]) -> dict[str, ModelConfig]:
    """The models by the name of their predictions; a student that is not leveled has no `after`."""
    config, run = context.config, context.run
    models: dict[str, ModelConfig] = {}
    if isinstance(config, RunConfig):
        for student in config.students:
            models[f"{student.name}.before"] = student
            for arm in student.arms:
                if run.is_leveled(student.name, arm):
                    trained = {"model": run.merged_model(student.name, arm)}
                    models[f"{student.name}.{measured_as(arm)}"] = student.model_copy(update=trained)
        if config.evaluate is not None and config.evaluate.teacher:
            models["teacher"] = config.teacher
    further = config.evaluate.models if config.evaluate is not None else []
    return models | {model.name: model for model in further}


def names_of_student(student: StudentConfig) -> list[str]:
    """The names of a student's predictions, whether or not it is trained."""
    return [f"{student.name}.{when}" for when in ("before", *map(measured_as, student.arms))]


def comparisons(config: EvaluationRunConfig, settings: EvaluateConfig) -> list[tuple[str, str]]:
    """Models whose answers are compared question by question: from the first to the second."""
    named = [(model.compared_to, model.name) for model in settings.models if model.compared_to is not None]
    students = config.students if isinstance(config, RunConfig) else []
    pairs = [(before, trained) for s in students for before, *after in [names_of_student(s)] for trained in after]
    return pairs + named


def upstream_of_all(config: EvaluationRunConfig) -> list[str]:
    """The datasets that the models of a run come from."""
    if not isinstance(config, RunConfig):
        return []
    trained = [Run.student_dir(student.name, arm) for student in config.students for arm in student.arms]
    return ["corpus", "annotations", *(Run.verdicts_dir(student.name) for student in config.students), *trained]


def upstream_of(config: EvaluationRunConfig, model: str) -> list[str]:
    """The dataset that a measured model comes from: of an aligned student, its training."""
    students = config.students if isinstance(config, RunConfig) else []
    trained = {f"{s.name}.{measured_as(arm)}": Run.student_dir(s.name, arm) for s in students for arm in s.arms}
    return [trained[model]] if model in trained else []

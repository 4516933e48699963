"""The models of an evaluation: their names, the datasets that they are made from, and the pairs to compare."""

from __future__ import annotations

from mpa_ray.config import EvaluateConfig, EvaluationRunConfig, MeasuredModel, ModelConfig, RunConfig, StudentConfig
from mpa_ray.phases.context import RunContext
from mpa_ray.run.run import Run


def measured_models(context: RunContext[EvaluationRunConfig]) -> dict[str, ModelConfig]:
    """All models of the evaluation by name. Trained students are included once they are leveled."""
    config, run = context.config, context.run
    models: dict[str, ModelConfig] = {}
    if isinstance(config, RunConfig):
        for student in config.students:
            models[MeasuredModel(student.name, None).name] = student
            for arm in student.arms:
                if run.is_leveled(student.name, arm):
                    exported = {"model": run.merged_model(student.name, arm)}
                    models[MeasuredModel(student.name, arm).name] = student.model_copy(update=exported)
        if config.evaluate is not None and config.evaluate.teacher:
            models["teacher"] = config.teacher
    if config.evaluate is not None:
        models |= {model.name: model for model in config.evaluate.models}
    return models


def names_of_student(student: StudentConfig) -> list[str]:
    """The names under which a student is measured: before training, then after training on each arm."""
    return [model.name for model in MeasuredModel.all_of(student.name, student.arms)]


def comparisons(config: EvaluationRunConfig, settings: EvaluateConfig) -> list[tuple[str, str]]:
    """Pairs of models to compare question by question. A comparison shows the change from the first to the second."""
    pairs: list[tuple[str, str]] = []
    if isinstance(config, RunConfig):
        for student in config.students:
            before, *trained = names_of_student(student)
            pairs += [(before, name) for name in trained]
    pairs += [(model.compared_to, model.name) for model in settings.models if model.compared_to is not None]
    return pairs


def upstream_datasets(config: EvaluationRunConfig) -> list[str]:
    """The datasets that a run's students are made from."""
    if not isinstance(config, RunConfig):
        return []
    verdicts = [Run.verdicts_dir(student.name) for student in config.students]
    trainings = [Run.student_dir(student.name, arm) for student in config.students for arm in student.arms]
    return ["corpus", "annotations", *verdicts, *trainings]


def upstream_of_model(config: EvaluationRunConfig, name: str) -> list[str]:
    """The dataset that one measured model is made from: its training if it is a trained student, otherwise none."""
    if not isinstance(config, RunConfig):
        return []
    return [
        Run.student_dir(student.name, arm)
        for student in config.students
        for arm in student.arms
        if name == MeasuredModel(student.name, arm).name
    ]

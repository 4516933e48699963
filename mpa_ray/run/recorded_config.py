"""The configuration of a run's latest command, as run.json records it."""

from __future__ import annotations

from typing import TypedDict

from mpa_ray.config import Arm, EvaluationRunConfig, MeasuredModel, parse_config
from mpa_ray.errors import ConfigError
from mpa_ray.run.run import RUN_FILE, Run


class RecordedModel(TypedDict, total=False):
    """The settings of a model that readers of run.json use. A run of another version may lack some of them."""

    name: str
    model: str
    max_pixels: int
    cpus_per_replica: float
    gpus_per_replica: float
    accelerator_type: str | None
    num_replicas: int
    max_num_replicas: int | None


class RecordedLevel(TypedDict, total=False):
    """The settings of training."""

    num_workers: int
    gpus_per_worker: float


class RecordedStudent(RecordedModel, total=False):
    """The settings of a student."""

    rounds: int
    arms: list[Arm]
    level: RecordedLevel


class RecordedAnnotate(TypedDict, total=False):
    """The settings of annotation."""

    num_questions: int
    num_second_answers: int


class RecordedBenchmark(TypedDict):
    """The settings that name a benchmark."""

    name: str | None
    kind: str


class RecordedEvaluation(TypedDict):
    """The settings of the evaluation."""

    teacher: bool
    benchmarks: list[RecordedBenchmark]
    models: list[RecordedModel]


class RecordedSource(TypedDict):
    """The settings of the source."""

    limit: int | None


class RecordedConfig(TypedDict, total=False):
    """The settings in run.json that are read even if this version does not accept the others: another version may have
    written the file."""

    source: RecordedSource
    teacher: RecordedModel
    students: list[RecordedStudent]
    annotate: RecordedAnnotate
    evaluate: RecordedEvaluation | None


def benchmark_label(benchmark: RecordedBenchmark) -> str:
    """The name of a benchmark in the run's files."""
    return benchmark["name"] or benchmark["kind"]


def read_config(run: Run) -> EvaluationRunConfig:
    """Read the configuration. It is a `RunConfig` if the run aligns students.

    Raises:
        ConfigError: the directory holds no run, or a run with settings that this version does not accept.
    """
    config = recorded_config(run)
    students = config.get("students", [])
    later = {f"{s['name']}.round{number}" for s in students for number in range(2, s.get("rounds", 1) + 1)}
    # Leave out students of later rounds, which are derived from the students of the first round.
    first = {"students": [student for student in students if student["name"] not in later]} if students else {}
    return parse_config({**config, **first})


def student_names(run: Run) -> list[str]:
    """The names of the students. Raises ConfigError if the directory holds no run."""
    return [student["name"] for student in recorded_config(run).get("students", [])]


def arms_by_student(run: Run) -> dict[str, list[Arm]]:
    """The arms of each student. Raises ConfigError if the directory holds no run."""
    only_parity: list[Arm] = ["parity"]
    return {student["name"]: student.get("arms", only_parity) for student in recorded_config(run).get("students", [])}


def models_by_benchmark(run: Run) -> dict[str, list[str]]:
    """The names of the models that may have answered each benchmark. Raises ConfigError as `student_names` does."""
    config = recorded_config(run)
    settings = config.get("evaluate")
    if settings is None:
        return {}
    models = ["teacher"] if "teacher" in config else []
    for student, arms in arms_by_student(run).items():
        models += [model.name for model in MeasuredModel.all_of(student, arms)]
    models += [model["name"] for model in settings["models"]]
    return {benchmark_label(benchmark): models for benchmark in settings["benchmarks"]}


def recorded_config(run: Run) -> RecordedConfig:
    """The settings that run.json holds, unchecked. Raises ConfigError if the directory holds no run."""
    try:
        config: RecordedConfig = run.read_json(RUN_FILE)["config"]
    except FileNotFoundError:
        raise ConfigError("run_dir", run.storage.root, "has no run.json.", "Give the directory of a run.") from None
    return config

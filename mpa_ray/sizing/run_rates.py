"""The rates that an earlier run measured."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from mpa_ray.config import MeasuredModel, RunConfig
from mpa_ray.observability.rate import per_second
from mpa_ray.run.phase_record import PhaseKey, PhaseKind, PhaseRecord, phase_records
from mpa_ray.run.recorded_config import (
    RecordedAnnotate,
    RecordedConfig,
    RecordedLevel,
    RecordedModel,
    RecordedStudent,
    benchmark_label,
    recorded_config,
)
from mpa_ray.run.run import Run
from mpa_ray.run.training_log import TrainingLog
from mpa_ray.run.training_state import TrainingState

T = TypeVar("T")


@dataclass(frozen=True)
class TrainingRates:
    """What a finished training run measured. A field is None if it was not measured."""

    samples_per_s: float | None = None
    """Samples per second of one worker."""
    start_s: float | None = None
    """Seconds that the training took in addition to its optimiser steps."""
    memory_gib: float | None = None
    """The peak memory use of a worker's GPU."""


@dataclass(frozen=True)
class RunRates:
    """Rates of a run, each for one replica or worker. A rate is None if the run did not measure it."""

    config: RecordedConfig = field(default_factory=RecordedConfig)
    """The run's settings, as run.json has them."""
    num_images: int | None = None
    questions_per_image: float = 1.0
    """The mean number of benchmark questions about an image, over all benchmarks."""
    records: Mapping[PhaseKey, PhaseRecord] = field(default_factory=dict)
    num_parity: Mapping[str, int | None] = field(default_factory=dict)
    """Parity samples by student."""
    trainings: Mapping[str, TrainingRates] = field(default_factory=dict)
    """Rates of training by student."""

    @classmethod
    def of_run(cls, run: Run) -> RunRates:
        """Read a run's files. Raises ConfigError if the directory holds no run."""
        config = recorded_config(run)
        records = dict(phase_records(run))
        levels = {student["name"]: student["level"] for student in config.get("students", [])}
        return cls(
            config=config,
            num_images=run.manifest().num_images if run.is_indexed() else None,
            questions_per_image=_questions_per_image(run, config),
            records=records,
            num_parity={
                name: run.parity_manifest(name).num_samples if run.is_identified(name) else None for name in levels
            },
            trainings={
                name: _training_rates(run, name, level, records.get(PhaseKey("level", name)))
                for name, level in levels.items()
            },
        )

    def engine_start_s(self, kind: PhaseKind | None = None) -> float | None:
        """Seconds for which no engine of a pass works: the median over phases of this kind, else over all phases."""
        starts = {
            key: (record.wall_s - record.totals.working_s) / record.num_attempts
            for key, record in self.records.items()
            if record.totals is not None and record.totals.working_s
        }
        of_kind = _median(starts, lambda key: key.kind == kind)
        return of_kind if of_kind is not None else _median(starts)

    @property
    def training_start_s(self) -> float | None:
        """Seconds that a training run takes in addition to its optimiser steps: the median over all training runs."""
        starts = {name: rates.start_s for name, rates in self.trainings.items() if rates.start_s is not None}
        return _median(starts)

    @property
    def index_images_per_s(self) -> float | None:
        """Images per second that one driver lists. The driver may have done other work at the same time."""
        record = self.records.get(PhaseKey("index"))
        return per_second(self.num_images, record.wall_s) if record and self.num_images else None

    @property
    def annotated_images_per_s(self) -> float | None:
        """Images per second that the teacher annotates."""
        return self._images_per_s(PhaseKey("annotate"), self.config.get("teacher", RecordedModel()))

    def identified_images_per_s(self, name: str, model: str) -> float | None:
        """Images per second in identification: of this student, else the median for its model, else for all."""
        return self._of_student(name, model, lambda n: self._images_per_s(PhaseKey("identify", n), self._students[n]))

    def benchmark_questions_per_s(self, name: str, model: str) -> float | None:
        """Benchmark questions per second: for this name, else the median for the same model, else for all."""
        rates: dict[str, float | None] = {}
        models: dict[str, str] = {}
        for key in self.records:
            if key.kind == "evaluate" and key.model is not None:
                settings = self._settings_of(key.model)
                images_per_s = self._images_per_s(key, settings)
                rates[key.model] = None if images_per_s is None else images_per_s * self.questions_per_image
                models[key.model] = settings.get("model", "")
        return _nearest(name, model, rates, models)

    def tokens_per_image(self, key: PhaseKey) -> float | None:
        """Prompt and output tokens per image in this phase, else the median over phases of this kind."""
        tokens: dict[PhaseKey, float] = {}
        for other, record in self.records.items():
            totals = record.totals
            if totals is not None and totals.num_images:
                num_tokens = totals.usage.num_prompt_tokens + totals.usage.num_output_tokens
                tokens[other] = num_tokens / totals.num_images_by_models
        return tokens[key] if key in tokens else _median(tokens, lambda other: other.kind == key.kind)

    def parity_share(self, name: str, model: str) -> float | None:
        """Parity samples per image: of this student, else the median for its model, else for all."""
        num_images = self.num_images
        if not num_images:
            return None
        shares = {n: None if number is None else number / num_images for n, number in self.num_parity.items()}
        return self._of_student(name, model, shares.get)

    def trained_samples_per_s(self, name: str, model: str) -> float | None:
        """Samples per second of one worker: of this student, else the median for its model, else for all."""
        return self._of_student(name, model, lambda n: self.trainings[n].samples_per_s)

    def training_memory_gib(self, name: str) -> float | None:
        """The peak memory use of a worker's GPU in this student's training."""
        return self.trainings[name].memory_gib if name in self.trainings else None

    @property
    def _students(self) -> dict[str, RecordedStudent]:
        """The settings of students by their names."""
        return {student["name"]: student for student in self.config.get("students", [])}

    def _of_student(self, name: str, model: str, rate_of: Callable[[str], float | None]) -> float | None:
        models = {n: settings["model"] for n, settings in self._students.items()}
        return _nearest(name, model, {n: rate_of(n) for n in models}, models)

    def _settings_of(self, measured_model: str) -> RecordedModel:
        """The settings of a model by the name of its predictions."""
        if measured_model == "teacher":
            return self.config.get("teacher", RecordedModel())
        evaluation = self.config.get("evaluate")
        named = {model["name"]: model for model in (evaluation["models"] if evaluation else [])}
        if measured_model in named:
            return named[measured_model]
        student = MeasuredModel.from_name(measured_model)
        settings = self._students.get(student.student) if student is not None else None
        return settings or RecordedModel()

    def _images_per_s(self, key: PhaseKey, model: RecordedModel) -> float | None:
        record = self.records.get(key)
        if record is None or record.totals is None or not record.totals.num_images:
            return None
        return record.totals.images_per_s_of(model.get("max_num_replicas") or model.get("num_replicas") or 1)


def changed_settings(config: RunConfig, measured: RecordedConfig) -> list[str]:
    """Settings that change the speed, and that differ from those of the run that measured the rates."""
    now = config.model_dump(mode="json")
    changes = _changes("teacher", measured.get("teacher", RecordedModel()), now["teacher"], _MODEL_FIELDS)
    changes += _changes("annotate", measured.get("annotate", RecordedAnnotate()), now["annotate"], _ANNOTATE_FIELDS)
    before = {student["name"]: student for student in measured.get("students", [])}
    for student in now["students"]:
        changes += _changes(student["name"], before.get(student["name"], RecordedStudent()), student, _MODEL_FIELDS)
    return changes


_MODEL_FIELDS = (
    *("model", "max_pixels", "chat_template_args", "max_reasoning_tokens"),
    *("gpus_per_replica", "cpus_per_replica", "accelerator_type"),
)
_ANNOTATE_FIELDS = ("num_questions", "num_second_answers")


def _changes(branch: str, before: Mapping[str, object], now: Mapping[str, object], names: Sequence[str]) -> list[str]:
    return [
        f"{branch}.{name} was {before[name]} in the run that measured the rates, and is {now[name]}"
        for name in names
        if name in before and before[name] != now[name]
    ]


def _nearest(name: str, model: str, rates: Mapping[str, float | None], models: Mapping[str, str]) -> float | None:
    """The rate of this name, else the median of the names with the same model, else the median of all names."""
    known = {other: rate for other, rate in rates.items() if rate is not None}
    if name in known:
        return known[name]
    of_model = _median(known, lambda other: models[other] == model)
    return of_model if of_model is not None else _median(known)


def _median(values: Mapping[T, float], is_included: Callable[[T], bool] = lambda _: True) -> float | None:
    """The median of the values whose keys are included; None if there are none."""
    included = [value for key, value in values.items() if is_included(key)]
    return statistics.median(included) if included else None


def _training_rates(run: Run, name: str, level: RecordedLevel, record: PhaseRecord | None) -> TrainingRates:
    folder = run.training_dir(name)
    state = TrainingState.read(run, folder)
    log = state.whole_log(run, folder) if state is not None else TrainingLog()
    samples_per_s = log.samples_per_s
    if samples_per_s is None:
        return TrainingRates()
    num_samples = run.epoch_counts(folder).num_samples if run.has_manifest(f"{folder}/epoch") else None
    start_s = None
    if record is not None and num_samples is not None and run.is_leveled(name):
        start_s = max(0.0, (record.wall_s - num_samples / samples_per_s) / record.num_attempts)
    memory_gib = max(entry.memory_gib or 0.0 for entry in log.entries) if level.get("gpus_per_worker") else None
    return TrainingRates(samples_per_s / level.get("num_workers", 1), start_s, memory_gib)


def _questions_per_image(run: Run, config: RecordedConfig) -> float:
    num_questions = num_images = 0
    evaluation = config.get("evaluate")
    for benchmark in evaluation["benchmarks"] if evaluation else []:
        label = benchmark_label(benchmark)
        folder = run.benchmark_dir(label)
        if run.has_manifest(folder):
            manifest = run.manifest(folder)
            num_images += manifest.num_images
            num_questions += run.questions(label).num_rows(manifest.shards)
    return num_questions / num_images if num_images else 1.0

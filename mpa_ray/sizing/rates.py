"""How fast each kind of work goes: as the user says, as an earlier run measured, or as a GPU could at best."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mpa_ray.config import LevelConfig, LoraConfig, ModelConfig, RunConfig, VllmEngineConfig
from mpa_ray.models.gpus import Gpu
from mpa_ray.run.audit import student_names
from mpa_ray.run.phase_record import PhaseKey, phase_records
from mpa_ray.run.run import Run
from mpa_ray.run.training_state import TrainingState
from mpa_ray.sizing.architecture import Architecture

Origin = Literal["given", "measured", "estimated", "assumed", "not known"]

ENGINE_START_S = 120.0
"""Assumed where nothing was measured: weights, compilation and CUDA graphs of a few billion parameters."""
TRAINING_START_S = 120.0
PARITY_SHARE = 0.1
"""Assumed where nothing was measured: the paper's about 2,000 of 21,953 images of TextVQA (arXiv 2509.16633); a student
with larger gaps has more, the bundled ones 0.3."""
PROMPT_TOKENS, _TAIL_TOKENS, PAIR_TOKENS, ANSWER_TOKENS = 120, 60, 30, 6
"""Text of a prompt; what of a second prompt is not in the cache; a pair and an answer as they are written."""


@dataclass(frozen=True)
class Rate:
    """A number with where it comes from."""

    value: float | None
    origin: Origin

    def or_else(self, other: Callable[[], Rate]) -> Rate:
        return self if self.value is not None else other()


UNKNOWN = Rate(None, "not known")


@dataclass(frozen=True)
class Training:
    """What a finished training measured."""

    samples_per_s: float | None
    """Of one worker."""
    start_s: float | None
    memory_gib: float | None


class RunRates:
    """The rates of an earlier run, from its phases, markers and trainings; all of one replica or worker."""

    def __init__(self, run: Run) -> None:
        """Raises ConfigError where the directory holds no run."""
        self._names = student_names(run)
        self.config: dict[str, Any] = run.read_json("run.json")["config"]
        self._students = {student["name"]: student for student in self.config.get("students", [])}
        self._phases = dict(phase_records(run))
        self._num_images = _number(run, "corpus/manifest.json", "num_images")
        self._parity = {
            name: _number(run, f"{run.parity_dir(name)}/manifest.json", "num_samples") for name in self._names
        }
        self._trainings = {name: self._training(run, name) for name in self._names}
        self._questions_per_image = _questions_per_image(run, self.config)
        found = [training.start_s for training in self._trainings.values() if training.start_s is not None]
        self.training_start_s = statistics.median(found) if found else None

    def engine_start_s(self, kind: str) -> float | None:
        """Seconds of a pass in which its engines were not at work: of passes of this kind (`annotate`, `identify`,
        `check`, `evaluate`), or else of all."""
        starts: dict[str, float | None] = {}
        kinds: dict[str, str] = {}
        for key, record in self._phases.items():
            if record.totals is not None and record.totals.working_s:
                starts[key.label] = (record.wall_s - record.totals.working_s) / record.num_attempts
                kinds[key.label] = key.kind
        return _nearest("", kind, starts, kinds)

    @property
    def index_images_per_s(self) -> float | None:
        """Of listing, by one driver, beside other work perhaps."""
        record = self._phases.get(PhaseKey("index"))
        return self._num_images / record.wall_s if record and record.wall_s and self._num_images else None

    @property
    def annotation(self) -> float | None:
        """Images a second."""
        return self._per_s(PhaseKey("annotate"), self.config.get("teacher", {}))

    def tokens_per_image(self, key: PhaseKey) -> float | None:
        """Prompt and output tokens of an image in a phase, or in the phases of its kind where there was none such."""
        tokens: dict[str, float | None] = {}
        kinds: dict[str, str] = {}
        for other, record in self._phases.items():
            totals = record.totals
            if totals is not None and totals.num_images:
                both = totals.usage.num_prompt_tokens + totals.usage.num_output_tokens
                tokens[other.label], kinds[other.label] = both / totals.num_images_by_models, other.kind
        return _nearest(key.label, key.kind, tokens, kinds, alike_only=True)

    def identification(self, name: str, model: str) -> float | None:
        """Images a second of a student: this one's, one's of the same model, or the median of all."""
        return self._nearest(name, model, lambda n: self._per_s(PhaseKey("identify", n), self._students[n]))

    def evaluation(self, label: str, model: str) -> float | None:
        """Benchmark questions a second of a model, by the name of its predictions; else of the same model, else of
        all."""
        rates: dict[str, float | None] = {}
        models: dict[str, str] = {}
        for key in self._phases:
            if key.kind != "evaluate" or key.model is None:
                continue
            settings = self._settings_of(key.model)
            per_s = self._per_s(key, settings)
            rates[key.model] = per_s * self._questions_per_image if per_s is not None else None
            models[key.model] = settings.get("model", "")
        return _nearest(label, model, rates, models)

    def parity_share(self, name: str, model: str) -> float | None:
        """Parity samples for each image."""
        images = self._num_images
        if not images:
            return None
        return self._nearest(name, model, lambda n: None if (k := self._parity[n]) is None else k / images)

    def training(self, name: str, model: str) -> float | None:
        """Samples a second of one worker."""
        return self._nearest(name, model, lambda n: self._trainings[n].samples_per_s)

    def training_memory_gib(self, name: str) -> float | None:
        """The most that a worker's GPU held for this very student."""
        return self._trainings[name].memory_gib if name in self._trainings else None

    def _nearest(self, name: str, model: str, of: Callable[[str], float | None]) -> float | None:
        return _nearest(
            name, model, {n: of(n) for n in self._names}, {n: self._students[n]["model"] for n in self._names}
        )

    def _settings_of(self, asked: str) -> dict[str, Any]:
        if asked == "teacher":
            return dict(self.config.get("teacher", {}))
        named = {m["name"]: m for m in (self.config.get("evaluate") or {}).get("models", [])}
        return dict(named.get(asked) or self._students.get(asked.rpartition(".")[0], {}))

    def _per_s(self, key: PhaseKey, model: dict[str, Any]) -> float | None:
        record = self._phases.get(key)
        if record is None or record.totals is None or not record.totals.working_s or not record.totals.num_images:
            return None
        replicas: int = model.get("max_num_replicas") or model.get("num_replicas") or 1
        return record.totals.num_images_by_models / record.totals.working_s / replicas

    def _training(self, run: Run, name: str) -> Training:
        state = TrainingState.read(run, run.student_dir(name))
        if state is None or (per_s := state.samples_per_s) is None:
            return Training(None, None, None)
        level = self._students[name]["level"]
        on_gpu = bool(level.get("gpus_per_worker"))
        peaks = [entry.memory_gib for entry in state.log if entry.memory_gib is not None]
        memory = max(peaks, default=None) if on_gpu else None
        record = self._phases.get(PhaseKey("level", name))
        samples = _number(run, f"{run.student_dir(name)}/epoch/manifest.json", "num_samples")
        is_done = run.is_leveled(name)
        start = None
        if is_done and record is not None and samples is not None:
            start = max(0.0, (record.wall_s - samples / per_s) / record.num_attempts)
        return Training(per_s / level.get("num_workers", 1), start, memory)


def _nearest(
    name: str, model: str, rates: Mapping[str, float | None], models: Mapping[str, str], alike_only: bool = False
) -> float | None:
    """This one's; else the median of those of the same model; else, where that will do, the median of all."""
    known = {n: rate for n, rate in rates.items() if rate is not None}
    if name in known:
        return known[name]
    chosen = [rate for n, rate in known.items() if models[n] == model]
    if not chosen and not alike_only:
        chosen = list(known.values())
    return statistics.median(chosen) if chosen else None


def _number(run: Run, path: str, key: str) -> int | None:
    try:
        return int(run.read_json(path)[key])
    except FileNotFoundError:
        return None


def _questions_per_image(run: Run, config: dict[str, Any]) -> float:
    questions = images = 0
    for benchmark in (config.get("evaluate") or {}).get("benchmarks", []):
        label = benchmark["name"] or benchmark["kind"]
        found = _number(run, f"{run.benchmark_dir(label)}/manifest.json", "num_images")
        if found is not None:
            images += found
            questions += run.questions(label).num_rows(run.manifest(run.benchmark_dir(label)).shards)
    return questions / images if images else 1.0


@dataclass(frozen=True)
class Roofline:
    """The least time that operations and memory traffic take at a share of a GPU's peak. Rendering of images, Ray and
    scheduling are left out: a measured rate is better."""

    gpu: Gpu
    efficiency: float

    def annotation_s(self, model: ModelConfig, sizes: Architecture, image_tokens: int, config: RunConfig) -> float:
        """Seconds of one image on one replica, its second answers included."""
        questions, answers = config.annotate.num_questions, config.annotate.num_second_answers
        pair = min(PAIR_TOKENS, config.annotate.sampling.max_new_tokens)
        answer = min(ANSWER_TOKENS, config.answer.max_new_tokens)
        first = self._first_s(sizes, image_tokens)
        tail = self._compute_s(sizes.language_operations(_TAIL_TOKENS, image_tokens))
        drawn = questions * (pair + answers * answer)
        written = drawn * self._token_s(model, sizes, image_tokens)
        return (first + (questions * (1 + answers) - 1) * tail + written) / _num_gpus(model)

    def answer_s(self, model: ModelConfig, sizes: Architecture, image_tokens: int, config: RunConfig) -> float:
        """Seconds of one question on one image."""
        drawn = min(ANSWER_TOKENS, config.answer.max_new_tokens)
        written = drawn * self._token_s(model, sizes, image_tokens)
        return (self._first_s(sizes, image_tokens) + written) / _num_gpus(model)

    def sample_s(self, level: LevelConfig, sizes: Architecture, image_tokens: int) -> float:
        """Seconds of one training sample on one worker: a pass forwards, and backwards as much again for what lies
        before a trained weight, and for the trained weights themselves (arXiv 2001.08361, section 2.1)."""
        language = sizes.language_operations(image_tokens + PROMPT_TOKENS)
        vision = sizes.vision_operations(image_tokens)
        weights = 0 if isinstance(level.method, LoraConfig) else 1
        again = 1 if level.gradient_checkpointing else 0
        sees = "vision" in level.method.components
        total = language * (2 + weights + again) + vision * (2 + weights + again if sees else 1)
        return self._compute_s(total) / max(1.0, level.gpus_per_worker)

    def _first_s(self, sizes: Architecture, image_tokens: int) -> float:
        return self._compute_s(
            sizes.vision_operations(image_tokens) + sizes.language_operations(image_tokens + PROMPT_TOKENS)
        )

    def _token_s(self, model: ModelConfig, sizes: Architecture, image_tokens: int) -> float:
        """Of one drawn token: weights are read once for all requests that are decoded together, each one's cache by
        itself; or the operations, where they take longer."""
        assert isinstance(model.engine, VllmEngineConfig)
        read = sizes.weight_bytes(model.engine.dtype) / model.engine.max_num_seqs
        read += sizes.kv_bytes_per_token() * (image_tokens + PROMPT_TOKENS)
        computed = sizes.language_operations(1, image_tokens + PROMPT_TOKENS) + sizes.head_operations
        return max(read / (self.gpu.bandwidth_gb_s * 1e9 * self.efficiency), self._compute_s(computed))

    def _compute_s(self, operations: float) -> float:
        return operations / (self.gpu.tflops * 1e12 * self.efficiency)


def _num_gpus(model: ModelConfig) -> float:
    """Whose speed one replica has."""
    return model.gpus_per_replica if model.gpus_per_replica < 1 else model.engine.num_gpus_per_copy


def differing(config: RunConfig, measured: dict[str, Any]) -> list[str]:
    """Settings on which speed depends and which were others where it was measured."""
    now = config.model_dump(mode="json")
    found = _changed("teacher", measured.get("teacher", {}), now["teacher"], _FIELDS)
    found += _changed("annotate", measured.get("annotate", {}), now["annotate"], _PROMPTS)
    before = {student["name"]: student for student in measured.get("students", [])}
    for student in now["students"]:
        found += _changed(student["name"], before.get(student["name"], {}), student, _FIELDS)
    return found


_FIELDS = ("model", "max_pixels", "gpus_per_replica", "cpus_per_replica", "accelerator_type")
_PROMPTS = ("num_questions", "num_second_answers")


def _changed(whose: str, before: dict[str, Any], now: dict[str, Any], names: Sequence[str]) -> list[str]:
    return [
        f"{whose}.{name} was {before[name]} where rates were measured, and is {now[name]}"
        for name in names
        if name in before and before[name] != now[name]
    ]


def first(given: float | None, measured: float | None, otherwise: Rate = UNKNOWN) -> Rate:
    """What the user says, else what was measured, else something else."""
    if given is not None:
        return Rate(given, "given")
    return Rate(measured, "measured") if measured is not None else otherwise

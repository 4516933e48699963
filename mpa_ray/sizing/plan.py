"""What a run will take: images, tokens, hours, GPU-hours and cost of each phase, and whether its models fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from mpa_ray.config import Arm, ModelConfig, PlanConfig, RunConfig, StudentConfig, VllmEngineConfig, measured_as
from mpa_ray.errors import ConfigError
from mpa_ray.models.checkpoints import model_settings
from mpa_ray.models.gpus import GPUS, Gpu
from mpa_ray.run.phase_record import PhaseKey
from mpa_ray.run.run import Run
from mpa_ray.sizing.architecture import Architecture, architecture_of
from mpa_ray.sizing.memory import MemoryCheck, check_engine, check_training
from mpa_ray.sizing.rates import (
    ANSWER_TOKENS,
    ENGINE_START_S,
    PAIR_TOKENS,
    PARITY_SHARE,
    PROMPT_TOKENS,
    TRAINING_START_S,
    UNKNOWN,
    Rate,
    Roofline,
    RunRates,
    differing,
    first,
)
from mpa_ray.storage.open import open_storage

_NUM_CHECKED = 8
"""Questions that an exported student is tried on."""


@dataclass(frozen=True)
class Phase:
    """One pass of a model, one training, or listing."""

    name: str
    count: float | None
    """Images, questions or samples; None where it is not known how many."""
    unit: str
    rate: Rate
    """Of one replica or worker, units a second."""
    replicas: int
    """Engines or workers side by side."""
    start_s: float
    """Until they are at work, and to end."""
    num_gpus: float
    """That it holds from its start to its end."""
    num_starts: int = 0
    """Of engines."""
    tokens: float | None = None
    """Prompt, image and reply, together."""

    @property
    def wall_s(self) -> float | None:
        """None where a rate or a number is missing."""
        if self.count is None or self.rate.value is None:
            return None
        return self.start_s + self.count / (self.rate.value * self.replicas)

    @property
    def gpu_hours(self) -> float | None:
        return None if self.wall_s is None else self.wall_s * self.num_gpus / 3600


@dataclass(frozen=True)
class Sizing:
    """The page: phases in their order, one after the other, and the memory checks."""

    phases: list[Phase]
    checks: list[MemoryCheck]
    notes: list[str]
    gpu_hour_price: float | None = None

    @property
    def is_complete(self) -> bool:
        """Whether every phase has a time."""
        return all(phase.wall_s is not None for phase in self.phases)

    @property
    def wall_s(self) -> float:
        """Of the phases that have a time."""
        return sum(phase.wall_s or 0.0 for phase in self.phases)

    @property
    def gpu_hours(self) -> float:
        return sum(phase.gpu_hours or 0.0 for phase in self.phases)

    @property
    def fits(self) -> bool:
        """Whether no model is known not to fit."""
        return all(check.verdict != "does not fit" for check in self.checks)

    def record(self) -> dict[str, Any]:
        """For programs."""
        phases = [{**asdict(p), "wall_s": p.wall_s, "gpu_hours": p.gpu_hours} for p in self.phases]
        cost = None if self.gpu_hour_price is None else self.gpu_hours * self.gpu_hour_price
        return {
            "is_complete": self.is_complete,
            "wall_s": self.wall_s,
            "gpu_hours": self.gpu_hours,
            "cost": cost,
            "fits": self.fits,
            "phases": phases,
            "memory": [asdict(c) for c in self.checks],
            "notes": self.notes,
        }


def size(config: RunConfig) -> Sizing:
    """Reckon a run before anything of it is started; reads files of checkpoints and runs, and writes none.

    Raises:
        ConfigError: the number of images is not known, or `plan.from_run` holds no run.
    """
    return _Sizer(config, config.plan or PlanConfig()).sizing()


class _Sizer:
    def __init__(self, config: RunConfig, plan: PlanConfig) -> None:
        self._config, self._plan = config, plan
        self._notes: list[str] = []
        self._run = Run(open_storage(config.run_dir, config.object_store))
        earlier = plan.from_run
        self._measured = RunRates(Run(open_storage(earlier, config.object_store))) if earlier is not None else None
        if self._measured is not None:
            self._notes += differing(config, self._measured.config)
        if any(student.rounds > 1 for student in config.students):
            self._notes.append("rounds: the first of each student is reckoned with")
        self._sizes: dict[str, Architecture | None] = {}
        self._num_images = self._count_images()
        self._num_shards = -(-self._num_images // config.source.shard_size)
        trained = self._measured.training_start_s if self._measured else None
        self._training_start = first(plan.training_start_s, trained, Rate(TRAINING_START_S, "assumed"))

    def sizing(self) -> Sizing:
        config = self._config
        phases = [*self._index(), self._annotation()]
        asked: list[StudentConfig] = []
        for student in config.students:
            phases += [] if any(_asks_alike(student, other) for other in asked) else [self._identification(student)]
            asked.append(student)
        for student in config.students:
            phases += self._leveling(student)
        phases += self._evaluation()
        for what, rate in (("pass", self._engine_start("")), ("training", self._training_start)):
            self._notes.append(f"start and end of a {what}: {rate.value:.0f} s, {rate.origin}")
        return Sizing(phases, list(self._checks()), self._notes, self._plan.gpu_hour_price)

    # How much there is to do

    def _count_images(self) -> int:
        if self._plan.num_images is not None:
            return self._plan.num_images
        try:
            return self._run.manifest().num_images
        except ConfigError:
            if self._config.source.limit is not None:
                self._notes.append(f"images: source.limit, {self._config.source.limit}; the source may hold fewer")
                return self._config.source.limit
        raise ConfigError(
            "plan.num_images",
            None,
            "is not known: nothing is indexed yet and source.limit is not set.",
            "Run jobs/index.py, which loads no model, or give it.",
        )

    def _count_questions(self) -> int | None:
        if self._plan.num_benchmark_questions is not None:
            return self._plan.num_benchmark_questions
        found = 0
        for benchmark in self._config.evaluate.benchmarks if self._config.evaluate else ():
            folder = self._run.benchmark_dir(benchmark.label)
            if self._run.has_manifest(folder):
                found += self._run.questions(benchmark.label).num_rows(self._run.manifest(folder).shards)
            elif benchmark.limit is not None:
                found += benchmark.limit
            else:
                self._notes.append(
                    f"benchmark {benchmark.label}: not laid out yet, so its questions are not counted: "
                    "give plan.num_benchmark_questions"
                )
                return None
        return found

    # The phases

    def _index(self) -> list[Phase]:
        per_s = self._measured.index_images_per_s if self._measured else None
        if per_s is None:
            return []
        return [Phase("index", self._num_images, "images", Rate(per_s, "measured"), 1, 0.0, 0.0)]

    def _annotation(self) -> Phase:
        teacher, config = self._config.teacher, self._config
        measured = self._measured.annotation if self._measured else None
        rate = first(self._plan.teacher_images_per_s, measured).or_else(
            lambda: self._estimated(teacher, lambda r, s, t: r.annotation_s(teacher, s, t, config))
        )
        return self._pass(PhaseKey("annotate"), self._num_images, "images", rate, teacher)

    def _identification(self, student: StudentConfig) -> Phase:
        measured = self._measured.identification(student.name, student.model) if self._measured else None
        rate = first(self._plan.student_images_per_s, measured).or_else(lambda: self._answering(student))
        return self._pass(PhaseKey("identify", student.name), self._num_images, "images", rate, student)

    def _leveling(self, student: StudentConfig) -> list[Phase]:
        level, measured = student.level, self._measured
        found = measured.parity_share(student.name, student.model) if measured else None
        share = first(self._plan.parity_share, found, Rate(PARITY_SHARE, "assumed"))
        assert share.value is not None
        own = level.holdout is None or level.holdout.questions is not None
        parity = self._num_images * share.value
        held_out = 0.0 if own or level.holdout is None else min(level.holdout.max_samples, level.holdout.share * parity)
        self._notes.append(
            f"parity samples of {student.name}: {parity:.0f} ({share.value:.2f} per image, {share.origin})"
        )
        trained = measured.training(student.name, student.model) if measured else None
        rate = first(self._plan.samples_per_s, trained).or_else(
            lambda: self._estimated(student, lambda r, s, t: r.sample_s(level, s, t), level.gpus_per_worker)
        )
        # Of the teacher's pairs, as many as there can be.
        pairs = float(self._num_images * self._config.annotate.num_questions)
        samples: dict[Arm, float | None] = {
            "parity": parity * (1 + level.replay_share) - held_out,
            "random": parity,
            "all": pairs,
            "consistent": pairs,
            "labels": None,
        }
        start_s = self._training_start.value or 0.0
        answering = self._rate_of_answers(f"{student.name}.after", student)
        alone = student.model_copy(update={"num_replicas": 1, "max_num_replicas": None})
        phases = []
        for arm in student.arms:
            phases.append(
                Phase(
                    PhaseKey("level", student.name, arm).label,
                    samples[arm],
                    "samples",
                    rate,
                    level.num_workers,
                    start_s,
                    level.num_workers * level.gpus_per_worker,
                )
            )
            if isinstance(student.engine, VllmEngineConfig):
                key = PhaseKey("check", student.name, arm)
                phases.append(self._pass(key, _NUM_CHECKED, "questions", answering, alone))
        return phases

    def _evaluation(self) -> list[Phase]:
        settings = self._config.evaluate
        if settings is None:
            return []
        number = self._count_questions()
        models: list[tuple[str, ModelConfig]] = []
        asked: list[StudentConfig] = []
        for student in self._config.students:
            models += [] if any(_asks_alike(student, o) for o in asked) else [(f"{student.name}.before", student)]
            models += [(f"{student.name}.{measured_as(arm)}", student) for arm in student.arms]
            asked.append(student)
        models += [("teacher", self._config.teacher)] if settings.teacher else []
        models += [(model.name, model) for model in settings.models]
        return [
            self._pass(PhaseKey("evaluate", name), number, "questions", self._rate_of_answers(name, model), model)
            for name, model in models
        ]

    def _rate_of_answers(self, name: str, model: ModelConfig) -> Rate:
        measured = self._measured
        found = measured.evaluation(name, model.model) if measured else None
        if found is None and measured is not None:
            # An image with its question, as identification asks it.
            is_teacher = model.model == self._config.teacher.model
            found = measured.annotation if is_teacher else measured.identification(name, model.model)
        given = self._plan.questions_per_s or self._plan.student_images_per_s
        return first(given, found).or_else(lambda: self._answering(model))

    def _answering(self, model: ModelConfig) -> Rate:
        return self._estimated(model, lambda r, s, t: r.answer_s(model, s, t, self._config))

    def _pass(self, key: PhaseKey, count: int | None, unit: str, rate: Rate, model: ModelConfig) -> Phase:
        shards = self._num_shards if unit == "images" else -(-(count or 1) // self._shard_questions)
        replicas = max(1, min(model.most_replicas, shards))
        tokens = self._measured.tokens_per_image(key) if self._measured else None
        if tokens is None and (image := self._image_tokens(model)) is not None:
            tokens = self._tokens(image, is_annotation=key.kind == "annotate")
        return Phase(
            key.label,
            count,
            unit,
            rate,
            replicas,
            self._engine_start(key.kind).value or 0.0,
            replicas * model.gpus_per_replica,
            replicas,
            None if tokens is None or count is None else tokens * count,
        )

    def _engine_start(self, kind: str) -> Rate:
        measured = self._measured.engine_start_s(kind) if self._measured else None
        return first(self._plan.engine_start_s, measured, Rate(ENGINE_START_S, "assumed"))

    def _tokens(self, image: int, is_annotation: bool) -> float:
        """Of all requests about an image; what the cache holds counts, too."""
        if not is_annotation:
            return float(image + PROMPT_TOKENS + ANSWER_TOKENS)
        questions, answers = self._config.annotate.num_questions, self._config.annotate.num_second_answers
        prompts = questions * (1 + answers) * (image + PROMPT_TOKENS)
        return float(prompts + questions * (PAIR_TOKENS + answers * ANSWER_TOKENS))

    @property
    def _shard_questions(self) -> int:
        return self._config.evaluate.shard_size if self._config.evaluate else 256

    # What models and GPUs are

    def _estimated(
        self, model: ModelConfig, seconds: Callable[[Roofline, Architecture, int], float], num_gpus: float | None = None
    ) -> Rate:
        gpu, sizes = self._gpu(model)[1], self._architecture(model)
        on_gpu = model.gpus_per_replica if num_gpus is None else num_gpus
        if gpu is None or sizes is None or not on_gpu:
            return UNKNOWN
        tokens = self._plan.image_tokens or sizes.image_tokens(model.max_pixels)
        return Rate(1 / seconds(Roofline(gpu, self._plan.efficiency), sizes, tokens), "estimated")

    def _gpu(self, model: ModelConfig) -> tuple[str, Gpu | None]:
        name = model.accelerator_type or self._plan.gpu or ""
        gpu = GPUS.get(name)
        if gpu is not None and self._plan.gpu_memory_gib is not None:
            gpu = replace(gpu, memory_gib=self._plan.gpu_memory_gib)
        return name, gpu

    def _architecture(self, model: ModelConfig) -> Architecture | None:
        """None, with a note, where the checkpoint does not tell."""
        if not isinstance(model.engine, VllmEngineConfig):
            return None
        if model.model not in self._sizes:
            try:
                settings = model_settings(model.model, self._config.object_store)
                self._sizes[model.model] = architecture_of(settings, model.model)
            except ConfigError as error:
                self._sizes[model.model] = None
                self._notes.append(str(error))
        return self._sizes[model.model]

    def _image_tokens(self, model: ModelConfig) -> int | None:
        sizes = self._architecture(model)
        return self._plan.image_tokens or (sizes.image_tokens(model.max_pixels) if sizes else None)

    def _checks(self) -> Iterable[MemoryCheck]:
        seen: list[StudentConfig] = []
        yield self._check("teacher", self._config.teacher)
        for student in self._config.students:
            if not any(_asks_alike(student, other) for other in seen):
                yield self._check(f"student {student.name}", student)
            seen.append(student)
            yield self._check_training(student)
        for model in self._config.evaluate.models if self._config.evaluate else ():
            yield self._check(f"model {model.name}", model)

    def _check(self, name: str, model: ModelConfig) -> MemoryCheck:
        gpu, memory = self._memory(model)
        sizes = self._architecture(model)
        if not model.gpus_per_replica:
            return MemoryCheck(name, "not checked", told="it computes on CPUs")
        if memory is None or sizes is None:
            return MemoryCheck(name, "not checked", gpu, told=self._why_not(gpu, sizes))
        return check_engine(name, model, sizes, gpu, memory, self._plan.image_tokens)

    def _check_training(self, student: StudentConfig) -> MemoryCheck:
        name, (gpu, memory), sizes = f"level {student.name}", self._memory(student), self._architecture(student)
        if not student.level.gpus_per_worker:
            return MemoryCheck(name, "not checked", told="it trains on CPUs")
        if memory is None or sizes is None:
            return MemoryCheck(name, "not checked", gpu, told=self._why_not(gpu, sizes))
        tokens = self._plan.image_tokens or sizes.image_tokens(student.max_pixels)
        check = check_training(name, student.level, sizes, gpu, memory, tokens)
        measured = self._measured.training_memory_gib(student.name) if self._measured else None
        return check if measured is None else replace(check, told=f"{check.told}; {measured:.1f} GiB were measured")

    def _memory(self, model: ModelConfig) -> tuple[str, float | None]:
        name, gpu = self._gpu(model)
        return name, gpu.memory_gib if gpu else self._plan.gpu_memory_gib

    @staticmethod
    def _why_not(gpu: str, sizes: Architecture | None) -> str:
        if sizes is None:
            return "the checkpoint's sizes are not known"
        known = ", ".join(GPUS)
        told = f"{gpu} is no kind of GPU that is known here" if gpu else "no kind of GPU is named"
        return f"{told}: give accelerator_type or plan.gpu ({known}), or plan.gpu_memory_gib"


def _asks_alike(one: ModelConfig, other: ModelConfig) -> bool:
    """Whether one pass serves both: the same model with the same settings, whatever its training."""

    def key(model: ModelConfig) -> tuple[object, ...]:
        engine = model.engine
        asked = (engine.dtype, engine.max_model_len) if isinstance(engine, VllmEngineConfig) else engine
        return model.model, asked, model.min_pixels, model.max_pixels

    return key(one) == key(other)

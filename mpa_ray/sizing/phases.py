"""Estimate the phases of a run: their counts, rates, starts and GPUs."""

from __future__ import annotations

from dataclasses import dataclass

from mpa_ray.config import ARMS, Arm, EvaluateConfig, MeasuredModel, ModelConfig, PlanConfig, RunConfig, StudentConfig
from mpa_ray.run.phase_record import PhaseKey, PhaseKind
from mpa_ray.sizing.models import Models, first_of_same_model
from mpa_ray.sizing.rates import (
    ANSWER_TOKENS,
    ENGINE_START_S,
    PAIR_TOKENS,
    PARITY_SHARE,
    PROMPT_TOKENS,
    TRAINING_START_S,
    Rate,
    choose_rate,
)
from mpa_ray.sizing.run_rates import RunRates
from mpa_ray.sizing.sizing import PhaseSizing
from mpa_ray.sizing.workload import Workload

_NUM_CHECKED = 8
"""Questions that an exported student answers in its engine, to compare with transformers."""


@dataclass(frozen=True)
class PhaseSizer:
    """Estimates each phase with the rates in the plan, else with those of an earlier run, else with estimated rates."""

    config: RunConfig
    plan: PlanConfig
    workload: Workload
    measured: RunRates
    models: Models
    notes: list[str]

    def phases(self) -> list[PhaseSizing]:
        """The phases of the run, in their order."""
        students = self.config.students
        phases = [*self._index(), self._annotate()]
        phases += [self._identify(student) for student in first_of_same_model(students)]
        for student in students:
            phases += self._level(student)
        if self.config.evaluate is not None:
            phases += self._evaluate(self.config.evaluate)
        for work, start in (("pass", self._engine_start()), ("training", self._training_start())):
            self.notes.append(f"start and end of a {work}: {start.value:.0f} s, {start.origin}")
        return phases

    def _index(self) -> list[PhaseSizing]:
        """The index phase, if its rate was measured. Otherwise the phase is left out, since listing needs no GPU."""
        per_s = self.measured.index_images_per_s
        if per_s is None:
            return []
        rate = Rate(per_s, "measured")
        return [
            PhaseSizing(
                PhaseKey("index"), self.workload.num_images, "images", rate, replicas=1, start_s=0.0, num_gpus=0.0
            )
        ]

    def _annotate(self) -> PhaseSizing:
        teacher = self.config.teacher
        rate = choose_rate(self.plan.teacher_images_per_s, self.measured.annotated_images_per_s).or_else(
            lambda: self.models.estimate(
                teacher,
                teacher.gpus_per_replica,
                lambda roofline, sizes, tokens: roofline.annotation_s(teacher, sizes, tokens, self.config),
            )
        )
        return self._pass_over_images(PhaseKey("annotate"), teacher, rate)

    def _identify(self, student: StudentConfig) -> PhaseSizing:
        measured = self.measured.identified_images_per_s(student.name, student.model)
        rate = choose_rate(self.plan.student_images_per_s, measured).or_else(lambda: self._estimated_answers(student))
        return self._pass_over_images(PhaseKey("identify", student.name), student, rate)

    def _level(self, student: StudentConfig) -> list[PhaseSizing]:
        """The training runs on the student's arms, and the checks of the exported students."""
        level = student.level
        measured = self.measured.trained_samples_per_s(student.name, student.model)
        rate = choose_rate(self.plan.samples_per_s, measured).or_else(
            lambda: self.models.estimate(
                student,
                level.gpus_per_worker,
                lambda roofline, sizes, tokens: roofline.sample_s(level, sizes, tokens),
            )
        )
        num_samples = self._samples_of_arms(student)
        phases = []
        for arm in student.arms:
            phases.append(
                PhaseSizing(
                    PhaseKey("level", student.name, arm),
                    num_samples[arm],
                    "samples",
                    rate,
                    replicas=level.num_workers,
                    start_s=self._training_start().value or 0.0,
                    num_gpus=level.num_workers * level.gpus_per_worker,
                )
            )
            if student.engine.has_checkpoint:
                phases.append(self._check(student, arm))
        return phases

    def _samples_of_arms(self, student: StudentConfig) -> dict[Arm, float | None]:
        """The number of training samples by arm; None where it cannot be estimated."""
        level = student.level
        measured = self.measured.parity_share(student.name, student.model)
        share = choose_rate(self.plan.parity_share, measured, Rate(PARITY_SHARE, "assumed"))
        assert share.value is not None, "an assumed share is a number"
        num_parity = self.workload.num_images * share.value
        self.notes.append(
            f"parity samples of {student.name}: {num_parity:.0f} ({share.value:.2f} per image, {share.origin})"
        )
        num_held_out = 0.0
        if level.holdout is not None and level.holdout.questions is None:
            num_held_out = min(level.holdout.max_samples, level.holdout.share * num_parity)
        # An upper bound: some of the teacher's pairs are dropped.
        num_pairs = float(self.workload.num_images * self.config.annotate.num_questions)
        by_set = {"D_PI": num_parity, "D_PA": num_pairs, None: None}
        num_samples = {arm: by_set[ARMS[arm].as_many_as] for arm in student.arms}
        with_parity: dict[Arm, float | None] = {"parity": num_parity * (1 + level.replay_share) - num_held_out}
        return num_samples | with_parity

    def _check(self, student: StudentConfig, arm: Arm) -> PhaseSizing:
        rate = self._answer_rate(MeasuredModel(student.name, "parity").name, student)
        one_replica = student.model_copy(update={"num_replicas": 1, "max_num_replicas": None})
        return self._pass_over_questions(PhaseKey("check", student.name, arm), one_replica, rate, _NUM_CHECKED)

    def _evaluate(self, settings: EvaluateConfig) -> list[PhaseSizing]:
        models: list[tuple[str, ModelConfig]] = []
        first = first_of_same_model(self.config.students)
        for student in self.config.students:
            measured = MeasuredModel.all_of(student.name, student.arms)
            models += [(model.name, student) for model in measured if model.arm is not None or student in first]
        if settings.teacher:
            models.append(("teacher", self.config.teacher))
        models += [(model.name, model) for model in settings.models]
        num_questions = self.workload.num_questions
        return [
            self._pass_over_questions(PhaseKey("evaluate", name), model, self._answer_rate(name, model), num_questions)
            for name, model in models
        ]

    def _answer_rate(self, name: str, model: ModelConfig) -> Rate:
        """Questions per second of a model; `name` is the name of its predictions."""
        measured = self.measured.benchmark_questions_per_s(name, model.model)
        if measured is None and model.model == self.config.teacher.model:
            measured = self.measured.annotated_images_per_s
        elif measured is None:
            # Identification also asks a question about each image, so its rate is similar.
            measured = self.measured.identified_images_per_s(name, model.model)
        planned = self.plan.questions_per_s or self.plan.student_images_per_s
        return choose_rate(planned, measured).or_else(lambda: self._estimated_answers(model))

    def _estimated_answers(self, model: ModelConfig) -> Rate:
        return self.models.estimate(
            model,
            model.gpus_per_replica,
            lambda roofline, sizes, tokens: roofline.answer_s(model, sizes, tokens, self.config),
        )

    def _pass_over_images(self, key: PhaseKey, model: ModelConfig, rate: Rate) -> PhaseSizing:
        num_shards = -(-self.workload.num_images // self.workload.images_per_shard)
        return self._pass(key, model, rate, self.workload.num_images, "images", num_shards)

    def _pass_over_questions(self, key: PhaseKey, model: ModelConfig, rate: Rate, count: int | None) -> PhaseSizing:
        num_shards = -(-(count or 1) // self.workload.questions_per_shard)
        return self._pass(key, model, rate, count, "questions", num_shards)

    def _pass(
        self, key: PhaseKey, model: ModelConfig, rate: Rate, count: int | None, unit: str, num_shards: int
    ) -> PhaseSizing:
        # Each replica needs at least one shard.
        replicas = max(1, min(model.most_replicas, num_shards))
        tokens = self._tokens_of_one(key, model)
        return PhaseSizing(
            key,
            count,
            unit,
            rate,
            replicas=replicas,
            start_s=self._engine_start(key.kind).value or 0.0,
            num_gpus=replicas * model.gpus_per_replica,
            num_starts=replicas,
            tokens=None if tokens is None or count is None else tokens * count,
        )

    def _tokens_of_one(self, key: PhaseKey, model: ModelConfig) -> float | None:
        """Tokens of all requests about one image or question, including tokens that the cache holds."""
        measured = self.measured.tokens_per_image(key)
        image_tokens = self.models.image_tokens(model)
        if measured is not None or image_tokens is None:
            return measured
        if key.kind != "annotate":
            return float(image_tokens + PROMPT_TOKENS + ANSWER_TOKENS)
        questions, answers = self.config.annotate.num_questions, self.config.annotate.num_second_answers
        prompts = questions * (1 + answers) * (image_tokens + PROMPT_TOKENS)
        return float(prompts + questions * (PAIR_TOKENS + answers * ANSWER_TOKENS))

    def _engine_start(self, kind: PhaseKind | None = None) -> Rate:
        """Seconds that a pass takes to start and end. If `kind` is None, this is for a pass of any kind."""
        measured = self.measured.engine_start_s(kind)
        return choose_rate(self.plan.engine_start_s, measured, Rate(ENGINE_START_S, "assumed"))

    def _training_start(self) -> Rate:
        measured = self.measured.training_start_s
        return choose_rate(self.plan.training_start_s, measured, Rate(TRAINING_START_S, "assumed"))

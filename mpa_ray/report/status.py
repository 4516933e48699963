"""Read the status of a run from its files. This needs neither Ray nor a model, and rows are read only on request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from mpa_ray.config import Arm, MeasuredModel
from mpa_ray.records import Outcome
from mpa_ray.report.phase_status import PhaseState, PhaseStatus, Status
from mpa_ray.run.commands import running_commands
from mpa_ray.run.dataset import ShardedDataset
from mpa_ray.run.left_out_counts import left_out_in_words
from mpa_ray.run.logs import deaths
from mpa_ray.run.manifest import Manifest
from mpa_ray.run.phase_record import PhaseKey, phase_record, record_times
from mpa_ray.run.prefetch import prefetch
from mpa_ray.run.recorded_config import RecordedEvaluation, arms_by_student, benchmark_label, recorded_config
from mpa_ray.run.run import REPORT_JSON, SCORES, Run
from mpa_ray.run.training_state import TrainingState


def status(run: Run, count_rows: bool = False, now: datetime | None = None) -> Status:
    """Return the state of every phase of the run's latest configuration.

    This lists the markers of each dataset. While indexing or a pass is unfinished, this also reads the markers of the
    corpus (one small file per shard), because each marker holds the number of images in its shard.

    Args:
        run: The run.
        count_rows: Also read two columns of every committed shard, to count rows by outcome.
        now: The time of the status; by default the current time.

    Raises:
        ConfigError: the directory holds no run.
    """
    settings = _Settings.read(run)
    reader = _StatusReader(run, settings, count_rows)
    phases: list[PhaseStatus] = []
    if settings.aligns_students:
        phases += [reader.index(), reader.annotate()]
        phases += [reader.identify(student) for student in settings.arms]
        phases += [reader.level(student, arm) for student, arms in settings.arms.items() for arm in arms]
    phases += [reader.evaluate(model, benchmark) for benchmark in settings.benchmarks for model in settings.models]
    if settings.benchmarks:
        phases.append(reader.score())
    if settings.aligns_students:
        phases.append(reader.report())
    commands = running_commands(run.storage)
    return Status(run.storage.root, phases, now or datetime.now(UTC), deaths(run.storage), commands)


@dataclass(frozen=True)
class _Settings:
    """Those settings of the run's latest configuration that determine which phases the run has."""

    aligns_students: bool
    """False for a run that only measures models."""
    max_images: int | None
    arms: dict[str, list[Arm]]
    """The arms of each student, by the student's name."""
    benchmarks: list[str]
    models: list[str]
    """The names of the measured models."""

    @classmethod
    def read(cls, run: Run) -> _Settings:
        """Read these settings from run.json.

        The other settings are not read, since a version of mpa_ray with different settings may have written the file.

        Raises:
            ConfigError: there is no run.json.
        """
        config, arms = recorded_config(run), arms_by_student(run)
        evaluation = config.get("evaluate") or RecordedEvaluation(benchmarks=[], models=[], teacher=False)
        models = [model.name for name in arms for model in MeasuredModel.all_of(name, arms[name])]
        if "teacher" in config and evaluation["teacher"]:
            models.append("teacher")
        models += [model["name"] for model in evaluation["models"]]
        return cls(
            aligns_students="source" in config,
            max_images=config["source"]["limit"] if "source" in config else None,
            arms=arms,
            benchmarks=[benchmark_label(benchmark) for benchmark in evaluation["benchmarks"]],
            models=models,
        )


class _StatusReader:
    """Reads the state of each phase from the files of a run."""

    def __init__(self, run: Run, settings: _Settings, count_rows: bool) -> None:
        self._run, self._settings, self._count_rows = run, settings, count_rows
        self._records = record_times(run)
        self._corpus = run.manifest() if run.is_indexed() else None
        self._corpus_sizes: dict[str, int] | None = None

    def index(self) -> PhaseStatus:
        markers = self._markers(self._run.corpus)
        num_images = self._corpus.num_images if self._corpus else sum(self._sizes_of_corpus_shards().values())
        phase = PhaseStatus(
            PhaseKey("index"),
            _state(self._corpus is not None, bool(markers)),
            _job("index"),
            num_shards_done=len(markers),
            num_shards=self._corpus.num_shards if self._corpus else None,
            num_done=num_images,
            num_total=num_images if self._corpus else self._settings.max_images,
            note=left_out_in_words(self._corpus.left_out) if self._corpus and self._corpus.left_out else "",
        )
        return self._timed(phase, markers.values())

    def annotate(self) -> PhaseStatus:
        return self._pass_over_corpus(PhaseKey("annotate"), self._run.annotations)

    def identify(self, student: str) -> PhaseStatus:
        is_exported = self._run.is_identified(student)
        key, verdicts = PhaseKey("identify", student), self._run.verdicts(student)
        phase = self._pass_over_corpus(key, verdicts, is_exported=is_exported)
        if is_exported:
            return replace(phase, note=f"{self._run.parity_manifest(student).num_samples} parity samples")
        has_all_shards = phase.num_shards_done == phase.num_shards
        return replace(phase, note="D_PI is not exported yet") if has_all_shards else phase

    def level(self, student: str, arm: Arm) -> PhaseStatus:
        folder = self._run.training_dir(student, arm)
        key = PhaseKey("level", student, arm)
        files = {file.path: file.modified for file in self._run.storage.details(folder)}
        is_done = f"{folder}/complete.json" in files
        is_begun = bool(files) or key.path in self._records
        phase = PhaseStatus(key, _state(is_done, is_begun), _job("level"), unit="steps")
        state = TrainingState.read(self._run, folder) if is_begun else None
        if state is None:
            return self._timed(phase, files.values())
        is_trained = state.is_trained or state.step >= state.num_steps
        notes = [f"loss {losses[-1].loss:.3g}"] if (losses := state.log.loss_entries) else []
        if is_trained and not is_done:
            notes.append("trained, not checked in the engine yet")
        if is_done and self._run.is_trained_before_redo(student, arm):
            notes.append("trained on an earlier D_PI: --relevel trains it again")
        phase = replace(
            phase,
            num_done=state.step,
            num_total=state.num_steps,
            per_s=state.log.samples_per_s,
            note=", ".join(notes),
        )
        # The check comes after the training, so the attempts to show then are those of the check.
        record = PhaseKey("check", student, arm) if is_trained and key.path in self._records else key
        return self._timed(phase, files.values(), record)

    def evaluate(self, model: str, benchmark: str) -> PhaseStatus:
        key = PhaseKey("evaluate", model, benchmark=benchmark)
        folder = self._run.benchmark_dir(benchmark)
        manifest = self._run.manifest(folder) if self._run.has_manifest(folder) else None
        return self._pass(key, manifest, self._run.predictions(benchmark, model))

    def score(self) -> PhaseStatus:
        return self._written(PhaseKey("score"), SCORES, _job("evaluate", "--score-only"))

    def report(self) -> PhaseStatus:
        return self._written(PhaseKey("report"), REPORT_JSON, _job("report"))

    def _written(self, key: PhaseKey, path: str, command: str) -> PhaseStatus:
        """Return the status of a phase that writes one file."""
        folder = path.rpartition("/")[0]
        modified = next((file.modified for file in self._run.storage.details(folder) if file.path == path), None)
        return PhaseStatus(key, _state(modified is not None, False), command, last_sign=modified)

    def _pass_over_corpus(
        self, key: PhaseKey, dataset: ShardedDataset[Any], *, is_exported: bool = True
    ) -> PhaseStatus:
        phase = self._pass(key, self._corpus, dataset, is_exported=is_exported)
        shards = list(self._markers(dataset))
        if phase.num_done is None:
            sizes = self._sizes_of_corpus_shards() if shards else {}
            phase = replace(phase, num_done=sum(sizes.get(shard, 0) for shard in shards))
        return replace(phase, counts=_outcomes(dataset, shards)) if self._count_rows else phase

    def _pass(
        self, key: PhaseKey, manifest: Manifest | None, dataset: ShardedDataset[Any], *, is_exported: bool = True
    ) -> PhaseStatus:
        """Return the status of a model's pass over the shards of a manifest.

        Args:
            key: The phase of the pass.
            manifest: The shards of the pass; None until all of them are known.
            dataset: The results of the pass.
            is_exported: Whether the phase has exported the results; True for a phase that exports nothing.
        """
        markers = self._markers(dataset)
        has_all_shards = manifest is not None and len(markers) >= manifest.num_shards
        num_images = manifest.num_images if manifest else None
        phase = PhaseStatus(
            key,
            _state(has_all_shards and is_exported, bool(markers)),
            _job(key.kind),
            num_shards_done=len(markers),
            num_shards=manifest.num_shards if manifest else None,
            num_done=num_images if has_all_shards else None,
            num_total=num_images,
        )
        return self._timed(phase, markers.values())

    def _timed(
        self, phase: PhaseStatus, written: Iterable[datetime], record_key: PhaseKey | None = None
    ) -> PhaseStatus:
        """Add the rate, the times and the error, from the times of the files and the record of the ended attempts."""
        key = record_key or phase.key
        last, ended = max(written, default=None), self._records.get(key.path)
        record = phase_record(self._run, key) if ended is not None else None
        if record is not None:
            rate = record.totals.images_per_s if record.totals is not None else None
            phase = replace(phase, num_attempts=record.num_attempts, per_s=rate if phase.per_s is None else phase.per_s)
        failed = record is not None and phase.state != "done" and record.error
        is_last_sign = phase.state != "done" and ended is not None and (last is None or ended >= last)
        # A record may have no attempts: the phase could then not even begin. The last shards of a failed attempt may
        # be committed after the record is written, so newer files do not mean that the phase is running.
        has_ended = record is not None and record.num_attempts > 0 and not record.is_begun_again
        has_stopped = has_ended and (failed or is_last_sign)
        return replace(
            phase,
            state="begun" if has_stopped else phase.state,
            last_sign=last or ended,
            attempt_ended=ended if has_stopped else None,
            error=failed or "",
        )

    def _markers(self, dataset: ShardedDataset[Any]) -> dict[str, datetime]:
        """Return the time at which each committed shard was committed, by the shard's name."""
        files = self._run.storage.details(f"{dataset.folder}/commits")
        named = ((file.path.rpartition("/")[2], file.modified) for file in files)
        withdrawn = dataset.markers.withdrawn()
        shards = ((name.removesuffix(".json"), modified) for name, modified in named if not name.startswith("."))
        return {shard: modified for shard, modified in shards if shard not in withdrawn}

    def _sizes_of_corpus_shards(self) -> dict[str, int]:
        """Return the number of images in each committed shard of the corpus, by the shard's name."""
        if self._corpus_sizes is None:
            commits = prefetch(self._run.corpus.commit_of, sorted(self._markers(self._run.corpus)))
            self._corpus_sizes = {commit.shard: commit.num_rows for commit in commits if commit is not None}
        return self._corpus_sizes


def _state(is_done: bool, is_begun: bool) -> PhaseState:
    return "done" if is_done else "begun" if is_begun else "not begun"


def _job(name: str, *flags: str) -> str:
    return " ".join([f"mpa-ray {name} --config FILE", *flags])


def _outcomes(dataset: ShardedDataset[Any], shards: Iterable[str]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for rows in prefetch(partial(dataset.columns, columns=Outcome), sorted(shards)):
        counts.update(row.reason or row.state for row in rows)
    return dict(counts.most_common())

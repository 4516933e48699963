"""What the driver sends to every training worker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mpa_ray.config import LevelConfig, RunConfig, StudentConfig, resolve_path
from mpa_ray.corpus.moved_source import moved_root
from mpa_ray.corpus.read import Reader
from mpa_ray.leveling.checkpoint_folders import inherited_checkpoint
from mpa_ray.leveling.epoch_plan import EpochPlan
from mpa_ray.run.ownership import Ownership
from mpa_ray.run.run import Run
from mpa_ray.tasks.task import Task


@dataclass(frozen=True)
class TrainingJob:
    """Everything that a training worker needs."""

    student: str
    model: str
    """The checkpoint to start from: a folder, an s3:// prefix or a name on the Hugging Face hub."""
    level: LevelConfig
    task: Task
    plan: EpochPlan
    reader: Reader
    """Reads the images. Its object store settings also apply to the checkpoint."""
    pixel_limits: tuple[int, int, int]
    """See `ModelConfig.pixel_limits`."""
    max_new_tokens: int
    """The maximum number of tokens of an answer when the export is checked."""
    run: Run
    folder: str
    """The folder of the run for the files of this training."""
    cards: Mapping[bool, str]
    """The two possible model cards of the exported checkpoint. The key is whether the exported processor scales images
    to the student's pixel limits, which is not known until the training loads the processor."""
    ownership: Ownership | None = None
    """The right to train the student; None if no other command can train it."""
    inherited: str | None = None
    """The folder of the latest checkpoint that an earlier owner completed; None if there is none."""

    def check_owner(self) -> None:
        """Call this before every write. Raises LostOwnership if another command has taken over the training."""
        if self.ownership is not None:
            self.ownership.check()

    @classmethod
    def of(
        cls,
        run: Run,
        config: RunConfig,
        student: StudentConfig,
        task: Task,
        plan: EpochPlan,
        folder: str,
        cards: Mapping[bool, str],
        ownership: Ownership | None = None,
    ) -> TrainingJob:
        """The job of a configured student."""
        return cls(
            student=student.name,
            # A relative path would be wrong in the worker, which has a different working directory.
            model=resolve_path(student.model),
            level=student.level,
            task=task,
            plan=plan,
            reader=Reader(
                config.object_store,
                config.reading.num_threads,
                follow_redirects="redirects" in config.source.allow,
                moved=moved_root(config, run),
            ),
            pixel_limits=student.pixel_limits,
            max_new_tokens=config.answer.max_new_tokens,
            run=run,
            folder=folder,
            cards=cards,
            ownership=ownership,
            inherited=inherited_checkpoint(run.storage, folder, ownership.number if ownership is not None else 1),
        )

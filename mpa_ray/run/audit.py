"""Recounts a run from its files: every image must be in exactly one state, and no row may be missing or repeated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import pyarrow as pa

from mpa_ray.errors import ConfigError, DamagedFile
from mpa_ray.observability.progress import Progress
from mpa_ray.records import Outcome, State
from mpa_ray.run.audit_fingerprints import audit_fingerprints
from mpa_ray.run.audit_predictions import AnswerCounts, audit_predictions
from mpa_ray.run.dataset import ShardedDataset
from mpa_ray.run.manifest import Manifest
from mpa_ray.run.parity_export import read_parity
from mpa_ray.run.prefetch import prefetch
from mpa_ray.run.recorded_config import models_by_benchmark, student_names
from mpa_ray.run.redo import outdated
from mpa_ray.run.run import Run
from mpa_ray.run.versions import mixed_versions, model_datasets
from mpa_ray.textual import Json

_NUM_NAMES_SHOWN = 5

T = TypeVar("T")

Outcomes = Counter[tuple[str, str | None]]
"""Numbers of rows by state and reason."""


@dataclass(frozen=True)
class _ImageId:
    image_id: str


@dataclass(frozen=True)
class _AnnotationId:
    annotation_id: str


@dataclass(frozen=True)
class _AnnotationOutcome(Outcome):
    annotation_id: str
    image_id: str


@dataclass(frozen=True)
class NotKeptCounts:
    """Numbers of rows that were not kept, by reason, the most frequent first."""

    dropped: dict[str, int]
    failed: dict[str, int]


@dataclass(frozen=True)
class AuditCounts:
    """The result of an audit."""

    num_images: int
    """The number of images in the corpus manifest."""
    num_annotated: int
    """The number of annotations with a pair and a second answer."""
    kept: dict[str, int]
    """The number of parity samples of each student."""
    left_out: NotKeptCounts
    """Counts of the verdicts of all students together, or of the annotations if no student has verdicts yet."""
    students: dict[str, NotKeptCounts]
    problems: list[str]
    """One sentence for each thing that is missing, repeated, unreadable or unexpected."""
    left_out_files: dict[str, int] = field(default_factory=dict)
    """How many files of the source are not in the corpus, by ending or reason."""
    predictions: dict[str, dict[str, AnswerCounts]] = field(default_factory=dict)
    """The counts of answers, by benchmark and model."""
    warnings: list[str] = field(default_factory=list)
    """One sentence for each dataset whose rows were made with several versions of a library."""

    def to_json(self) -> dict[str, Json]:
        """The counts as `mpa-ray audit` prints them."""
        return {
            "images": self.num_images,
            "annotated": self.num_annotated,
            "kept": self.kept,
            **asdict(self.left_out),
            "students": {name: asdict(left_out) for name, left_out in self.students.items()},
            **({"left_out_files": self.left_out_files} if self.left_out_files else {}),
            **({"predictions": self._predictions_to_json()} if self.predictions else {}),
            **({"warnings": self.warnings} if self.warnings else {}),
            "problems": self.problems,
        }

    def _predictions_to_json(self) -> dict[str, Json]:
        return {
            benchmark: {
                model: {"questions": counts.num_questions, **counts.outcomes} for model, counts in models.items()
            }
            for benchmark, models in self.predictions.items()
        }


def audit(run: Run) -> AuditCounts:
    """Count the rows of all datasets of a run, and compare the datasets with each other.

    Raises:
        ConfigError: the directory holds no run, or a run that aligns students but whose images are not indexed yet.
    """
    names = student_names(run)
    # A run without students only measures models, and has no corpus.
    manifest = run.manifest() if names or run.is_indexed() else Manifest(0, 0)
    answers = audit_predictions(run, include_missing=not names)
    with Progress("audit", manifest.num_shards * (1 + len(names)), "shards", to_stderr=True) as progress:
        auditor = _Auditor(run, manifest, progress)
        annotations = auditor.count_annotations()
        verdicts = {name: auditor.count_verdicts(name) for name in names}
    return AuditCounts(
        num_images=manifest.num_images,
        num_annotated=sum(number for (state, _), number in annotations.items() if state == State.KEPT),
        kept={name: outcomes.get((State.KEPT, None), 0) for name, outcomes in verdicts.items()},
        left_out=_left_out([outcomes for outcomes in verdicts.values() if outcomes] or [annotations]),
        students={name: _left_out([outcomes]) for name, outcomes in verdicts.items()},
        problems=auditor.problems + answers.problems + audit_fingerprints(run),
        left_out_files=manifest.left_out,
        predictions=answers.counts,
        warnings=mixed_versions(model_datasets(run, names, models_by_benchmark(run))),
    )


class _Auditor:
    """Counts one dataset after another, and collects the problems."""

    def __init__(self, run: Run, manifest: Manifest, progress: Progress) -> None:
        self._run, self._manifest, self._progress = run, manifest, progress
        self.problems: list[str] = []

    def count_annotations(self) -> Outcomes:
        """Count annotations by outcome, and compare them with the corpus."""
        outcomes: Outcomes = Counter()
        image_ids: Counter[str] = Counter()
        corpus = self._read(self._run.corpus, _ImageId)
        annotations = self._read(self._run.annotations, _AnnotationOutcome)
        for shard, images, rows in zip(self._manifest.shards, corpus, annotations, strict=True):
            self._progress.advance(1)
            if images is None:
                self.problems.append(f"corpus: shard {shard} is missing")
                continue
            expected = [image.image_id for image in images]
            image_ids.update(expected)
            if rows is None:
                self.problems.append(f"annotations: shard {shard} is missing ({len(expected)} images)")
                continue
            annotated = list(dict.fromkeys(row.image_id for row in rows))
            self._compare(f"annotations shard {shard}: images", expected, annotated)
            self._check_unique(f"annotations shard {shard}", [row.annotation_id for row in rows])
            outcomes.update((row.state, row.reason) for row in rows)
        if image_ids.total() != self._manifest.num_images:
            self.problems.append(
                f"corpus: {image_ids.total()} images in the shards, {self._manifest.num_images} in the manifest"
            )
        self.problems += [f"corpus: image {name} occurs {n} times" for name, n in image_ids.items() if n > 1]
        return outcomes

    def count_verdicts(self, student: str) -> Outcomes:
        """Count a student's verdicts by outcome, and compare them with the annotations and the exported D_PI."""
        outcomes: Outcomes = Counter()
        kept: list[str] = []
        folder = self._run.verdicts_dir(student)
        # `count_annotations` has already reported the shards of annotations that cannot be read.
        annotations = self._read(self._run.annotations, _AnnotationId, report=False)
        verdicts = self._read(self._run.verdicts(student), _AnnotationOutcome)
        for shard, annotated, rows in zip(self._manifest.shards, annotations, verdicts, strict=True):
            self._progress.advance(1)
            if annotated is None:
                continue
            if rows is None:
                self.problems.append(f"{folder}: shard {shard} is missing ({len(annotated)} annotations)")
                continue
            expected = [row.annotation_id for row in annotated]
            self._compare(f"{folder} shard {shard}: rows", expected, [row.annotation_id for row in rows])
            outcomes.update((row.state, row.reason) for row in rows)
            kept += [row.annotation_id for row in rows if row.state == State.KEPT]
        for shard in self._outdated(student):
            self.problems.append(
                f"{folder}: shard {shard} is older than its annotations, which were made again: run mpa-ray identify"
            )
        self._compare_export(student, kept)
        return outcomes

    def _outdated(self, student: str) -> list[str]:
        try:
            return outdated(self._run.verdicts(student), self._run.annotations, self._manifest.shards)
        except DamagedFile:
            # The damaged marker is a problem already.
            return []

    def _compare_export(self, student: str, kept: list[str]) -> None:
        folder = self._run.parity_dir(student)
        if not self._run.is_identified(student):
            self.problems.append(f"{folder}: not exported")
            return
        try:
            exported = [sample.annotation_id for sample in read_parity(self._run, student)]
        except (ConfigError, FileNotFoundError, ValueError, pa.ArrowException) as error:
            self.problems.append(f"{folder}: cannot be read ({error})")
            return
        self._compare(f"{folder}: kept rows", kept, exported)

    def _read(self, dataset: ShardedDataset[Any], columns: type[T], report: bool = True) -> Iterator[list[T] | None]:
        """Yield some columns of each shard; None for a shard that is not committed or that cannot be read.

        Args:
            dataset: The dataset.
            columns: A dataclass whose fields are the columns.
            report: Whether a shard that cannot be read is added to the problems.
        """

        def rows(shard: str) -> list[T] | str | None:
            if not dataset.markers.has_marker(shard):
                return None
            try:
                return dataset.columns(shard, columns)
            except FileNotFoundError:
                # It was withdrawn.
                return None
            except (ValueError, KeyError) as error:
                return f"{dataset.folder}: shard {shard} cannot be read ({error})"

        for result in prefetch(rows, self._manifest.shards):
            if isinstance(result, str) and report:
                self.problems.append(result)
            yield None if isinstance(result, str) else result

    def _compare(self, subject: str, expected: list[str], actual: list[str]) -> None:
        expected_counts, actual_counts = Counter(expected), Counter(actual)
        if missing := expected_counts - actual_counts:
            self.problems.append(f"{subject} missing: {_first_names(missing)}")
        if extra := actual_counts - expected_counts:
            self.problems.append(f"{subject} unexpected: {_first_names(extra)}")

    def _check_unique(self, subject: str, ids: list[str]) -> None:
        repeated = Counter({name: number for name, number in Counter(ids).items() if number > 1})
        if repeated:
            self.problems.append(f"{subject}: ids repeated: {_first_names(repeated)}")


def _first_names(names: Counter[str]) -> str:
    shown = ", ".join(list(names)[:_NUM_NAMES_SHOWN])
    return f"{shown} and {len(names) - _NUM_NAMES_SHOWN} more" if len(names) > _NUM_NAMES_SHOWN else shown


def _left_out(counted: list[Outcomes]) -> NotKeptCounts:
    return NotKeptCounts(_by_reason(counted, State.DROPPED), _by_reason(counted, State.FAILED))


def _by_reason(counted: list[Outcomes], state: State) -> dict[str, int]:
    reasons: Counter[str] = Counter()
    for outcomes in counted:
        reasons.update({str(reason): number for (row_state, reason), number in outcomes.items() if row_state == state})
    return dict(reasons.most_common())

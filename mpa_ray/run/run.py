"""A run directory: the paths of its files, the fingerprints of its datasets, and its format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, takewhile
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from mpa_ray.config import Arm, EvaluationRunConfig, MeasuredModel, ObjectStoreConfig
from mpa_ray.errors import CannotWrite, ConfigError, may_pass
from mpa_ray.records import Annotation, EpochCounts, ImageRef, LabelledQuestion, ParitySample, Prediction, RowT, Verdict
from mpa_ray.redaction import without_secret_values, without_url_secrets_within
from mpa_ray.run.dataset import ShardedDataset
from mpa_ray.run.fingerprint_changes import Fingerprint
from mpa_ray.run.fingerprint_files import FingerprintFiles
from mpa_ray.run.manifest import Manifest
from mpa_ray.run.sealed_json import parse_sealed, sealed
from mpa_ray.storage.exclusive import Creation
from mpa_ray.storage.open import open_storage
from mpa_ray.storage.storage import Storage
from mpa_ray.textual import Json

T = TypeVar("T")

FORMAT = 2
"""The format of run directories, increased when older formats can no longer be read. mpa-ray 0.1 wrote format 1."""

RUN_FILE = "run.json"
CORPUS_MANIFEST = "corpus/manifest.json"
SOURCE_FILE = "corpus/source.json"
"""The file with the `SourceRoot` at which the corpus was indexed. Runs of earlier versions lack this file."""
SCORES = "evaluation/scores.json"
REPORT_JSON = "report/report.json"
REPORT_PAGE = "report/index.html"
EXPORT = "export.json"
"""The file in a training's folder with the checksums of the exported weights."""

_VERDICTS = "verdicts.json"
_AGAIN = "~"
"""Separates a model from the number of its training run in the name of a folder. Names of models cannot contain this
character."""
_RESERVE = ".writable"
"""A file that shows that the run can be written. It also reserves some space, which is freed when the disk is full."""
_RESERVE_BYTES = 2**16
_MIN_FREE_BYTES = 32 * 2**20
_MIN_ROW_BYTES = 64
"""The size of a compressed row with a short question and a short answer."""


@dataclass(frozen=True)
class ParityManifest:
    """The description of a student's exported D_PI."""

    num_samples: int
    verdicts: str = ""
    """The version of the verdicts that the samples come from; see `ShardedDataset.version`."""


@dataclass(frozen=True)
class _TrainedVersion:
    verdicts: str


class Run:
    """Reads and writes the files of one run. All paths are relative to the run directory."""

    def __init__(self, storage: Storage, *, allows_damage: bool = False) -> None:
        """Use the run in a storage.

        Args:
            storage: The run directory.
            allows_damage: Open a run whose run.json is damaged, to find and repair the damage.

        Raises:
            ConfigError: another version wrote the run in a format that this version cannot read, or run.json is
                damaged.
        """
        self.storage = storage
        self.creation: Creation | None = None
        """How the storage creates a file only if it does not exist; None if the run was not opened for writing."""
        self.fingerprints = FingerprintFiles(storage)
        self._check_format(allows_damage)
        self.corpus = self.dataset("corpus", ImageRef)
        self.annotations = self.dataset("annotations", Annotation)

    @classmethod
    def open(cls, run_dir: str, object_store: ObjectStoreConfig | None = None) -> Run:
        """Open a new or an existing run for writing.

        Raises:
            ConfigError: the directory cannot be written, has a format that this version cannot read, or is on storage
                that cannot create files exclusively.
            CannotWrite: the directory cannot be written now.
        """
        storage = open_storage(run_dir, object_store)
        run: Run | None = None
        # If the directory cannot be read, the attempt to write below shows why. A run of another format raises an error
        # here, before anything is written to it.
        with suppress(OSError):
            run = cls(storage)
        try:
            storage.write(_RESERVE, bytes(_RESERVE_BYTES))
            creation = storage.check_create(_RESERVE)
        except CannotWrite as error:
            if may_pass(error):
                raise
            problem = f"cannot be written ({error.problem})."
            raise ConfigError(
                "run_dir", run_dir, problem, "Give a directory that has free space and that you may write to."
            ) from error
        run = run or cls(storage)
        run.creation = creation
        return run

    def _check_format(self, allows_damage: bool) -> None:
        try:
            stored = self.read_json(RUN_FILE)
        except FileNotFoundError:
            return
        except ConfigError:
            if allows_damage:
                return
            raise
        number = stored.get("format", 1)
        if number != FORMAT:
            versions = stored.get("versions")
            version = versions.get("mpa-ray", "0.1") if isinstance(versions, dict) else "0.1"
            raise ConfigError(
                "run_dir",
                self.storage.root,
                f"was written in format {number} by mpa-ray {version}; this version reads format {FORMAT}.",
                f"Continue it with mpa-ray {version}, or give a new run_dir.",
            )

    def free_reserve(self) -> None:
        """Make room on a full disk for the record of why the run ends."""
        self.storage.delete(_RESERVE)

    def check_free_space(self, num_rows: int) -> None:
        """Raise ConfigError if the run directory has no space for `num_rows` more rows."""
        free, needed = self.storage.free_bytes(), _MIN_FREE_BYTES + num_rows * _MIN_ROW_BYTES
        if free is not None and free < needed:
            raise ConfigError(
                "run_dir",
                self.storage.root,
                f"has {free >> 20} MiB free, and {num_rows} rows need {needed >> 20} MiB or more.",
                "Free some space, or give another run_dir.",
            )

    def dataset(self, folder: str, row_type: type[RowT]) -> ShardedDataset[RowT]:
        """The dataset in a folder. Its commits have the fingerprint that is registered for the folder."""
        return ShardedDataset(self.storage, folder, row_type, self.fingerprints)

    @staticmethod
    def verdicts_dir(student: str) -> str:
        """The folder of a student's verdicts."""
        return f"verdicts/{student}"

    def verdicts(self, student: str) -> ShardedDataset[Verdict]:
        """A student's verdicts."""
        return self.dataset(self.verdicts_dir(student), Verdict)

    @staticmethod
    def parity_dir(student: str) -> str:
        """The folder that a student's D_PI is exported to."""
        return f"parity/{student}"

    @staticmethod
    def rematch_dir(student: str, matcher: str) -> str:
        """The folder, inside `parity_dir`, of the D_PI that another matcher yields."""
        return f"{Run.parity_dir(student)}/rematch/{matcher}"

    @staticmethod
    def benchmark_dir(benchmark: str) -> str:
        """The folder of a benchmark's questions and predictions."""
        return f"evaluation/{benchmark}"

    def questions(self, benchmark: str) -> ShardedDataset[LabelledQuestion]:
        """The questions of a benchmark."""
        return self.dataset(f"{self.benchmark_dir(benchmark)}/questions", LabelledQuestion)

    def predictions(self, benchmark: str, model: str) -> ShardedDataset[Prediction]:
        """A model's answers to a benchmark. If the model was trained or exported again, these are the answers of
        its newest weights."""
        number = self._newest(_again_dir(model))
        name = f"{model}{_AGAIN}{number}" if number else model
        return self.dataset(f"{self.benchmark_dir(benchmark)}/predictions/{name}", Prediction)

    @staticmethod
    def student_dir(student: str, arm: str = "parity") -> str:
        """The folder of a student's first training run on an arm. It contains the folders of later training runs on the
        arm."""
        return f"students/{student}/{arm}"

    def training_dir(self, student: str, arm: str = "parity") -> str:
        """The folder of a student's newest training run on an arm: its samples, state, checkpoints and exported
        model."""
        folder = self.student_dir(student, arm)
        number = self._newest(f"{folder}/trainings")
        return f"{folder}/again-{number}" if number else folder

    def epoch(self, folder: str) -> ShardedDataset[ParitySample]:
        """The samples of the training in a folder, in training order."""
        return self.dataset(f"{folder}/epoch", ParitySample)

    def training_dirs(self, student: str, arm: str) -> list[str]:
        """The folders of all trainings of a student on an arm, the newest last."""
        folder = self.student_dir(student, arm)
        later = range(1, self._newest(f"{folder}/trainings") + 1)
        return [folder, *(f"{folder}/again-{number}" for number in later)]

    def train_again(self, student: str, arm: str) -> str:
        """Begin another training run in addition to the finished one, and return its folder."""
        folder = self.student_dir(student, arm)
        self.storage.create(f"{folder}/trainings/{self._newest(f'{folder}/trainings') + 1}.json", b"{}")
        return self.training_dir(student, arm)

    def _newest(self, folder: str) -> int:
        """The number of files 1.json, 2.json, ... in a folder. Each file is created only if it does not exist."""
        return sum(1 for _ in takewhile(lambda number: self.storage.exists(f"{folder}/{number}.json"), count(1)))

    def trained_version(self, student: str, arm: str) -> str:
        """The version of the verdicts from which the student's newest training run on an arm was planned."""
        return self.version_in(self.training_dir(student, arm))

    def version_in(self, folder: str) -> str:
        """The version of the verdicts from which the training run in a folder was planned; "" before a redo."""
        try:
            return self.read_as(f"{folder}/{_VERDICTS}", _TrainedVersion).verdicts
        except FileNotFoundError:
            return ""

    def record_trained_version(self, folder: str, version: str) -> None:
        """Record the version of the verdicts from which a folder's training is planned. Only the first call counts."""
        self.create_json(f"{folder}/{_VERDICTS}", {"verdicts": version})

    def is_trained_before_redo(self, student: str, arm: str) -> bool:
        """Whether the student's D_PI was redone after the student's newest training run on the arm was planned."""
        return self.trained_version(student, arm) != self.parity_version(student)

    def merged_model(self, student: str, arm: str = "parity") -> str:
        """The value of the setting `model` for a student's exported checkpoint: a folder or an s3:// prefix."""
        return f"{self.storage.root}/{self.training_dir(student, arm)}/merged"

    def is_indexed(self) -> bool:
        """Whether the corpus is complete."""
        return self.storage.exists(CORPUS_MANIFEST)

    def is_identified(self, student: str) -> bool:
        """Whether the student's D_PI is exported."""
        return self.has_manifest(self.parity_dir(student))

    def is_leveled(self, student: str, arm: str = "parity") -> bool:
        """Whether the student's model is trained on the arm, exported and checked."""
        return self.storage.exists(self._complete_path(student, arm))

    def parity_version(self, student: str) -> str | None:
        """The version of the verdicts from which the student's D_PI was exported; None if D_PI is not exported."""
        return self.parity_manifest(student).verdicts if self.is_identified(student) else None

    def parity_manifest(self, student: str) -> ParityManifest:
        """The description of the student's D_PI. Raises FileNotFoundError if D_PI is not exported."""
        return self.read_as(self.manifest_path(self.parity_dir(student)), ParityManifest)

    def mark_leveled(self, student: str, arm: Arm, owner: int = 1) -> None:
        """Record that the student's model is trained on the arm, exported and checked.

        Args:
            student: The student.
            arm: The arm.
            owner: The number of the owner of the training; see `mpa_ray.run.ownership`.
        """
        for number in range(self._newest(f"{self.student_dir(student, arm)}/trainings")):
            # Begin new predictions, because answers after an earlier training run do not count for this one.
            self.storage.create(f"{_again_dir(MeasuredModel(student, arm).name)}/{number + 1}.json", b"{}")
        has_checksums = self.storage.exists(f"{self.training_dir(student, arm)}/{EXPORT}")
        content = {"owner": owner, "has_checksums": has_checksums}
        self.create_json(self._complete_path(student, arm), content)

    def begin_predictions(self, model: str) -> None:
        """Begin new predictions of a measured model for all benchmarks. The present ones stay in their folders."""
        self.storage.create(f"{_again_dir(model)}/{self._newest(_again_dir(model)) + 1}.json", b"{}")

    def _complete_path(self, student: str, arm: str) -> str:
        return f"{self.training_dir(student, arm)}/complete.json"

    @staticmethod
    def manifest_path(folder: str) -> str:
        """The path of the file that is written when a folder is complete."""
        return f"{folder}/manifest.json"

    def has_manifest(self, folder: str) -> bool:
        """Whether a folder with the corpus, a benchmark's questions or an exported D_PI is complete."""
        return self.storage.exists(self.manifest_path(folder))

    def manifest(self, folder: str = "corpus") -> Manifest:
        """Read the manifest of the corpus, or of a benchmark.

        Raises:
            ConfigError: the folder has no manifest yet.
        """
        path = self.manifest_path(folder)
        try:
            return self.read_as(path, Manifest)
        except FileNotFoundError:
            raise ConfigError("run_dir", self.storage.root, f"has no {path}.", "Run mpa-ray index first.") from None

    def epoch_counts(self, folder: str) -> EpochCounts:
        """The numbers of samples in the training in a folder. Raises FileNotFoundError if it is not planned yet."""
        return self.read_as(self.manifest_path(f"{folder}/epoch"), EpochCounts)

    def read_as(self, path: str, kind: type[T]) -> T:
        """Read a JSON object as a dataclass. Fields that another version has added are ignored.

        Raises:
            FileNotFoundError: there is no such file.
            ConfigError: the file is damaged, or has other fields.
        """
        content = self.read_json(path)
        try:
            return TypeAdapter(kind).validate_python(content)
        except ValidationError as error:
            problem = error.errors()[0]
            raise self.damaged(path, f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}") from None

    def read_json(self, path: str) -> dict[str, Any]:
        """Read a JSON object.

        Raises:
            FileNotFoundError: there is no such file.
            ConfigError: the file is damaged. Commands only replace whole files, so a copy of the run must be faulty.
        """
        try:
            return parse_sealed(self.storage.read(path))
        except ValueError as error:
            raise self.damaged(path, str(error)) from None

    def damaged(self, path: str, problem: str) -> ConfigError:
        """The error to raise if a JSON file of the run is damaged."""
        return ConfigError(
            "run_dir",
            self.storage.root,
            f"{path} cannot be read ({problem}).",
            f"Restore it from a copy, or run mpa-ray audit {self.storage.root} --repair and then the same command.",
        )

    def write_json(self, path: str, content: Mapping[str, Json]) -> None:
        """Write or replace a JSON object, with its digest, without passwords and signatures of URLs.

        Raises CannotWrite.
        """
        self.storage.write(path, _encoded(content))

    def create_json(self, path: str, content: Mapping[str, Json]) -> bool:
        """Like `write_json`, but only if there is no such file. Returns whether it was created. Raises CannotWrite."""
        return self.storage.create(path, _encoded(content))

    def record_config(self, config: EvaluationRunConfig, versions: dict[str, str]) -> None:
        """Write run.json: the settings of the latest command without their secrets, and all fingerprints so far."""
        content = {
            "format": FORMAT,
            "config": without_secret_values(config.model_dump(mode="json")),
            "versions": versions,
            "creation": self.creation,
            "fingerprints": self.fingerprints.known(),
        }
        self.write_json(RUN_FILE, content)

    def register_fingerprint(self, dataset: str, fingerprint: Fingerprint) -> None:
        """Register the fingerprint that this command's commits to a dataset have. The dataset's first commit fixes it.

        Raises:
            FingerprintMismatch: the dataset's fingerprint is fixed, and differs.
        """
        self.fingerprints.register(dataset, fingerprint)

    def branch_of_student(self, student: str) -> str:
        """The branch of the configuration that describes a student, such as `students.0`."""
        return self.fingerprints.branches.students.get(student, "student")

    def check_fingerprint(self, dataset: str, fingerprint: Fingerprint, ignoring: str = "") -> None:
        """Compare a fingerprint with the dataset's fixed fingerprint, if there is one. See `FingerprintFiles.check`."""
        self.fingerprints.check(dataset, fingerprint, ignoring)


def _again_dir(model: str) -> str:
    """The folder with a file for each time that a measured model was trained again, or exported with other weights."""
    return f"evaluation/again/{model}"


def _encoded(content: Mapping[str, Json]) -> bytes:
    return json.dumps(sealed(without_url_secrets_within(content)), indent=2, ensure_ascii=False).encode()

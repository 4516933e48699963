"""A run directory: where each dataset lies, what the run is, and whether it may be continued."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from mpa_ray.config import EvaluationRunConfig, ObjectStoreConfig
from mpa_ray.errors import CannotWrite, ConfigError, FingerprintMismatch
from mpa_ray.records import Annotation, ImageRef, LabelledQuestion, Prediction, Verdict
from mpa_ray.run.dataset import ShardedDataset, shard_name
from mpa_ray.run.fingerprint import differences
from mpa_ray.storage.open import open_storage
from mpa_ray.storage.storage import Storage

Fingerprint = dict[str, Any]
"""Names and values that a dataset's content depends on; see `mpa_ray.run.fingerprint`."""

FORMAT = 2
"""Goes up when a run directory of an older version can no longer be read. Format 1: mpa_ray 0.1."""

RUN_FILE = "run.json"
CORPUS_MANIFEST = "corpus/manifest.json"
SCORES = "evaluation/scores.json"
REPORT_JSON = "report/report.json"
REPORT_PAGE = "report/index.html"

_LEAST_FREE_BYTES = 32 * 2**20
_LEAST_ROW_BYTES = 64
"""Rows of the smallest kind, with short questions and answers, compressed."""


@dataclass(frozen=True)
class Manifest:
    """What indexing found: written once, never changed."""

    num_images: int
    num_shards: int

    @property
    def shards(self) -> list[str]:
        """The names of all shards, in their order."""
        return [shard_name(i) for i in range(self.num_shards)]

    def estimate_images(self, num_shards: int) -> int:
        """The number of images in so many of the shards, assuming that all shards are equally large."""
        return self.num_images * num_shards // self.num_shards if self.num_shards else 0


class Run:
    """The files of one run, by their meaning."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._check_format()
        self.corpus = ShardedDataset(storage, "corpus", ImageRef)
        self.annotations = ShardedDataset(storage, "annotations", Annotation)

    @classmethod
    def open(cls, run_dir: str, object_store: ObjectStoreConfig | None = None) -> Run:
        """The run in this directory, whether or not it has begun.

        Raises:
            ConfigError: the directory cannot be written.
        """
        storage = open_storage(run_dir, object_store)
        try:
            storage.write(".writable", b"")
        except CannotWrite as error:
            problem = f"cannot be written ({error.problem})."
            raise ConfigError(
                "run_dir", run_dir, problem, "Give a place with free space that you may write."
            ) from error
        return cls(storage)

    def _check_format(self) -> None:
        try:
            stored = self.read_json(RUN_FILE)
        except FileNotFoundError:
            return
        number = stored.get("format", 1)
        if number != FORMAT:
            version = stored.get("versions", {}).get("mpa-ray", "0.1")
            raise ConfigError(
                "run_dir",
                self.storage.root,
                f"was written in format {number} by mpa-ray {version}; this version reads format {FORMAT}.",
                f"Continue it with mpa-ray {version}, or give a new run_dir.",
            )

    def check_free_space(self, num_rows: int) -> None:
        """Raises ConfigError where the run directory has no room for that many more rows."""
        free, needed = self.storage.free_bytes(), _LEAST_FREE_BYTES + num_rows * _LEAST_ROW_BYTES
        if free is not None and free < needed:
            raise ConfigError(
                "run_dir",
                self.storage.root,
                f"has {free >> 20} MiB free, and {num_rows} rows need {needed >> 20} MiB or more.",
                "Free some, or give another run_dir.",
            )

    def verdicts(self, student: str) -> ShardedDataset[Verdict]:
        return ShardedDataset(self.storage, f"verdicts/{student}", Verdict)

    @staticmethod
    def parity_dir(student: str) -> str:
        """Where a student's D_PI is exported."""
        return f"parity/{student}"

    @staticmethod
    def rematch_dir(student: str, matcher: str) -> str:
        """Where D_PI by another matcher is exported: below the student's own, so that no other student has it."""
        return f"parity/{student}/rematch/{matcher}"

    @staticmethod
    def benchmark_dir(benchmark: str) -> str:
        return f"evaluation/{benchmark}"

    def questions(self, benchmark: str) -> ShardedDataset[LabelledQuestion]:
        return ShardedDataset(self.storage, f"{self.benchmark_dir(benchmark)}/questions", LabelledQuestion)

    def predictions(self, benchmark: str, model: str) -> ShardedDataset[Prediction]:
        return ShardedDataset(self.storage, f"{self.benchmark_dir(benchmark)}/predictions/{model}", Prediction)

    @staticmethod
    def student_dir(student: str, arm: str = "parity") -> str:
        return f"students/{student}/{arm}"

    def merged_model(self, student: str, arm: str = "parity") -> str:
        """The exported checkpoint of a student, as a model's name: a folder or an s3:// prefix."""
        return f"{self.storage.root}/{self.student_dir(student, arm)}/merged"

    def is_indexed(self) -> bool:
        return self.storage.exists(CORPUS_MANIFEST)

    def is_identified(self, student: str) -> bool:
        """Whether the student's D_PI is exported."""
        return self.storage.exists(f"{self.parity_dir(student)}/manifest.json")

    def is_leveled(self, student: str, arm: str = "parity") -> bool:
        """Whether the student is trained on the arm, exported and checked."""
        return self.storage.exists(self._complete_path(student, arm))

    def mark_leveled(self, student: str, arm: str) -> None:
        self.storage.create(self._complete_path(student, arm), b"{}")

    def _complete_path(self, student: str, arm: str) -> str:
        return f"{self.student_dir(student, arm)}/complete.json"

    def manifest(self, folder: str = "corpus") -> Manifest:
        """What the corpus, or another folder with a manifest, consists of.

        Raises:
            RunError: nothing has been indexed yet.
        """
        try:
            return Manifest(**self.read_json(f"{folder}/manifest.json"))
        except FileNotFoundError:
            problem = f"has no {folder}/manifest.json."
            raise ConfigError("run_dir", self.storage.root, problem, "Run jobs/index.py first.") from None

    def read_json(self, path: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.storage.read(path))
        return content

    def write_json(self, path: str, content: dict[str, Any]) -> None:
        self.storage.write(path, json.dumps(content, indent=2, ensure_ascii=False).encode())

    def record_config(self, config: EvaluationRunConfig, versions: dict[str, str]) -> None:
        """Store the latest command's settings in run.json, with the fingerprint of every dataset so far."""
        registered = {_dataset_of(path): path for path in self.storage.list(_FINGERPRINTS)}
        content = {
            "format": FORMAT,
            "config": config.model_dump(mode="json"),
            "versions": versions,
            "fingerprints": {dataset: self.read_json(path) for dataset, path in registered.items()},
        }
        self.write_json(RUN_FILE, content)

    def register_fingerprint(self, dataset: str, fingerprint: Fingerprint) -> None:
        """Say what a dataset is made of; settings may change until its first rows are there.

        Raises:
            FingerprintMismatch: it was begun under other settings; names each field that differs, with both values.
        """
        path = self._fingerprint_path(dataset)
        content = json.dumps(fingerprint, indent=2, ensure_ascii=False).encode()
        if self.storage.create(path, content):
            return
        if self._is_begun(dataset):
            self.check_fingerprint(dataset, fingerprint)
        else:
            self.storage.write(path, content)

    def check_fingerprint(self, dataset: str, fingerprint: Fingerprint, ignoring: str = "") -> None:
        """Refuse settings other than those that a dataset, if it is begun, is made of.

        Args:
            dataset: Its folder.
            fingerprint: What it should be made of.
            ignoring: A field that may differ.

        Raises:
            FingerprintMismatch: naming each field that differs, with both values.
        """
        path = self._fingerprint_path(dataset)
        changed = differences(self.read_json(path), fingerprint) if self._is_begun(dataset) else {}
        changed.pop(ignoring, None)
        if not changed:
            return
        told = "; ".join(f"{field}: was {old!r}, now {new!r}" for field, (old, new) in changed.items())
        kind, _, student = dataset.partition("/")
        remedy = "Undo the change, or give a new run_dir."
        if kind in ("verdicts", "students"):
            remedy = f"Undo the change, or rename student {student.partition('/')[0]}: the teacher's work is kept."
        elif kind == "evaluation":
            remedy = "Undo the change, or give the benchmark or the model another name."
        raise FingerprintMismatch(
            "run_dir", self.storage.root, f"its {dataset} were made with other settings: {told}.", remedy
        )

    def _is_begun(self, dataset: str) -> bool:
        """Are there rows of it, or results of a training?"""
        folders = (f"{dataset}/commits", dataset, f"{dataset}/epoch/commits")
        return any(any(self.storage.list(folder)) for folder in folders)

    @staticmethod
    def _fingerprint_path(dataset: str) -> str:
        return f"{_FINGERPRINTS}/{dataset.replace('/', _SLASH)}.json"


_FINGERPRINTS = "fingerprints"
_SLASH = "@"
"""Stands for a slash in a file name; no name of a dataset's parts may hold it."""


def _dataset_of(path: str) -> str:
    """The folder of the dataset whose fingerprint is at this path."""
    return path.removeprefix(f"{_FINGERPRINTS}/").removesuffix(".json").replace(_SLASH, "/")

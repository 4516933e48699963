"""A run directory: where each dataset lies, what the run is, and whether it may be continued."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from mpa_ray.config import ObjectStoreConfig, RunConfig
from mpa_ray.errors import ConfigError, FingerprintMismatch
from mpa_ray.records import Annotation, ImageRef, LabelledQuestion, Prediction, Verdict
from mpa_ray.store.dataset import ShardedDataset, shard_name
from mpa_ray.store.fingerprint import differences
from mpa_ray.store.storage import Storage, open_storage

Fingerprint = dict[str, Any]


@dataclass(frozen=True)
class Manifest:
    """What indexing found: written once, never changed."""

    num_images: int
    num_shards: int

    @property
    def shards(self) -> list[str]:
        return [shard_name(i) for i in range(self.num_shards)]


class Run:
    """The files of one run, by their meaning."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
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
        except OSError as error:
            problem = f"cannot be written ({error.strerror or error})."
            raise ConfigError(
                "run_dir", run_dir, problem, "Give a place with free space that you may write."
            ) from error
        return cls(storage)

    def verdicts(self, student: str) -> ShardedDataset[Verdict]:
        return ShardedDataset(self.storage, f"verdicts/{student}", Verdict)

    def questions(self) -> ShardedDataset[LabelledQuestion]:
        return ShardedDataset(self.storage, "evaluation/questions", LabelledQuestion)

    def predictions(self, model: str) -> ShardedDataset[Prediction]:
        return ShardedDataset(self.storage, f"evaluation/predictions/{model}", Prediction)

    @staticmethod
    def student_dir(student: str, arm: str = "parity") -> str:
        return f"students/{student}/{arm}"

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

    def record_config(self, config: RunConfig, versions: dict[str, str]) -> None:
        """Store in run.json what the latest command was told, and what every dataset so far is made of."""
        claimed = {p.removeprefix("fingerprints/").removesuffix(".json"): p for p in self.storage.list("fingerprints")}
        content = {
            "config": config.model_dump(mode="json"),
            "versions": versions,
            "fingerprints": {dataset: self.read_json(path) for dataset, path in claimed.items()},
        }
        self.write_json("run.json", content)

    def claim(self, dataset: str, fingerprint: Fingerprint) -> None:
        """Say what a dataset is made of; a dataset begun under other settings is refused.

        Raises:
            FingerprintMismatch: naming each field that differs, with both values.
        """
        path = f"fingerprints/{dataset.replace('/', '.')}.json"
        if self.storage.create(path, json.dumps(fingerprint, indent=2, ensure_ascii=False).encode()):
            return
        changed = differences(self.read_json(path), fingerprint)
        if changed:
            told = "; ".join(f"{field}: was {old!r}, now {new!r}" for field, (old, new) in changed.items())
            raise FingerprintMismatch(
                "run_dir", self.storage.root, f"its {dataset} were made with other settings: {told}.",
                "Undo the change, or give a new run_dir.",
            )  # fmt: skip

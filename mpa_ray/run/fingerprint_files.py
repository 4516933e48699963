"""The stored fingerprints of a run's datasets.

The first commit to a dataset fixes the dataset's fingerprint: it creates the fingerprint's file, which no other commit
replaces. Every commit compares its own settings with this file before it creates its marker. So of several commands
with different settings, only those that agree with the file publish rows, whatever the order of their requests.
"""

from __future__ import annotations

import hashlib
import json

from mpa_ray.config import ModelBranches
from mpa_ray.errors import ConfigError, FingerprintMismatch
from mpa_ray.redaction import without_secret_values
from mpa_ray.run.fingerprint_changes import Fingerprint, changed_fields, changes_in_words, remedy_for_changes
from mpa_ray.run.sealed_json import parse_sealed, sealed
from mpa_ray.storage.storage import Storage

FINGERPRINTS = "fingerprints"
_SLASH = "@"
"""Replaces a slash in the name of a fingerprint's file; no dataset's name contains it."""


class FingerprintFiles:
    """Compares the settings of this command with those that the datasets' rows were made with."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.branches = ModelBranches()
        """Where the configuration describes the models, so that errors name the settings as the user writes them."""
        self._registered: dict[str, Fingerprint] = {}
        self._digests: dict[str, str] = {}
        """The digests of fingerprints that were compared and agree. They stay valid, because no file ever changes."""

    def register(self, dataset: str, fingerprint: Fingerprint) -> None:
        """Register the fingerprint that this command's commits have, for a dataset and all datasets below its folder.

        Raises:
            FingerprintMismatch: the dataset's fingerprint is fixed, and differs.
        """
        self.check(dataset, fingerprint)
        self._registered[dataset] = without_secret_values(fingerprint)
        self._digests.pop(dataset, None)

    def check(self, dataset: str, fingerprint: Fingerprint, ignoring: str = "") -> bool:
        """Compare a fingerprint with the fixed one. Returns whether the dataset's fingerprint is fixed.

        Args:
            dataset: The dataset's folder.
            fingerprint: The fingerprint of the current settings.
            ignoring: A field that may differ.

        Raises:
            FingerprintMismatch: fields differ. The message names them, and shows both values of the first few.
        """
        fixed = self.fixed(dataset)
        if fixed is None:
            return False
        # Compare without secrets: a new token does not change what a dataset holds.
        changed = changed_fields(fixed, without_secret_values(fingerprint))
        changed.pop(ignoring, None)
        if changed:
            changes = changes_in_words(dataset, changed, self.branches)
            problem = f"its dataset {dataset} was made with other settings: {changes}."
            raise FingerprintMismatch("run_dir", self._storage.root, problem, remedy_for_changes(dataset, changed))
        return True

    def check_registered(self, folder: str) -> bool:
        """Compare the registered fingerprint of the dataset in a folder with the fixed one.

        Returns:
            Whether they are known to agree. False if no fingerprint is fixed yet, or if none is registered.

        Raises:
            FingerprintMismatch: they differ.
        """
        dataset = self._dataset_of(folder)
        return dataset is not None and (dataset in self._digests or self.check(dataset, self._registered[dataset]))

    def fix(self, folder: str) -> str:
        """Fix the fingerprint of the dataset in a folder if it is not fixed yet, and return the fingerprint's digest.

        Returns "" if no fingerprint is registered.

        Raises:
            FingerprintMismatch: a commit with other settings came first.
            CannotWrite: the file cannot be created.
        """
        dataset = self._dataset_of(folder)
        if dataset is None:
            return ""
        if dataset not in self._digests:
            fingerprint = self._registered[dataset]
            if not self.check(dataset, fingerprint):
                self._storage.create(path_of(dataset), content_of(fingerprint))
                # Another command may have created the file first.
                self.check(dataset, fingerprint)
            self._digests[dataset] = self.digest(dataset)
        return self._digests[dataset]

    def digest(self, dataset: str) -> str:
        """The digest of a dataset's fixed fingerprint; "" if no fingerprint is fixed."""
        fixed = self.fixed(dataset)
        if fixed is None:
            return ""
        return digest_of(fixed)

    def fixed(self, dataset: str) -> Fingerprint | None:
        """A dataset's fixed fingerprint; None if no fingerprint is fixed. Raises ConfigError if its file is damaged."""
        try:
            content = self._storage.read(path_of(dataset))
        except FileNotFoundError:
            return None
        try:
            return parse_sealed(content)
        except ValueError as error:
            raise self._damaged(dataset, str(error)) from None

    def known(self) -> dict[str, Fingerprint]:
        """The registered and the fixed fingerprints, by dataset. If a dataset has both, the fixed one is returned."""
        fixed = {dataset: self.fixed(dataset) for dataset in map(name_of, self._storage.list(FINGERPRINTS))}
        return {**self._registered, **{name: value for name, value in fixed.items() if value is not None}}

    def only(self, folder: str) -> FingerprintFiles:
        """A copy for another process, with only the registered fingerprint of the dataset in a folder."""
        files, dataset = FingerprintFiles(self._storage), self._dataset_of(folder)
        files.branches = self.branches
        if dataset is not None:
            files._registered = {dataset: self._registered[dataset]}
        return files

    def _dataset_of(self, folder: str) -> str | None:
        """The registered dataset whose folder is this folder, or contains it; None if there is no such dataset."""
        return next((name for name in self._registered if f"{folder}/".startswith(f"{name}/")), None)

    def _damaged(self, dataset: str, problem: str) -> ConfigError:
        return ConfigError(
            "run_dir",
            self._storage.root,
            f"{path_of(dataset)} cannot be read ({problem}).",
            f"Run mpa-ray audit {self._storage.root} --repair, which restores the file from run.json if it can. If it "
            "cannot, restore the file from a copy of the run.",
        )


def digest_of(fingerprint: Fingerprint) -> str:
    """The digest of a fingerprint."""
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:16]


def content_of(fingerprint: Fingerprint) -> bytes:
    """The content of a fingerprint's file. The digest tells a changed bit from a changed setting."""
    return json.dumps(sealed(fingerprint), indent=2, ensure_ascii=False).encode()


def path_of(dataset: str) -> str:
    """The path of the file with the fingerprint of a dataset."""
    return f"{FINGERPRINTS}/{dataset.replace('/', _SLASH)}.json"


def name_of(path: str) -> str:
    """The inverse of `path_of`."""
    return path.removeprefix(f"{FINGERPRINTS}/").removesuffix(".json").replace(_SLASH, "/")

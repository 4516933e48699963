"""Locate a benchmark's image files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mpa_ray.config import resolve_path
from mpa_ray.corpus.locator import Locator
from mpa_ray.corpus.places.places import Places
from mpa_ray.errors import ConfigError
from mpa_ray.evaluation.benchmarks.record import Record
from mpa_ray.records import LabelledQuestion
from mpa_ray.redaction import has_url_secrets


class Images:
    """Image files in one folder and its subfolders."""

    def __init__(self, places: Places, root: str | None) -> None:
        """If `root` is None, the folder of each record's file takes its place."""
        self._places = places
        self._root = None if root is None else _absolute(root)
        self._layout: int | None = None

    def uri(self, record: Record, *names: str) -> str:
        """Return the locator of an image that may have one of several names.

        The first name with an existing file is used or, if no file exists, the first name. All calls must give the same
        number of names in the same order. In an object store, names are tried only for the first image. For all later
        images, the name at the same position is used.

        Raises:
            ConfigError: a name points outside the folder.
        """
        uris = [self._below(record, name) for name in names]
        if "://" not in uris[0]:
            return str(Locator(next((uri for uri in uris if len(uris) > 1 and Path(uri).is_file()), uris[0])))
        if self._layout is None:
            self._layout = next((i for i, uri in enumerate(uris) if len(uris) > 1 and self._is_there(uri)), 0)
        return str(Locator(uris[self._layout]))

    def _below(self, record: Record, name: str) -> str:
        root = self._root or _absolute(record.file.rpartition("/")[0] or ".")
        scheme, separator, _ = name.partition("://")
        if separator and has_url_secrets(name):
            raise record.error(
                f"the image {name!r} holds a password or a signature, which the run would store.",
                "Give credentials in the environment.",
            )
        if separator and scheme in ("s3", "gs"):
            return name
        if separator or ".." in name.split("/") or (name.startswith("/") and "://" in root):
            raise record.error(
                f"the image {name!r} is outside {root}, which is not allowed.",
                "Set benchmark.images to a folder that contains all images, and give paths below it.",
            )
        return name if name.startswith("/") else f"{root}/{name}"

    def _is_there(self, uri: str) -> bool:
        try:
            self._places.of(uri).size(uri)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise ConfigError(
                "benchmark.images",
                uri,
                f"cannot be read ({error.strerror or error}).",
                "Check the connection and your credentials.",
            ) from error
        return True


def check_images(questions: Iterable[LabelledQuestion]) -> None:
    """Check that all local image files exist; images in an object store are not checked.

    Raises:
        ConfigError: files are missing. The error names the first of them and says how many are missing.
    """
    files: dict[str, LabelledQuestion] = {}
    for question in questions:
        files.setdefault(Locator.parse(question.uri).uri, question)
    local = {uri: question for uri, question in files.items() if "://" not in uri}
    missing = [uri for uri in local if not Path(uri).is_file()]
    if missing:
        raise ConfigError(
            "benchmark.images",
            missing[0],
            f"does not exist, but question {local[missing[0]].question_id!r} needs it (missing image files: "
            f"{len(missing)} of {len(local)}).",
            "Download the benchmark's images, and give their folder.",
        )


def _absolute(root: str) -> str:
    root = resolve_path(root)
    return root.rstrip("/") if "://" in root else str(Path(root).absolute())

"""Where a benchmark's image files are."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mpa_ray.config import resolve_path
from mpa_ray.corpus.locator import Locator
from mpa_ray.corpus.places.places import Places
from mpa_ray.errors import ConfigError
from mpa_ray.evaluation.benchmarks.record import Record
from mpa_ray.records import LabelledQuestion


class Images:
    """Image files below one folder."""

    def __init__(self, places: Places, root: str | None) -> None:
        """`root` None stands for the folder of each record's own file."""
        self._places = places
        self._root = None if root is None else _absolute(root)
        self._layout: int | None = None

    def uri(self, record: Record, *names: str) -> str:
        """The locator of the first of the names at which there is a file, or of the first name.

        Every call gives as many names, in the same order: at an object store they are tried for one image alone.

        Raises:
            ConfigError: a name leads out of the folder.
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
        if separator and scheme in ("s3", "gs"):
            return name
        if separator or ".." in name.split("/") or (name.startswith("/") and "://" in root):
            raise record.error(
                f"the image {name!r} leads out of {root}, which is refused.",
                "Name a folder above as benchmark.images, and paths below it.",
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
    """See that the files of all local images are there; what lies at an object store is not looked up.

    Raises:
        ConfigError: some are not; it names the first and says how many.
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
            f"there is no such image, which question {local[missing[0]].question_id!r} is about; of the files with "
            f"images {len(missing)} of {len(local)} are missing.",
            "Fetch the benchmark's images, and name the folder that they are in.",
        )


def _absolute(root: str) -> str:
    root = resolve_path(root)
    return root.rstrip("/") if "://" in root else str(Path(root).absolute())

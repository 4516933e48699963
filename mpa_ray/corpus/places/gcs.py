"""Objects at gs://, through pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import dropwhile

from pyarrow.fs import FileSelector, FileSystem, FileType

from mpa_ray.corpus.places.place import Entry
from mpa_ray.errors import ConfigError


def cloud_storage() -> ArrowPlace:
    """Connect to Google Cloud Storage with the machine's default credentials.

    Raises:
        ConfigError: this pyarrow was built without Google Cloud Storage.
    """
    try:
        from pyarrow.fs import GcsFileSystem
    except ImportError as error:
        raise ConfigError(
            "source.path",
            "gs://",
            "needs a pyarrow that supports Google Cloud Storage.",
            "Install pyarrow from a wheel of PyPI.",
        ) from error
    return ArrowPlace(GcsFileSystem(), "gs://")


class ArrowPlace:
    """A place in any pyarrow file system."""

    def __init__(self, file_system: FileSystem, scheme: str) -> None:
        self._files, self._scheme = file_system, scheme

    def walk(self, root: str, after: str = "", num_listers: int = 1) -> Iterator[Entry]:  # noqa: ARG002
        folder = self._path(root).rstrip("/")
        entries = self._walk(folder, root, "")
        return dropwhile(lambda e: e.path.encode() <= after.encode(), entries) if after else entries

    def size(self, uri: str) -> int:
        size: int | None = self._files.get_file_info(self._path(uri)).size
        if size is None:
            raise FileNotFoundError(uri)
        return size

    def read(self, uri: str, first: int = 0, num_bytes: int | None = None) -> bytes:
        with self._files.open_input_file(self._path(uri)) as file:
            content: bytes = file.read_at(file.size() - first if num_bytes is None else num_bytes, first)
        return content

    def _walk(self, folder: str, root: str, path: str) -> Iterator[Entry]:
        try:
            infos = self._files.get_file_info(FileSelector(folder))
        except OSError as error:
            if path and isinstance(error, FileNotFoundError | PermissionError):
                yield Entry(path, self._scheme + folder, None, f"unreadable folders ({type(error).__name__})")
                return
            raise ConfigError(
                "source.path", root, f"cannot be listed ({error}).", "Check the bucket and your credentials."
            ) from error
        names = {info.base_name + "/" * (info.type == FileType.Directory): info for info in infos}
        for name in sorted(names, key=str.encode):
            info = names[name]
            if name.endswith("/"):
                yield from self._walk(info.path, root, path + name)
            else:
                yield Entry(path + name, self._scheme + info.path, info.size)

    def _path(self, uri: str) -> str:
        return uri.removeprefix(self._scheme)

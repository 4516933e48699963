"""Objects at gs://, through pyarrow."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from itertools import dropwhile
from pathlib import Path

from pyarrow.fs import FileSelector, FileSystem, FileType

from mpa_ray.config import ObjectStoreConfig
from mpa_ray.corpus.places.place import Entry
from mpa_ray.errors import AccessLost, ConfigError, NoSuchBucket, TransientError
from mpa_ray.storage.deadline import call_with_deadline
from mpa_ray.storage.user_cache import home_folder

_SCHEME = "gs://"
_KEY_FILE = "GOOGLE_APPLICATION_CREDENTIALS"
_LOGIN_FILE = ".config/gcloud/application_default_credentials.json"
_METADATA_HOST = "metadata.google.internal"
_METADATA_DEADLINE_S = 2.0
_REMEDY = f"Run gcloud auth application-default login, or set {_KEY_FILE}, on every node."
_STATUS = re.compile(r"google::cloud::Status\((?P<code>[A-Z_]+): (?P<message>.*?)(?: error_info=|\)|\Z)", re.DOTALL)
_LAST_MESSAGE = re.compile(r".*with a last message of (.*)", re.DOTALL)
_TRANSIENT = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "INTERNAL", "UNKNOWN")


def cloud_storage(config: ObjectStoreConfig, uri: str) -> ArrowPlace:
    """Connect to Google Cloud Storage with the machine's default credentials. Errors name the URI.

    Raises:
        ConfigError: the machine has no credentials, or pyarrow was built without Google Cloud Storage.
    """
    try:
        from pyarrow.fs import GcsFileSystem
    except ImportError as error:
        problem = "needs a pyarrow that supports Google Cloud Storage."
        raise ConfigError("uri", uri, problem, "Install pyarrow from a wheel of PyPI.") from error
    missing = _no_credentials()
    if missing is not None:
        raise ConfigError("uri", uri, f"cannot be accessed: {missing}", _REMEDY)
    return ArrowPlace(GcsFileSystem(retry_time_limit=timedelta(seconds=config.max_outage_s)), _SCHEME)


class ArrowPlace:
    """The files of a pyarrow file system, as a `Place`."""

    def __init__(self, file_system: FileSystem, scheme: str) -> None:
        self._files, self._scheme = file_system, scheme

    def walk(self, root: str, after: str = "", num_listers: int = 1) -> Iterator[Entry]:  # noqa: ARG002
        folder = self._path(root).rstrip("/")
        entries = self._walk(folder, root, "")
        return dropwhile(lambda e: e.path.encode() <= after.encode(), entries) if after else entries

    def size(self, uri: str) -> int:
        with _plain_errors(uri):
            size: int | None = self._files.get_file_info(self._path(uri)).size
        if size is None:
            raise FileNotFoundError(uri)
        return size

    def read(self, uri: str, first: int = 0, num_bytes: int | None = None) -> bytes:
        with _plain_errors(uri), self._files.open_input_file(self._path(uri)) as file:
            content: bytes = file.read_at(file.size() - first if num_bytes is None else num_bytes, first)
        return content

    def _walk(self, folder: str, root: str, path: str) -> Iterator[Entry]:
        try:
            with _plain_errors(self._scheme + folder):
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


@contextmanager
def _plain_errors(uri: str) -> Iterator[None]:
    """Turn the errors of Google's library, which pyarrow raises with long messages, into our errors, which have one
    line."""
    try:
        yield
    except (OSError, ValueError) as error:
        status = _STATUS.search(str(error))
        if status is None:
            raise
        raise _error_of(status["code"], status["message"], uri) from error


def _error_of(code: str, text: str, uri: str) -> Exception:
    last = _LAST_MESSAGE.fullmatch(text)
    message = f"{uri}: {code}: {' '.join((last[1] if last else text).split())}"
    if code == "UNAUTHENTICATED":
        return AccessLost(f"{message}. Renew the credentials, and check the clock.")
    if code in _TRANSIENT:
        return TransientError(message)
    if code == "PERMISSION_DENIED":
        return PermissionError(message)
    if code == "NOT_FOUND":
        return NoSuchBucket(message) if "bucket" in text else FileNotFoundError(message)
    return OSError(message)


@cache
def _no_credentials() -> str | None:
    """Return why Google's library cannot find credentials; None if it can.

    Without credentials, the library would spend many minutes asking a server that only Google's machines can reach.
    """
    if key_file := os.environ.get(_KEY_FILE):
        return None if Path(key_file).is_file() else f"{_KEY_FILE} names {key_file!r}, which is not a file."
    home = home_folder()
    if home is not None and (home / _LOGIN_FILE).is_file():
        return None
    try:
        call_with_deadline(_ask_metadata_host, _METADATA_DEADLINE_S, _METADATA_HOST)
    except OSError:
        return "this machine has no credentials of Google Cloud."
    return None


def _ask_metadata_host() -> None:
    with socket.create_connection((os.environ.get("GCE_METADATA_ROOT", _METADATA_HOST), 80), _METADATA_DEADLINE_S):
        pass

"""SHA-256 of whole files and objects. Digests are kept in the user's cache folder, so unchanged content is read only
once.

The etag of an object shows whether the object has changed. It does not identify the content, because it also depends on
the sizes of the parts in which the object was uploaded. If the store has the SHA-256 of the whole object, this digest
is used. Otherwise, the SHA-256 comes from the metadata that `S3Storage.put_folder` writes. If the metadata lack it, the
object is read once, and is not stored on this machine.
"""

from __future__ import annotations

import hashlib
import os
import time
from base64 import b64decode
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mpa_ray.errors import ConfigError, TransientError
from mpa_ray.observability.progress import Progress
from mpa_ray.storage.listing import ListedObject
from mpa_ray.storage.object_uri import SCHEME, split_uri
from mpa_ray.storage.user_cache import cache_folder

if TYPE_CHECKING:
    from mpa_ray.storage.object_store import ObjectStore

SHA256_METADATA = "mpa-ray-sha256"
"""The key in an object's metadata for the SHA-256 of the object's content, in hexadecimal digits."""
_NUM_THREADS = 8
_PIECE_BYTES = 1 << 24
_SETTLED_S = 2.0
"""The digest of a file that changed less than this many seconds ago is not kept, because the file may change again
without a new modification time."""


class Content(Protocol):
    """A file or an object that can be read."""

    @property
    def num_bytes(self) -> int: ...

    @property
    def key(self) -> str | None:
        """Identifies the content, and changes when the content changes. None if a change to the content could not be
        detected."""
        ...

    @property
    def changed_s(self) -> float:
        """When the content last changed, in seconds since 1970; 0 if every change certainly changes the key."""
        ...

    @property
    def known_sha256(self) -> str | None:
        """The digest, if it is known without reading the content."""
        ...

    def pieces(self) -> Iterator[bytes]:
        """Yield the content. Raises OSError."""
        ...


@dataclass(frozen=True)
class LocalContent:
    """A file on this machine."""

    path: Path

    @property
    def num_bytes(self) -> int:
        return self.path.stat().st_size

    @property
    def key(self) -> str:
        """Changes when the file is replaced or written, even if its modification time is set back."""
        stat = self.path.stat()
        return f"{self.path.resolve()}:{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"

    @property
    def changed_s(self) -> float:
        """When the file or its properties last changed, in seconds since 1970."""
        stat = self.path.stat()
        return max(stat.st_mtime, stat.st_ctime)

    @property
    def known_sha256(self) -> str | None:
        """Always None, because the digest of a local file is only known after reading the file."""
        return None

    def pieces(self) -> Iterator[bytes]:
        """Yield the content."""
        with self.path.open("rb") as content:
            while piece := content.read(_PIECE_BYTES):
                yield piece


@dataclass(frozen=True)
class ObjectContent:
    """An object of a store."""

    store: ObjectStore
    bucket: str
    listed: ListedObject

    @classmethod
    def of(cls, store: ObjectStore, uri: str) -> ObjectContent:
        """The object with a URI. Raises OSError if there is none."""
        bucket, key = split_uri(uri)
        properties = store.properties(bucket, key)
        etag = properties["ETag"].strip('"')
        return cls(store, bucket, ListedObject(key, properties["ContentLength"], etag, properties["LastModified"]))

    @property
    def num_bytes(self) -> int:
        return self.listed.num_bytes

    @property
    def key(self) -> str:
        endpoint = self.store.config.endpoint_url or ""
        return f"{endpoint} {SCHEME}{self.bucket}/{self.listed.key}:{self.listed.num_bytes}:{self.listed.etag}"

    @property
    def changed_s(self) -> float:
        """Always 0: an object can only be replaced as a whole, and it then has a different etag."""
        return 0.0

    @property
    def known_sha256(self) -> str | None:
        """The digest of the whole content, if the store or the object's metadata has it."""
        properties = self.store.properties(self.bucket, self.listed.key)
        checksum = properties.get("ChecksumSHA256", "")
        # If the object was uploaded in parts, the checksum may be that of the parts' checksums. It then ends with the
        # number of parts.
        if checksum and "-" not in checksum and properties.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT":
            return b64decode(checksum).hex()
        recorded: str | None = properties.get("Metadata", {}).get(SHA256_METADATA)
        return recorded

    def pieces(self) -> Iterator[bytes]:
        """Yield the content. Raises TransientError if the object is replaced while it is read."""
        for first in range(0, self.num_bytes, _PIECE_BYTES):
            yield self.store.get(self.bucket, self.listed.key, first, _PIECE_BYTES)
        if self.store.properties(self.bucket, self.listed.key)["ETag"].strip('"') != self.listed.etag:
            raise TransientError(f"{SCHEME}{self.bucket}/{self.listed.key} was replaced while it was read")


class DigestCache:
    """Digests of contents, looked up by `Content.key`. A folder keeps the digests for later processes."""

    def __init__(self, folder: Path | None, clock: Callable[[], float] = time.time) -> None:
        """Begin with only the digests that are in the folder.

        Args:
            folder: The folder, which may not exist yet; None keeps digests for this process only.
            clock: Returns the seconds since 1970.
        """
        self._folder, self._clock = folder, clock
        self._of_this_process: dict[str, str] = {}

    def get(self, key: str) -> str | None:
        """The digest of the content with this key; None if the digest is not known."""
        if (digest := self._of_this_process.get(key)) is not None or self._folder is None:
            return digest
        with suppress(OSError, ValueError):
            content = self._file(self._folder, key).read_text(encoding="utf-8", errors="surrogateescape")
            stored_key, _, digest = content.rpartition(" ")
            if stored_key == key and len(bytes.fromhex(digest)) == hashlib.sha256().digest_size:
                return digest
        return None

    def keep(self, key: str, content: Content, digest: str) -> None:
        """Keep a digest for this process. If the content has not changed recently, keep the digest for later processes,
        too."""
        self._of_this_process[key] = digest
        if self._folder is None:
            return
        # If the cache cannot be written, the digest is computed again by the next process.
        with suppress(OSError):
            if self._clock() - content.changed_s <= _SETTLED_S or content.key != key:
                return
            file = self._file(self._folder, key)
            if file.is_file():
                return
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary = file.with_name(f"{file.name}.{os.getpid()}.{time.monotonic_ns()}")
            # The key contains the path of the file, which may not be UTF-8.
            temporary.write_text(f"{key} {digest}", encoding="utf-8", errors="surrogateescape")
            temporary.replace(file)

    @staticmethod
    def _file(folder: Path, key: str) -> Path:
        return folder / hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()


def users_digests() -> DigestCache:
    """The digests in the user's cache folder. If the user has no cache folder, digests are kept for this process
    only."""
    try:
        return _digests_in(cache_folder() / "digests")
    except ConfigError:
        return _digests_in(None)


@cache
def _digests_in(folder: Path | None) -> DigestCache:
    return DigestCache(folder)


def sha256_of_file(path: Path) -> str:
    """The SHA-256 of a file on this machine, in hexadecimal digits."""
    return sha256_of_all([LocalContent(path)], str(path))[0]


def sha256_of_all(contents: Sequence[Content], label: str, known: DigestCache | None = None) -> list[str]:
    """The SHA-256 of each file or object, in hexadecimal digits.

    Contents whose digest is not known are read in parallel. If the reading takes more than a few seconds, progress is
    printed.

    Args:
        contents: The files and objects.
        label: A name for the contents, for the progress.
        known: The digests that are already known. The new digests are added to them. None means `users_digests`.

    Raises:
        OSError: a file or object cannot be read.
    """
    known = users_digests() if known is None else known
    keys = [content.key for content in contents]
    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        digests = list(threads.map(partial(_known, known), keys, contents))
        unknown = [content for content, digest in zip(contents, digests, strict=True) if digest is None]
        if not unknown:
            return [digest for digest in digests if digest is not None]
        num_bytes = sum(content.num_bytes for content in unknown)
        with Progress(f"hash {label}", num_bytes >> 20, "MiB", to_stderr=True) as progress:
            read = iter(list(threads.map(partial(_read, progress.advance), unknown)))
    complete = [next(read) if digest is None else digest for digest in digests]
    for key, content, digest in zip(keys, contents, complete, strict=True):
        if key is not None:
            known.keep(key, content, digest)
    return complete


def _known(known: DigestCache, key: str | None, content: Content) -> str | None:
    """The digest, if it is known without reading the content."""
    digest = None if key is None else known.get(key)
    return content.known_sha256 if digest is None else digest


def _read(advance: Callable[[int], None], content: Content) -> str:
    digest, num_read, num_shown = hashlib.sha256(), 0, 0
    for piece in content.pieces():
        digest.update(piece)
        num_read += len(piece)
        advance((num_read >> 20) - num_shown)
        num_shown = num_read >> 20
    return digest.hexdigest()

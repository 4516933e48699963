"""Storage in an S3 bucket."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from pyarrow.fs import FileSystem

from mpa_ray.config import ObjectStoreConfig
from mpa_ray.errors import CannotWrite, ConfigError, may_pass
from mpa_ray.storage.deadline import call_with_deadline
from mpa_ray.storage.digests import SHA256_METADATA, ObjectContent, sha256_of_file
from mpa_ray.storage.exclusive import Creation
from mpa_ray.storage.object_store import ObjectStore
from mpa_ray.storage.object_uri import split_uri
from mpa_ray.storage.storage import StoredFile


class S3Storage:
    """A prefix of a bucket. Every write creates one whole object, and `create` uses a conditional PUT."""

    def __init__(self, root: str, config: ObjectStoreConfig) -> None:
        self.root = root.rstrip("/")
        self._store = ObjectStore(config)
        self._bucket, self._prefix = split_uri(self.root)

    def read(self, path: str) -> bytes:
        return call_with_deadline(
            lambda: self._store.get(self._bucket, self._key(path)),
            self._store.config.read_deadline_s,
            f"{self.root}/{path}",
        )

    def write(self, path: str, content: bytes) -> None:
        try:
            self._store.put(self._bucket, self._key(path), content)
        except OSError as error:
            raise CannotWrite(f"{self.root}/{path}", str(error)) from error

    def create(self, path: str, content: bytes) -> bool:
        try:
            return self._store.create(self._bucket, self._key(path), content)
        except OSError as error:
            raise CannotWrite(f"{self.root}/{path}", str(error)) from error

    def check_create(self, path: str) -> Creation:
        # The first attempt may succeed, if another command has just deleted the file. If the second one succeeds, too,
        # it has replaced the file: the store ignores the condition.
        contents = (uuid.uuid4().bytes for _ in range(2))
        try:
            if not all(self._store.create(self._bucket, self._key(path), content) for content in contents):
                return Creation.CONDITIONAL_PUT
        except FileNotFoundError:
            # The store has refused to replace the file, and another command has then deleted it.
            return Creation.CONDITIONAL_PUT
        except OSError as error:
            if may_pass(error):
                raise CannotWrite(f"{self.root}/{path}", str(error)) from error
            raise self._not_exclusive(f"refuses them ({error})") from error
        raise self._not_exclusive("ignores the condition")

    def exists(self, path: str) -> bool:
        return self._store.exists(self._bucket, self._key(path))

    def digest(self, path: str) -> tuple[int, str]:
        digest, num_bytes = hashlib.sha256(), 0
        for piece in ObjectContent.of(self._store, f"s3://{self._bucket}/{self._key(path)}").pieces():
            digest.update(piece)
            num_bytes += len(piece)
        return num_bytes, digest.hexdigest()

    def list(self, folder: str) -> Iterator[str]:
        prefix = self._key(f"{folder}/")
        for listed in self._store.list(self._bucket, prefix, nested=False):
            name = listed.key.removeprefix(prefix)
            if not name.startswith("."):
                yield f"{folder}/{name}"

    def put_folder(self, source: Path, path: str) -> None:
        for file in sorted(f for f in source.iterdir() if f.is_file()):
            # Reading the local file twice is cheap, and the object need not be read later to identify the model.
            metadata = {SHA256_METADATA: sha256_of_file(file)}
            try:
                self._store.upload(file, self._bucket, self._key(f"{path}/{file.name}"), metadata)
            except OSError as error:
                raise CannotWrite(f"{self.root}/{path}/{file.name}", str(error)) from error

    def delete(self, path: str) -> None:
        self._store.delete(self._bucket, self._key(path))

    def details(self, folder: str) -> Iterator[StoredFile]:
        prefix = self._key(f"{folder}/")
        for listed in self._store.list(self._bucket, prefix, nested=False):
            yield StoredFile(f"{folder}/{listed.key.removeprefix(prefix)}", listed.num_bytes, listed.modified)

    def drop_unfinished(self, before: datetime) -> int:
        return self._store.abort_uploads(self._bucket, self._key(""), before)

    def free_bytes(self) -> int | None:
        return None

    def arrow(self) -> tuple[FileSystem, str]:
        return self._store.arrow(), self.root.removeprefix("s3://")

    def _not_exclusive(self, problem: str) -> ConfigError:
        return ConfigError(
            "run_dir",
            self.root,
            f"is in an object store without conditional writes (PUT with If-None-Match): it {problem}, so two commands "
            "could overwrite each other's results.",
            "Update the store or the proxy in front of it, or give another run_dir.",
        )

    def _key(self, path: str) -> str:
        return f"{self._prefix}/{path}" if self._prefix else path

"""Objects at s3://, their prefixes listed side by side."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from mpa_ray.config import ObjectStoreConfig
from mpa_ray.corpus.ordered_prefetch import in_order
from mpa_ray.corpus.places.place import Entry
from mpa_ray.errors import ConfigError
from mpa_ray.storage.object_store import FoundObject, ObjectStore, split_uri


class S3Place:
    def __init__(self, config: ObjectStoreConfig) -> None:
        self._store = ObjectStore(config)

    def walk(self, root: str, after: str = "", num_listers: int = 1) -> Iterator[Entry]:
        bucket, prefix = split_uri(root.rstrip("/") + "/")
        try:
            listings = [
                partial(self._listing, bucket, part, prefix + after)
                for part in self._parts(bucket, prefix, num_listers)
                if not after or part.encode() >= (prefix + after).encode() or (prefix + after).startswith(part)
            ]
            for found in in_order(listings, num_listers):
                if not found.key.endswith("/"):
                    yield Entry(found.key.removeprefix(prefix), f"s3://{bucket}/{found.key}", found.num_bytes)
        except OSError as error:
            raise ConfigError(
                "source.path",
                root,
                f"cannot be listed ({error}).",
                "Check the bucket, object_store and your credentials.",
            ) from error

    def size(self, uri: str) -> int:
        return self._store.size(*split_uri(uri))

    def read(self, uri: str, first: int = 0, num_bytes: int | None = None) -> bytes:
        if first == 0 and num_bytes is None:
            return self._store.get(*split_uri(uri))
        return self._store.get(*split_uri(uri), first, num_bytes)

    def _parts(self, bucket: str, prefix: str, wanted: int) -> list[str]:
        """The prefix split at its slashes into some more than `wanted` prefixes and keys, in their order."""
        parts, folders = [prefix], [prefix]
        while folders and len(parts) < wanted:
            # A folder with many objects directly in it is listed page by page as it is.
            split = {folder: self._store.children(bucket, folder) or [folder] for folder in folders}
            parts = [p for part in parts for p in split.get(part, [part])]
            folders = [p for folder in folders for p in split[folder] if p.endswith("/") and p != folder]
        return sorted(parts, key=str.encode)

    def _listing(self, bucket: str, part: str, after: str) -> Iterator[FoundObject]:
        """What lies below a prefix, or the one object of a key, behind the key `after`."""
        for found in self._store.list(bucket, part, nested=True, after=after):
            if part.endswith("/") or found.key == part:
                yield found
            else:
                # Keys that only begin like this one are parts of their own.
                return

"""Objects at s3://."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from mpa_ray.config import ObjectStoreConfig
from mpa_ray.corpus.ordered_prefetch import ordered_prefetch
from mpa_ray.corpus.places.place import Entry
from mpa_ray.errors import ConfigError
from mpa_ray.storage.listing import ListedObject
from mpa_ray.storage.object_store import ObjectStore
from mpa_ray.storage.object_uri import split_uri


class S3Place:
    """Objects in an S3 bucket. Several prefixes are listed at a time."""

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
            for listed in ordered_prefetch(listings, num_listers):
                if not listed.key.endswith("/"):
                    yield Entry(listed.key.removeprefix(prefix), f"s3://{bucket}/{listed.key}", listed.num_bytes)
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

    def _parts(self, bucket: str, prefix: str, min_parts: int) -> list[str]:
        """Split a prefix into keys and longer prefixes, if possible into at least `min_parts`. Return them sorted."""
        parts, folders = [prefix], [prefix]
        while folders and len(parts) < min_parts:
            # A prefix is not split further if the keys and prefixes directly under it fill more than one page.
            split = {folder: self._store.children(bucket, folder) or [folder] for folder in folders}
            parts = [p for part in parts for p in split.get(part, [part])]
            folders = [p for folder in folders for p in split[folder] if p.endswith("/") and p != folder]
        return sorted(parts, key=str.encode)

    def _listing(self, bucket: str, part: str, after: str) -> Iterator[ListedObject]:
        """Yield the objects of a part that `_parts` returned, starting after the key `after`."""
        for listed in self._store.list(bucket, part, nested=True, after=after):
            # An empty part is the prefix of the whole bucket.
            if not part or part.endswith("/") or listed.key == part:
                yield listed
            else:
                # Longer keys that start with this key are separate parts.
                return

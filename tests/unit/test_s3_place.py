"""Listing a bucket, or a prefix of it, by several listers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import pytest

from mpa_ray.config import ObjectStoreConfig
from mpa_ray.corpus.places.s3 import S3Place
from mpa_ray.storage.listing import ListedObject
from mpa_ray.storage.object_store import ObjectStore

KEYS = ["a.png", "a/1.png", "a/2.png", "a/b/3.png", "a0.png", "b/", "b/4.png", "c.png", "c.png.txt"]


@pytest.fixture(params=[1, 100], ids=["one page", "many pages"])
def keys(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A bucket; with many pages, no prefix can be split."""

    def objects(_: ObjectStore, bucket: str, prefix: str, *, nested: bool, after: str = "") -> Iterator[ListedObject]:
        assert (bucket, nested) == ("bucket", True)
        return (ListedObject(k, 1, "", datetime.now(UTC)) for k in KEYS if k.startswith(prefix) and k > after)

    def children(_: ObjectStore, _bucket: str, prefix: str) -> Sequence[str] | None:
        if request.param > 1:
            return None
        names = [k.removeprefix(prefix) for k in KEYS if k.startswith(prefix) and k != prefix]
        return list(dict.fromkeys(f"{prefix}{n.partition('/')[0]}{'/' * ('/' in n)}" for n in names))

    monkeypatch.setattr(ObjectStore, "list", objects)
    monkeypatch.setattr(ObjectStore, "children", children)
    return [key for key in KEYS if not key.endswith("/")]


@pytest.mark.parametrize("root", ["s3://bucket", "s3://bucket/", "s3://bucket/a", "s3://bucket/a/"])
@pytest.mark.parametrize("num_listers", [1, 4, 16])
def test_a_listing_has_every_object_once_in_order(root: str, num_listers: int, keys: list[str]) -> None:
    prefix = f"{root.rstrip('/')}/".removeprefix("s3://bucket/")
    expected = [key.removeprefix(prefix) for key in keys if key.startswith(prefix)]
    place = S3Place(ObjectStoreConfig())
    assert [entry.path for entry in place.walk(root, num_listers=num_listers)] == expected
    for position, after in enumerate(expected):
        assert [entry.path for entry in place.walk(root, after, num_listers)] == expected[position + 1 :]

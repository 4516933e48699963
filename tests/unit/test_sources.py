"""Sources of every kind list the same images in a fixed order, continue after any image, and refuse some entries."""

from __future__ import annotations

import io
import json
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow.fs import LocalFileSystem

from mpa_ray.config import ObjectStoreConfig, SourceConfig
from mpa_ray.corpus.index import Selection, cut, index_source
from mpa_ray.corpus.locator import Locator, Span
from mpa_ray.corpus.ordered_prefetch import ordered_prefetch
from mpa_ray.corpus.places.gcs import ArrowPlace
from mpa_ray.corpus.places.places import Places
from mpa_ray.corpus.read import Reader
from mpa_ray.corpus.sources.left_out import LeftOut
from mpa_ray.corpus.sources.open import kind_of, open_source
from mpa_ray.corpus.sources.source import Listed
from mpa_ray.errors import ConfigError
from mpa_ray.imaging.decode import ImageProblem
from mpa_ray.records import ImageRef, Reason
from mpa_ray.run.run import Run
from tests.sources import (
    KINDS,
    Maker,
    as_csv,
    as_files,
    as_json_lines,
    as_parquet_bytes,
    as_parquet_uris,
    as_saved_dataset,
    as_tars,
    as_text,
)

PLACES = Places(ObjectStoreConfig())
READER = Reader(ObjectStoreConfig())
CONTENTS = [f"picture {i:02d}".encode() * (i + 1) for i in range(23)]


def listing(path: object, after: ImageRef | None = None, **settings: Any) -> list[Listed]:
    config = SourceConfig.model_validate({"path": str(path), **settings})
    return list(Selection(config, PLACES).listing(after))


def listed(path: object, after: ImageRef | None = None, **settings: Any) -> list[ImageRef]:
    return [item for item in listing(path, after, **settings) if isinstance(item, ImageRef)]


def left_out(path: object, **settings: Any) -> dict[str, int]:
    return dict(Counter(item.label for item in listing(path, **settings) if isinstance(item, LeftOut)))


@pytest.mark.parametrize(("make", "kind"), KINDS)
def test_every_kind_lists_the_same_images(make: Maker, kind: str, tmp_path: Path) -> None:
    path = make(CONTENTS, tmp_path)
    assert kind_of(SourceConfig(path=str(path)), PLACES) == kind
    refs = listed(path)
    assert READER.read([ref.uri for ref in refs]) == CONTENTS
    assert len({ref.image_id for ref in refs}) == len(CONTENTS)
    assert listed(path) == refs


@pytest.mark.parametrize(("make", "kind"), KINDS)
def test_listing_continues_after_any_image(make: Maker, kind: str, tmp_path: Path) -> None:
    path = make(CONTENTS, tmp_path)
    refs = listed(path, kind=kind)
    for position in (0, 4, 11, 12, len(refs) - 1):
        assert listed(path, refs[position], kind=kind) == refs[position + 1 :]


@pytest.mark.parametrize("make", [as_csv, as_json_lines, as_parquet_bytes, as_parquet_uris, as_tars, as_saved_dataset])
def test_metadata_columns_are_copied(make: Maker, tmp_path: Path) -> None:
    refs = listed(make(CONTENTS, tmp_path), metadata=["caption"])
    for number, ref in enumerate(refs):
        assert str(number) in str(json.loads(ref.metadata or "{}")["caption"])


def test_metadata_of_a_tar_are_members_and_keys_of_its_json(tmp_path: Path) -> None:
    ref = listed(as_tars(CONTENTS, tmp_path), metadata=["txt", "caption", "absent"])[13]
    assert json.loads(ref.metadata or "") == {"txt": "c13", "caption": "c13", "absent": None}
    assert (ref.image_id, ref.num_bytes) == ("01.tar/sample/013.png", len(CONTENTS[13]))


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.png", ["a.png"]),
        ("**/*.png", ["a.png", "x/b.png", "x/y/c.png"]),
        ("x/*", ["x/b.png"]),
        ("x/**", ["x/b.png", "x/y/c.png"]),
        ("?/[ab].png", ["x/b.png"]),
        ("?/[!a].png", ["x/b.png"]),
    ],
)
def test_globs(pattern: str, names: list[str], tmp_path: Path) -> None:
    for name in ("a.png", "x/b.png", "x/y/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"1")
    assert [ref.uri.removeprefix(f"{tmp_path}/") for ref in listed(tmp_path / pattern)] == names


def with_member(root: Path, name: str) -> Path:
    with tarfile.open(root / "odd.tar", "w") as tar:
        member = tarfile.TarInfo(name)
        member.size = 3
        tar.addfile(member, io.BytesIO(b"abc"))
    return root / "odd.tar"


def with_line(root: Path, entry: str) -> Path:
    (root / "list.txt").write_text(f"fine.png\n{entry}\n")
    return root / "list.txt"


def with_row(root: Path, entry: str) -> Path:
    pq.write_table(pa.table({"image": [entry]}), root / "uris.parquet")
    return root / "uris.parquet"


@pytest.mark.parametrize(
    ("make", "entry", "permission"),
    [
        (with_member, "../../etc/passwd.png", "parent_folders"),
        (with_member, "/etc/passwd.png", "parent_folders"),
        (with_member, "a/../../b.png", "parent_folders"),
        (with_line, "../secret.png", "parent_folders"),
        (with_line, "a/../../secret.png", "parent_folders"),
        (with_line, "http://169.254.169.254/latest/meta-data", "http"),
        (with_line, "https://example.org/a.png", "http"),
        (with_row, "../secret.png", "parent_folders"),
        (with_row, "https://example.org/a.png", "http"),
    ],
)
def test_an_entry_that_leads_elsewhere_needs_a_permission(
    make: Callable[[Path, str], Path], entry: str, permission: str, tmp_path: Path
) -> None:
    path = make(tmp_path, entry)
    with pytest.raises(ConfigError, match=rf"is not allowed\. Remove it, or add '{permission}' to source\.allow"):
        listed(path)
    assert listed(path, allow=[permission])[-1].image_id


@pytest.mark.parametrize("entry", ["ftp://host/a.png", "data://image/png;base64,AAAA"])
def test_unknown_kinds_of_uris_are_refused(entry: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"row 2: .* is a URI of an unsupported kind"):
        listed(with_line(tmp_path, entry), allow=["http", "local_files", "parent_folders"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.jsonl", b'{"image": "a.png"}\n{"image"', r"row 2 is not JSON"),
        ("list.jsonl", b"[1]\n", r"row 1 is not a JSON object"),
        (
            "list.jsonl",
            b'{"picture": "a.png"}\n',
            r"source\.image_column = 'image': is not a column of row 1.*'picture'",
        ),
        ("list.csv", b"picture\na.png\n", r"source\.image_column = 'image': is not a column of list\.csv.*'picture'"),
        ("list.csv", b"image\n\xff\xfe\n", r"cannot be read .* Give a list in UTF-8"),
        ("list.csv", b"image,b\n,2\n", r"row 1: no URI in 'image'"),
        ("broken.parquet", b"PAR1 not really", r"broken\.parquet cannot be read as Parquet"),
        ("cut.tar", b"\x01" * 700, r"cut\.tar cannot be read as a tar"),
        ("a.tar.gz", b"", r"is compressed"),
    ],
)
def test_a_damaged_container_is_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        listed(tmp_path / name)


@pytest.mark.parametrize("name", ["none.parquet", "none.tar", "none.csv", "none.png", "none", "none/*.png"])
def test_a_missing_source_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"source\.path = .*none.*(cannot be read|is not a folder)"):
        listed(tmp_path / name)


def test_a_source_on_the_web_needs_a_permission() -> None:
    with pytest.raises(ConfigError, match="would be fetched from the web, which is not allowed"):
        listed("https://example.org/list.txt")


def test_an_image_column_of_the_wrong_type_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [1, 2]}), tmp_path / "numbers.parquet")
    with pytest.raises(ConfigError, match=r"source\.image_column = 'image': has type int64 in numbers\.parquet"):
        listed(tmp_path / "numbers.parquet")


def test_a_dataset_dict_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text("{}")
    with pytest.raises(ConfigError, match="Give the folder of one split"):
        listed(tmp_path)


def test_values_of_the_id_column_must_not_repeat(tmp_path: Path) -> None:
    as_csv(CONTENTS, tmp_path)
    run = Run.open(str(tmp_path / "run"))
    path = tmp_path / "named.csv"
    path.write_text("image,key\nfiles/000.png,a\nfiles/001.png,b\nfiles/002.png,a\n")
    with pytest.raises(ConfigError, match=r"source\.id_column = 'key': 'a' occurs twice: .*000\.png, .*002\.png"):
        index_source(SourceConfig(path=str(path), id_column="key", shard_size=2), run, PLACES)
    assert [ref.image_id for ref in listed(tmp_path / "list.csv", id_column="image")][3] == "files/003.png"


def test_a_source_without_its_last_indexed_image_is_refused(tmp_path: Path) -> None:
    refs = listed(as_csv(CONTENTS, tmp_path))
    (tmp_path / "list.csv").write_text("image\nfiles/000.png\n")
    with pytest.raises(ConfigError, match=r"no longer contains list\.csv/9, the last image that was indexed"):
        listed(tmp_path / "list.csv", refs[8])


def test_size_limits_fractions_and_shards(tmp_path: Path) -> None:
    folder = as_files(CONTENTS, tmp_path)
    assert [ref.num_bytes for ref in listed(folder, min_bytes=20, max_bytes=60)] == [20, 30, 40, 50, 60]
    half = listed(folder, fraction=0.5)
    assert 4 < len(half) < 19
    assert half == listed(folder, fraction=0.5) != listed(folder, fraction=0.5, seed=1)
    config = SourceConfig(path=str(folder), shard_size=4, max_shard_bytes=300)
    shards = [shard.images for shard in cut(Selection(config, PLACES).listing(), config)]
    assert [ref for shard in shards for ref in shard] == listed(folder)
    assert all(len(shard) <= 4 for shard in shards)
    assert all(len(shard) == 1 or sum(ref.num_bytes or 0 for ref in shard) <= 300 for shard in shards)


def test_size_limits_apply_when_reading_if_listing_gives_no_sizes(tmp_path: Path) -> None:
    reader = Reader(ObjectStoreConfig(), min_bytes=25, max_bytes=200)
    for path in (as_parquet_bytes(CONTENTS, tmp_path), as_text(CONTENTS, tmp_path)):
        contents = reader.read([ref.uri for ref in listed(path)])
        reasons = [content.reason if isinstance(content, ImageProblem) else "read" for content in contents]
        assert reasons == [Reason.TOO_FEW_BYTES] * 2 + ["read"] * 18 + [Reason.TOO_MANY_BYTES] * 3


def test_a_missing_or_truncated_file_is_a_reason(tmp_path: Path) -> None:
    refs = listed(as_tars(CONTENTS, tmp_path))
    whole = (tmp_path / "tars/01.tar").read_bytes()
    (tmp_path / "tars/01.tar").write_bytes(whole[:4000])
    (tmp_path / "tars/00.tar").unlink()
    contents = READER.read([ref.uri for ref in refs] + [f"{tmp_path}/a\0b.png", "/nowhere.parquet#row=1&column=image"])
    assert all(isinstance(content, ImageProblem) and content.reason == Reason.UNREADABLE for content in contents[:12])
    assert contents[12] == CONTENTS[12]
    assert isinstance(contents[22], ImageProblem)
    assert "ends before the image does" in contents[22].detail
    assert all(isinstance(content, ImageProblem) for content in contents[-2:])


@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
    | st.sampled_from(["a#", "a##", "a#bytes=1-2", "a#text=1-2", "a#row=1&column=b", "x.tar#bytes=3-4#"]),
    st.none() | st.builds(Span, st.integers(0, 10**13), st.integers(0, 10**9)),
    st.none() | st.tuples(st.integers(0, 10**9), st.text(st.characters(exclude_categories=["Cs"]), max_size=5)),
)
def test_a_locator_is_parsed_back_from_its_text(uri: str, span: Span | None, cell: tuple[int, str] | None) -> None:
    locator = Locator(uri, span, *(cell or (None, None)))
    assert Locator.parse(str(locator)) == locator
    if span is not None:
        text = Locator(uri, span, is_text=True)
        assert Locator.parse(str(text)) == text


@pytest.mark.parametrize("name", ["photo.png", "photo.JPG"])
def test_a_single_image_is_a_source(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"1")
    config = SourceConfig(path=str(tmp_path / name))
    (ref,) = open_source(config, Places(ObjectStoreConfig())).images()
    assert isinstance(ref, ImageRef)
    assert (ref.image_id, ref.uri) == (name, str(tmp_path / name))


@pytest.mark.parametrize("name", ["photos.zip", "notes", "q.md"])
def test_another_file_is_refused_with_what_is_accepted(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"1")
    with pytest.raises(ConfigError, match=r"is a file that holds no images that can be read\. Give a folder, an image"):
        list(open_source(SourceConfig(path=str(tmp_path / name)), Places(ObjectStoreConfig())).images())


def test_a_folder_that_does_not_exist_is_refused_with_a_similar_one(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(ConfigError, match=r"is not a folder\. It does not exist\. Did you mean images\?"):
        list(open_source(SourceConfig(path=f"{tmp_path}/imags"), Places(ObjectStoreConfig())).images())


def test_pyarrow_file_systems_are_listed_and_read(tmp_path: Path) -> None:
    folder = as_files(CONTENTS, tmp_path)
    (folder / "deeper").mkdir()
    (folder / "deeper/x.png").write_bytes(b"deep")
    place = ArrowPlace(LocalFileSystem(), "any://")
    entries = list(place.walk(f"any://{folder}"))
    assert [e.path for e in entries] == [*(f"{n:03d}.png" for n in range(len(CONTENTS))), "deeper/x.png"]
    assert place.read(entries[3].uri) == CONTENTS[3]
    assert place.read(entries[3].uri, 5, 4) == CONTENTS[3][5:9]
    assert place.size(entries[3].uri) == len(CONTENTS[3])
    assert [e.path for e in place.walk(f"any://{folder}", "021.png")] == ["022.png", "deeper/x.png"]


def test_a_folder_of_pyarrow_that_cannot_be_listed_is_counted(tmp_path: Path) -> None:
    class Refusing(LocalFileSystem):
        def get_file_info(self, selector: Any) -> Any:
            if str(getattr(selector, "base_dir", "")).endswith("locked"):
                raise PermissionError(13, "Permission denied")
            return super().get_file_info(selector)

    for name in ("a.png", "locked/b.png", "z.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"1")
    entries = list(ArrowPlace(Refusing(), "any://").walk(f"any://{tmp_path}"))
    assert [entry.path for entry in entries if entry.problem is None] == ["a.png", "z.png"]
    assert [entry.problem for entry in entries if entry.path == "locked/"] == ["unreadable folders (PermissionError)"]


@pytest.mark.parametrize("num_ahead", [1, 3, 50])
def test_prefetched_items_come_in_order(num_ahead: int) -> None:
    makers = [lambda i=i: iter(range(i * 1000, i * 1000 + i * 37)) for i in range(20)]
    assert list(ordered_prefetch(makers, num_ahead)) == [item for make in makers for item in make()]


def test_an_error_comes_after_the_items_of_earlier_iterators() -> None:
    def failing() -> Any:
        yield 1
        raise ValueError("halfway")

    items = ordered_prefetch([lambda: iter([0]), failing, lambda: iter([2])], 3)
    assert next(items) == 0
    with pytest.raises(ValueError, match="halfway"):
        list(items)


def test_an_error_after_the_last_item_that_is_read_is_not_printed() -> None:
    """In earlier versions, the thread of an abandoned listing ended with a traceback."""
    begun, ended = threading.Event(), list[object]()

    def failing() -> Iterator[int]:
        yield from range(100_000)
        raise AssertionError("not reached")

    def late() -> Iterator[int]:
        begun.wait(10)
        raise OSError("the store is out")
        yield 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading, "excepthook", ended.append)
        items = ordered_prefetch([failing, late], 2)
        assert next(items) == 0
        items.close()  # type: ignore[attr-defined]
        begun.set()
        deadline = time.monotonic() + 5
        while any("_run" in thread.name for thread in threading.enumerate()) and time.monotonic() < deadline:
            time.sleep(0.05)
    assert not ended

"""Columns of every type with images are read, in Parquet files and saved datasets alike; others are refused by type."""

from __future__ import annotations

import base64
import json
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mpa_ray.config import BenchmarkConfig, ObjectStoreConfig, SourceConfig
from mpa_ray.corpus.index import Selection
from mpa_ray.corpus.places.places import Places
from mpa_ray.corpus.read import Content, Reader
from mpa_ray.corpus.sources.arrow_stream import record_batches
from mpa_ray.errors import ConfigError
from mpa_ray.evaluation.benchmarks import read_benchmark
from mpa_ray.imaging.decode import ImageProblem
from mpa_ray.records import Reason

PLACES = Places(ObjectStoreConfig())
READER = Reader(ObjectStoreConfig())
HF_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
PNG = b"\x89PNG\r\n\x1a\n" + bytes(60)
JPEG = b"\xff\xd8\xff\xe0" + bytes(80)

Write = Callable[[Path, pa.Table], Path]


def as_parquet(root: Path, table: pa.Table) -> Path:
    pq.write_table(table, root / "t.parquet", row_group_size=2)
    return root / "t.parquet"


def as_parquet_without_statistics(root: Path, table: pa.Table) -> Path:
    pq.write_table(table, root / "t.parquet", row_group_size=2, write_statistics=False)
    return root / "t.parquet"


def as_saved_dataset(root: Path, table: pa.Table) -> Path:
    with pa.OSFile(str(root / "data.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        for batch in table.to_batches(max_chunksize=2):
            stream.write_batch(batch)
    (root / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    return root


WRITERS = [as_parquet, as_parquet_without_statistics, as_saved_dataset]
every_writer = pytest.mark.parametrize("write", WRITERS)


def contents(path: Path, **settings: Any) -> list[Content]:
    config = SourceConfig.model_validate({"path": str(path), **settings})
    return READER.read([ref.uri for ref in Selection(config, PLACES).images()])


def beside(root: Path) -> Path:
    (root / "beside.png").write_bytes(b"beside")
    return root


IMAGES = [b"one", b"two", b"three"]
PATHS = ["beside.png"] * 3


@every_writer
@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array(IMAGES, pa.binary()), IMAGES),
        (pa.array(IMAGES, pa.large_binary()), IMAGES),
        (pa.array(IMAGES, pa.binary_view()), IMAGES),
        (pa.array([b"one", b"two", b"six"], pa.binary(3)), [b"one", b"two", b"six"]),
        (pa.array([*IMAGES[:2], IMAGES[0]]).dictionary_encode(), [b"one", b"two", b"one"]),
        (pa.array(PATHS, pa.string()), [b"beside"] * 3),
        (pa.array(PATHS, pa.large_string()), [b"beside"] * 3),
        (pa.array(PATHS, pa.string_view()), [b"beside"] * 3),
        (pa.array(PATHS).dictionary_encode(), [b"beside"] * 3),
        (pa.array([{"bytes": c, "path": "x.png"} for c in IMAGES], HF_IMAGE), IMAGES),
        (pa.array([{"path": "beside.png"}] * 3, pa.struct([("path", pa.string())])), [b"beside"] * 3),
        (pa.array([{"bytes": c} for c in IMAGES], pa.struct([("bytes", pa.binary())])), IMAGES),
        (
            pa.array(
                [{"bytes": c, "path": None} for c in IMAGES],
                pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string()), ("width", pa.int32())]),
            ),
            IMAGES,
        ),
        (
            pa.array(
                [{"bytes": None, "path": "beside.png"}] * 3, pa.struct([("bytes", pa.null()), ("path", pa.string())])
            ),
            [b"beside"] * 3,
        ),
    ],
    ids=lambda value: str(value.type)[:60] if isinstance(value, pa.Array) else "",
)
def test_columns_that_hold_or_name_images(write: Write, array: pa.Array, expected: list[bytes], tmp_path: Path) -> None:
    path = write(beside(tmp_path), pa.table({"image": array, "caption": pa.array(["a", "b", "a"]).dictionary_encode()}))
    assert contents(path, metadata=["caption"]) == expected
    assert contents(path) == expected


@every_writer
def test_rows_with_only_a_path_are_read(write: Write, tmp_path: Path) -> None:
    """In earlier versions, such rows failed as `unreadable` if another row of the file had bytes."""
    rows = [
        {"bytes": b"1", "path": "other.png"},
        {"bytes": None, "path": "beside.png"},
        {"bytes": b"3", "path": None},
        {"bytes": b"", "path": "beside.png"},
        None,
        {"bytes": None, "path": None},
        {"bytes": None, "path": ""},
        {"bytes": b"8", "path": None},
    ]
    read = contents(write(beside(tmp_path), pa.table({"image": pa.array(rows, HF_IMAGE)})))
    missing = ImageProblem(Reason.UNREADABLE, "no bytes in its row")
    assert read == [b"1", b"beside", b"3", b"", missing, missing, missing, b"8"]


@every_writer
def test_a_path_that_is_no_text_is_not_used(write: Write, tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.int64())])
    path = write(
        tmp_path, pa.table({"image": pa.array([{"bytes": b"1", "path": 5}, {"bytes": None, "path": 6}], kind)})
    )
    assert contents(path) == [b"1", ImageProblem(Reason.UNREADABLE, "no bytes in its row")]


def test_a_file_with_fewer_rows_than_when_it_was_listed(tmp_path: Path) -> None:
    path = as_parquet(tmp_path, pa.table({"image": pa.array(IMAGES)}))
    uris = [ref.uri for ref in Selection(SourceConfig(path=str(path)), PLACES).images()]
    as_parquet(tmp_path, pa.table({"image": pa.array(IMAGES[:1])}))
    read = READER.read(uris)
    assert read[0] == b"one"
    assert all(isinstance(content, ImageProblem) for content in read[1:])


@pytest.mark.parametrize("kind", ["no schema", "huge"])
def test_headers_that_ended_the_process_are_named(kind: str, tmp_path: Path) -> None:
    """Without the check, pyarrow would abort the process or request exabytes of memory."""
    path = as_saved_dataset(tmp_path, pa.table({"image": pa.array(IMAGES)}))
    whole = (tmp_path / "data.arrow").read_bytes()
    with (tmp_path / "data.arrow").open("rb") as file:
        first = next(record_batches(file)).span.first
    size = struct.unpack_from("<i", whole, first + 4)[0]
    header = bytearray(whole[first + 8 : first + 8 + size])
    if kind == "huge":
        body_bytes = struct.pack("<q", len(whole) - first - 8 - size)
        at = next(i for i in range(0, size - 8, 8) if 0 < struct.unpack_from("<q", header, i)[0] < len(body_bytes) * 64)
        header[at : at + 8] = struct.pack("<q", 2**60)
        damaged = whole[: first + 8] + bytes(header) + whole[first + 8 + size :]
    else:
        damaged = whole[first:]
    (tmp_path / "data.arrow").write_bytes(damaged)
    with pytest.raises(ConfigError, match="cannot be read as an Arrow stream"):
        contents(path)


@every_writer
def test_rows_with_only_a_path_need_the_permissions_of_lists(write: Write, tmp_path: Path) -> None:
    rows = [{"bytes": b"1", "path": None}, {"bytes": None, "path": "../secret.png"}]
    path = write(tmp_path, pa.table({"image": pa.array(rows, HF_IMAGE)}))
    with pytest.raises(ConfigError, match=r"row 1: '\.\./secret\.png' leads out of its folder, which is not allowed"):
        contents(path)


@every_writer
@pytest.mark.parametrize(
    ("array", "kind"),
    [
        (pa.array([1, 2]), "int64"),
        (pa.array([None, None]), "null"),
        (pa.array([True, False]), "bool"),
        (pa.array([[1, 2], [3]]), r"list<.*int64>"),
        (pa.array([[[1, 2]], [[3]]]), r"list<.*list<.*int64>>"),
        (pa.array([{"data": b"1", "height": 2}] * 2), r"struct<data: binary, height: int64>"),
        (pa.array([{"bytes": 1, "path": 2}] * 2), r"struct<bytes: int64, path: int64>"),
        (pa.array([{"bytes": [b"1"], "path": ["a"]}] * 2), r"struct<bytes: list<.*binary>, path: list<.*string>>"),
        (pa.array([1.5, 2.5]).dictionary_encode(), "double"),
    ],
    ids=lambda value: str(value.type)[:40] if isinstance(value, pa.Array) else "",
)
def test_other_columns_are_refused_by_name_and_type(write: Write, array: pa.Array, kind: str, tmp_path: Path) -> None:
    path = write(tmp_path, pa.table({"image": array}))
    with pytest.raises(ConfigError, match=rf"source\.image_column = 'image': has type {kind} in .*Choose a column wit"):
        contents(path)


@every_writer
@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.binary()),
        pa.large_list(pa.large_binary()),
        pa.list_(HF_IMAGE),
        pa.list_(pa.string()),
        pa.list_(pa.binary(), 2),
    ],
    ids=str,
)
def test_lists_of_images_offer_one_item(write: Write, kind: pa.DataType, tmp_path: Path) -> None:
    def cell(name: str) -> Any:
        if pa.types.is_struct(kind.value_type):
            return {"bytes": name.encode(), "path": None}
        return name if pa.types.is_string(kind.value_type) else name.encode()

    for name in ("a.png", "b.png", "c.png", "d.png"):
        (tmp_path / name).write_bytes(name.encode())
    rows = [[cell("a.png"), cell("b.png")], [cell("c.png"), cell("d.png")]]
    path = write(tmp_path, pa.table({"image": pa.array(rows, kind)}))
    with pytest.raises(ConfigError, match=r"has type .*list.*Take one image of each list: image_column: image\[0\]\."):
        contents(path)
    assert contents(path, image_column="image[0]") == [b"a.png", b"c.png"]
    assert contents(path, image_column="image[1]") == [b"b.png", b"d.png"]
    third = contents(path, image_column="image[2]")
    assert third == [ImageProblem(Reason.UNREADABLE, "no bytes in its row")] * 2


@every_writer
def test_a_column_whose_name_looks_like_an_item(write: Write, tmp_path: Path) -> None:
    path = write(tmp_path, pa.table({"image": pa.array([[b"list"]]), "image[0]": pa.array([b"column"])}))
    assert contents(path, image_column="image[0]") == [b"column"]
    with pytest.raises(ConfigError, match=r"source\.image_column = 'photo\[0\]': is not a column"):
        contents(path, image_column="photo[0]")


@every_writer
def test_base64_and_data_uris(write: Write, tmp_path: Path) -> None:
    plain = base64.b64encode(PNG).decode()
    texts = [
        plain,
        base64.urlsafe_b64encode(JPEG).decode().rstrip("="),
        base64.encodebytes(PNG).decode(),
        f"data:image/png;base64,{plain}",
        f"DATA:;BASE64,{plain}",
        "data:image/svg+xml,%3Csvg%3E",
        f"{plain}!",
        None,
    ]
    read = contents(write(tmp_path, pa.table({"image": pa.array(texts, pa.string())})))
    assert read[:6] == [PNG, JPEG, PNG, PNG, PNG, b"<svg>"]
    assert isinstance(read[6], ImageProblem)
    assert read[7] == ImageProblem(Reason.UNREADABLE, "no bytes in its row")


def test_embedded_images_are_not_read_to_list_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [base64.b64encode(PNG + os.urandom(200_000)).decode() for _ in range(60)]
    pq.write_table(pa.table({"image": pa.array(texts)}), tmp_path / "t.parquet", compression="none")
    sizes: list[int] = []
    local = type(PLACES.of(str(tmp_path)))
    read = local.read

    def counted(*arguments: Any) -> bytes:
        sizes.append(len(content := read(*arguments)))
        return content

    monkeypatch.setattr(local, "read", counted)
    assert len(list(Selection(SourceConfig(path=str(tmp_path / "t.parquet")), PLACES).images())) == 60
    assert sum(sizes) < (tmp_path / "t.parquet").stat().st_size / 3


def test_dictionaries_that_change_within_a_stream(tmp_path: Path) -> None:
    kind = pa.dictionary(pa.int32(), pa.binary())
    schema = pa.schema([("image", kind)])
    batches = [
        pa.record_batch([pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int32()), pa.array(values))], schema)
        for values in ([b"a", b"b"], [b"c", b"d"], [b"e", b"f"])
    ]
    path = as_saved_dataset(tmp_path, pa.Table.from_batches(batches))
    assert contents(path) == [b"a", b"b", b"c", b"d", b"e", b"f"]


@pytest.mark.parametrize(
    # pyarrow cannot read such a dictionary from Parquet.
    ("write", "form"),
    [*((write, form) for write in WRITERS for form in ("string", "struct")), (as_saved_dataset, "dictionary")],
)
def test_text_that_is_not_utf8_beside_images(write: Write, form: str, tmp_path: Path) -> None:
    """In earlier versions, a check of the offsets refused the whole batch because of one caption."""
    offsets = pa.array([0, 2, 4, 6], pa.int32()).buffers()[1]
    text = pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"\xe9aokok")])
    forms = {
        "string": text,
        "dictionary": pa.DictionaryArray.from_arrays(pa.array([0, 1, 2]), text),
        "struct": pa.StructArray.from_arrays([text], ["inner"]),
    }
    path = write(tmp_path, pa.table({"image": pa.array(IMAGES), "caption": forms[form]}))
    assert contents(path, metadata=["caption"]) == IMAGES


@pytest.mark.parametrize("position", range(0, 500, 8))
@pytest.mark.parametrize("damage", ["cut", "ended"])
def test_a_damaged_stream_is_named(position: int, damage: str, tmp_path: Path) -> None:
    """In earlier versions, a file that was truncated between two batches silently yielded fewer images."""
    path = as_saved_dataset(tmp_path, pa.table({"image": pa.array(IMAGES)}))
    whole = (tmp_path / "data.arrow").read_bytes()
    end = b"\xff\xff\xff\xff\0\0\0\0" + whole[position + 8 :]
    (tmp_path / "data.arrow").write_bytes(whole[:position] + (end if damage == "ended" else b""))
    with suppress(ConfigError):
        num_read = len(contents(path))
        # A wrong byte in a header may state another number of rows.
        assert damage == "ended" or num_read == 3


@pytest.mark.parametrize("content", [b"", b"\0" * 8, b"PAR1", b"\xff" * 40], ids=["empty", "zeros", "Parquet", "ones"])
def test_a_file_that_is_no_stream_is_named(content: bytes, tmp_path: Path) -> None:
    path = as_saved_dataset(tmp_path, pa.table({"image": pa.array(IMAGES)}))
    (tmp_path / "data.arrow").write_bytes(content)
    with pytest.raises(ConfigError, match=r"data\.arrow cannot be read as an Arrow stream"):
        contents(path)


def test_the_headers_count_nulls(tmp_path: Path) -> None:
    rows = [{"bytes": b"1", "path": None}, {"bytes": None, "path": "a"}, None]
    as_saved_dataset(tmp_path, pa.table({"n": [1, None, 3], "image": pa.array(rows, HF_IMAGE)}))
    with (tmp_path / "data.arrow").open("rb") as file:
        assert [batch.num_nulls for batch in record_batches(file)] == [[1, 0, 1, 1], [0, 1, 0, 0]]


@pytest.mark.parametrize(
    "array",
    [
        pa.array([JPEG, PNG], pa.binary_view()),
        pa.array([JPEG, PNG], pa.large_binary()),
        pa.array([JPEG, PNG]).dictionary_encode(),
        pa.array([{"bytes": JPEG, "path": None}, {"bytes": PNG, "path": "x"}], HF_IMAGE),
        pa.array([base64.b64encode(content).decode() for content in (JPEG, PNG)]),
        pa.array([{"bytes": None, "path": "j"}, {"bytes": PNG, "path": "x"}], HF_IMAGE),
    ],
    ids=["binary view", "large binary", "dictionary", "struct", "base64", "mixed struct"],
)
def test_questions_with_images_in_their_rows(array: pa.Array, tmp_path: Path) -> None:
    (tmp_path / "j").write_bytes(JPEG)
    table = pa.table({"question_id": ["1", "2"], "image": array, "question": ["?", "?"], "answers": [["a"], ["b"]]})
    questions = list(read_benchmark(BenchmarkConfig(path=str(as_parquet(tmp_path, table))), PLACES))
    assert READER.read([question.uri for question in questions]) == [JPEG, PNG]


NESTED = pa.struct(
    [("more", pa.struct([("bytes", pa.int8()), ("path", pa.string())])), ("path", pa.string()), ("bytes", pa.binary())]
)


@every_writer
@pytest.mark.parametrize("kind", [HF_IMAGE, NESTED], ids=["plain", "nested"])
@pytest.mark.parametrize("is_first", [True, False])
def test_other_fields_named_like_those_of_the_image_are_not_used(
    write: Write, kind: pa.StructType, is_first: bool, tmp_path: Path
) -> None:
    """In earlier versions, a column `image.path` made a whole Parquet file count as damaged, and a nested `bytes` was
    mistaken for the outer one."""
    rows = [{"bytes": c, "path": "x.png"} for c in IMAGES] + [{"bytes": None, "path": "beside.png"}] * 3
    others = {"image.path": pa.nulls(6, pa.string()), "image.bytes": pa.array(range(6))}
    image = {"image": pa.array(rows, kind), "maps": pa.array([[("bytes", "x")]] * 6, pa.map_(pa.string(), pa.string()))}
    path = write(beside(tmp_path), pa.table({**others, **image} if is_first else {**image, **others}))
    assert contents(path, metadata=["image.bytes"]) == [*IMAGES, *[b"beside"] * 3]


@every_writer
def test_a_name_of_two_columns_is_refused(write: Write, tmp_path: Path) -> None:
    array = pa.array(IMAGES)
    schema = pa.schema([("image", pa.binary()), ("image", pa.binary()), ("x", pa.binary()), ("x", pa.binary())])
    path = write(tmp_path, pa.Table.from_arrays([array, array, array, array], schema=schema))
    with pytest.raises(ConfigError, match=r"source.image_column = 'image': is the name of several columns of "):
        contents(path)


def test_a_header_with_a_name_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("image,caption,note,note,caption\na.png,1,2,3,4\n")
    assert len(contents(tmp_path / "list.csv", metadata=["image"])) == 1
    with pytest.raises(ConfigError, match=r"source.metadata = 'caption': is the name of several columns of list.csv"):
        contents(tmp_path / "list.csv", metadata=["caption"])


def test_questions_with_a_name_of_two_columns_are_refused(tmp_path: Path) -> None:
    columns = {"question_id": ["1"], "question": ["what?"], "answers": [["x"]], "image": [b"1"]}
    table = pa.table(columns)
    pq.write_table(table.append_column("question", pa.array(["why?"])), tmp_path / "q.parquet")
    with pytest.raises(ConfigError, match="has several columns 'question'"):
        list(read_benchmark(BenchmarkConfig(path=str(tmp_path / "q.parquet")), PLACES))

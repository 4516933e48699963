"""Lists of images in text, CSV and JSON: whatever their extensions, line endings and layout, and with images inside."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpa_ray.api.phases import run_phase
from mpa_ray.config import ObjectStoreConfig, RunConfig, SourceConfig
from mpa_ray.corpus.index import Selection, check_first_files, check_source
from mpa_ray.corpus.named_files import check_named_files
from mpa_ray.corpus.places.places import Places
from mpa_ray.corpus.read import Content, Reader
from mpa_ray.corpus.sources.left_out import LeftOut
from mpa_ray.corpus.sources.list_records import BadRecord, json_records
from mpa_ray.corpus.sources.open import kind_of
from mpa_ray.corpus.sources.uri_list import UriList
from mpa_ray.errors import ConfigError
from mpa_ray.imaging.decode import ImageProblem
from mpa_ray.records import ImageRef, Reason
from tests.conftest import scripted_tree

PLACES = Places(ObjectStoreConfig())
READER = Reader(ObjectStoreConfig())
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(250))
JPEG = b"\xff\xd8\xff\xe0" + bytes(range(251)) * 800
GIF = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")
TEXTS = {content: base64.b64encode(content).decode() for content in (PNG, JPEG, GIF)}


def listing(path: Path, **settings: Any) -> list[ImageRef | LeftOut]:
    return list(Selection(SourceConfig.model_validate({"path": str(path), **settings}), PLACES).listing())


def refs(path: Path, **settings: Any) -> list[ImageRef]:
    return [item for item in listing(path, **settings) if isinstance(item, ImageRef)]


def contents(path: Path, **settings: Any) -> list[Content]:
    return READER.read([ref.uri for ref in refs(path, **settings)])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("0.png", "1.png", "2.png", "coco/3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


NAMES = [b"0.png", b"1.png"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("LIST.CSV", "image,caption\r\n0.png,a\r\n1.png,b\r\n"),
        ("List.Tsv", "image\tcaption\n0.png\ta\n1.png\tb\n"),
        ("LIST.TXT", "0.png\r\n\r\n1.png"),
        ("LIST.JSONL", '{"image": "0.png"}\r\n{"image": "1.png"}\r\n'),
        ("list.NDJSON", '{"image": "0.png"}\n\n{"image": "1.png"}'),
        ("LIST.JSON", '[{"image": "0.png"}, {"image": "1.png"}]'),
        ("list.json", '\n [\n  {"image":\n "0.png"}\n,\n{"image": "1.png"}]\n\n'),
        ("list.json", '{"image": "0.png"}\n{"image": "1.png"}\n'),
        ("list.jsonl", '[{"image": "0.png"},\n{"image": "1.png"}]'),
        ("mac.csv", "image,caption\r0.png,a\r1.png,b\r"),
        ("bom.csv", "\ufeffimage,caption\n0.png,a\n1.png,b\n"),
        ("bom.jsonl", '\ufeff{"image": "0.png"}\n{"image": "1.png"}\n'),
        ("bom.json", '\ufeff[{"image": "0.png"},{"image": "1.png"}]'),
        ("bom.txt", "\ufeff0.png\n1.png"),
        ("lines.csv", 'image,caption\n0.png,"two\nlines"\n1.png,"a ""quote"""\n'),
        ("braces.json", r'[{"image": "0.png", "c": "}] \" \\"}, {"c": {"d": [{}]}, "image": "1.png"}]'),
    ],
)
def test_lists_of_every_layout_are_read(root: Path, name: str, content: str) -> None:
    """In earlier versions, a list with an extension in upper case was read as text, one URI on each line."""
    (root / name).write_bytes(content.encode())
    assert kind_of(SourceConfig(path=str(root / name)), PLACES) == "list"
    assert contents(root / name) == NAMES


def test_captions_are_read_from_a_list_whose_name_is_in_capitals(root: Path) -> None:
    (root / "LIST.CSV").write_bytes(b"image,caption\r\n0.png,a\r\n1.png,b\r\n")
    assert [ref.metadata for ref in refs(root / "LIST.CSV", metadata=["caption"])] == [
        '{"caption": "a"}',
        '{"caption": "b"}',
    ]


def test_a_list_of_llava_is_read(root: Path) -> None:
    """Rows without an image, of which LLaVA's own list has 40,688, are examples of text alone."""
    rows: list[dict[str, Any]] = [
        {"id": "a", "image": "0.png", "conversations": [{"from": "human", "value": "<image>\n{?}"}]},
        {"id": "b", "conversations": [{"from": "human", "value": "no image"}]},
        {"id": "c", "image": "coco/3.png", "conversations": []},
        {"id": "d", "image": None, "conversations": []},
        {"id": "e", "image": ["1.png", "2.png"], "conversations": []},
    ]
    (root / "llava.json").write_text(json.dumps(rows, indent=2))
    assert contents(root / "llava.json") == [b"0.png", b"coco/3.png", b"1.png", b"2.png"]
    assert [ref.image_id for ref in refs(root / "llava.json", id_column="id")] == ["a", "c", "e", "e.1"]
    assert [item for item in listing(root / "llava.json") if isinstance(item, LeftOut)] == [
        LeftOut("rows without an image")
    ] * 2


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_a_list_of_ms_swift_is_read(root: Path, ending: str) -> None:
    rows: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": "<image>?"}], "images": ["0.png"]},
        {"messages": [], "images": [str(root / "1.png"), {"path": "2.png"}]},
        {"messages": [], "images": []},
        {"messages": []},
        {"query": "?", "response": "!", "images": [{"bytes": TEXTS[PNG], "path": "x.png"}]},
    ]
    content = json.dumps(rows) if ending == "json" else "\n".join(map(json.dumps, rows))
    path = root / f"swift.{ending}"
    path.write_text(content)
    assert contents(path) == [b"0.png", b"1.png", b"2.png", PNG]
    assert sum(isinstance(item, LeftOut) for item in listing(path)) == 2
    assert contents(path, image_column="images[0]") == [b"0.png", b"1.png", PNG]
    second = listing(path, image_column="images[1]")
    assert [item.label if isinstance(item, LeftOut) else item.image_id for item in second] == [
        "rows without images[1]",
        f"{path.name}/2",
        "rows without an image",
        "rows without an image",
        "rows without images[1]",
    ]


def test_listing_continues_within_a_row(root: Path) -> None:
    (root / "l.json").write_text(json.dumps([{"images": ["0.png", "1.png"], "messages": []}, {"image": "2.png"}]))
    images = refs(root / "l.json")
    selection = Selection(SourceConfig(path=str(root / "l.json")), PLACES)
    for position, ref in enumerate(images):
        assert list(selection.listing(ref)) == images[position + 1 :]


def with_images(name: str, texts: list[str]) -> str:
    if name.endswith((".csv", ".tsv")):
        file = io.StringIO()
        writer = csv.writer(file, "excel-tab" if name.endswith(".tsv") else "excel")
        writer.writerow(["index", "image", "question"])
        writer.writerows([n, text, f"é {n}, «?»"] for n, text in enumerate(texts))
        return file.getvalue()
    rows = [{"q": f"é {n}", "image": text} for n, text in enumerate(texts)]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    return {"txt": "\n".join(texts), "json": f"[{', '.join(lines)}]", "jsonl": "\n".join(lines)}[name.split(".")[1]]


@pytest.mark.parametrize("name", ["l.tsv", "l.csv", "l.json", "l.jsonl", "l.txt", "L.TSV"])
def test_images_inside_lists_are_decoded(root: Path, name: str) -> None:
    texts = [
        TEXTS[PNG],
        TEXTS[JPEG],
        TEXTS[GIF],
        f"data:image/png;base64,{TEXTS[PNG]}",
        base64.urlsafe_b64encode(JPEG).decode().rstrip("="),
        "0.png",
        f"{TEXTS[PNG]}%",
    ]
    (root / name).write_bytes(with_images(name.lower(), texts).encode())
    images = refs(root / name)
    read = READER.read([ref.uri for ref in images])
    assert read[:6] == [PNG, JPEG, GIF, PNG, JPEG, b"0.png"]
    assert isinstance(read[6], ImageProblem)
    assert [ref.num_bytes for ref in images[:6]] == [len(PNG), len(JPEG), len(GIF), len(PNG), len(JPEG), None]
    assert all(len(ref.uri) < 300 for ref in images[:6])
    kept = refs(root / name, min_bytes=1000)
    assert [ref.num_bytes for ref in kept][:2] == [len(JPEG)] * 2


def test_base64_may_have_escapes_and_line_ends(root: Path) -> None:
    wrapped = base64.encodebytes(PNG).decode()
    rows = [json.dumps({"image": wrapped}), json.dumps({"image": TEXTS[JPEG]}).replace("/", r"\/")]
    (root / "l.jsonl").write_text("\n".join(rows))
    assert contents(root / "l.jsonl") == [PNG, JPEG]
    (root / "l.csv").write_text(f'image\n"{wrapped}"\n')
    assert contents(root / "l.csv") == [PNG]


@pytest.mark.parametrize("value", [1, True, 1.5, [1], {"width": 3}, "", [], {}, None, [None], [""]])
def test_what_is_no_uri_is_refused(root: Path, value: Any) -> None:
    (root / "l.jsonl").write_text(json.dumps({"image": "0.png"}) + "\n" + json.dumps({"image": value}))
    with pytest.raises(
        ConfigError,
        match=r"row 2: the column 'image' holds (no URI|a value of type (int|bool|float|dict), not a URI)\. Write",
    ):
        listing(root / "l.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.json", '[{"image": "0.png"}', "the list has no end after row 1"),
        ("l.json", '[{"image": "0.png"}, {"image": ', r"row 2 is not JSON \(it has no end\)"),
        ("l.json", '[{"image": "0.png"} {"image": "1.png"}]', "row 1 is followed by"),
        ("l.json", '[{"image": "0.png"}, "1.png"]', "row 2 is not a JSON object"),
        ("l.json", '["0.png"]', "row 1 is not a JSON object"),
        ("l.json", '[{"image": 0x}]', "row 1 is not JSON"),
        ("l.json", '[{"image": "0.png",}]', "row 1 is not JSON"),
        ("l.json", '{"images": [\n{"file_name": "0.png"}]}', r"row 1 is not JSON.*or a list of objects"),
        ("l.json", "[" + '{"a":' * 5000 + "1" + "}" * 5000 + "]", "row 1 is not JSON"),
        ("l.json", b'[{"image": "\xff.png"}]', "the list must be UTF-8"),
        ("l.jsonl", b'\xff\xfe{\0"\0', "the list must be UTF-8"),
        ("l.csv", b"image\n\xe9.png\n", "the list must be UTF-8"),
        ("l.txt", b"\xe9.png\n", "the list must be UTF-8"),
    ],
)
def test_a_damaged_list_is_named(root: Path, name: str, content: str | bytes, message: str) -> None:
    (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=message):
        listing(root / name)


def test_an_empty_list_holds_no_images(root: Path) -> None:
    (root / "l.json").write_text("[]")
    assert listing(root / "l.json") == []


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(st.dictionaries(st.text(), VALUES, max_size=4), max_size=6), st.booleans(), st.sampled_from([1, 3, 50]))
def test_a_list_is_cut_into_its_objects(rows: list[dict[str, Any]], ascii_only: bool, chunk_bytes: int) -> None:
    content = json.dumps(rows, ensure_ascii=ascii_only).encode(errors="replace")
    expected = json.loads(content)
    records = list(json_records(io.BytesIO(content), chunk_bytes))
    assert [record.values for record in records] == expected
    assert all(content[r.first : r.first + len(r.raw)] == r.raw for r in records)


@given(st.binary(max_size=60))
def test_no_list_raises_another_error(content: bytes) -> None:
    for start in (b"", b"[", b'[{"a":'):
        try:
            list(json_records(io.BytesIO(start + content)))
        except (BadRecord, UnicodeDecodeError):
            continue


def test_the_tool_img2dataset_is_recognised(tmp_path: Path) -> None:
    """In earlier versions, its tables of URLs beside the tars were read instead of the tars."""
    for name in ("00000.parquet", "00000.tar", "00000_stats.json", "00001.parquet", "00001.tar"):
        (tmp_path / name).write_bytes(b"")
    assert kind_of(SourceConfig(path=str(tmp_path)), PLACES) == "webdataset"
    (tmp_path / "00000").mkdir()
    (tmp_path / "00000/000000000.jpg").write_bytes(b"")
    for tar in tmp_path.glob("*.tar"):
        tar.unlink()
    assert kind_of(SourceConfig(path=str(tmp_path)), PLACES) == "images"


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("", "image_column", "photo"),
        ("", "id_column", "id"),
        ("", "metadata", ["caption"]),
        ("l.csv", "extensions", ["jpg"]),
        ("l.csv", "exclude", ["x"]),
        ("l.csv", "include_hidden", True),
        ("t.parquet", "extensions", ["jpg"]),
        ("l.tar", "image_column", "images[0]"),
        ("t.tar", "image_column", "jpg"),
        ("t.tar", "id_column", "id"),
    ],
)
def test_a_setting_without_effect_is_refused(root: Path, name: str, setting: str, value: Any) -> None:
    with pytest.raises(
        ConfigError, match=rf"source\.{setting} = .*has no effect on a source of kind \w+; it applies to"
    ):
        listing(root / name, **{setting: value})


@pytest.mark.parametrize(("setting", "value"), [("image_column", "photo"), ("id_column", "id"), ("metadata", ["c"])])
def test_a_text_list_has_no_columns(root: Path, setting: str, value: Any) -> None:
    (root / "l.txt").write_text("0.png\n")
    with pytest.raises(ConfigError, match=rf"source\.{setting} = .*: is not a column of l\.txt"):
        listing(root / "l.txt", **{setting: value})


def test_reasons_name_what_a_cell_holds(root: Path) -> None:
    (root / "l.txt").write_text(f"data:image/png;base64,{TEXTS[PNG]}%\n")
    (problem,) = contents(root / "l.txt")
    assert isinstance(problem, ImageProblem)
    assert problem.reason == Reason.UNREADABLE
    assert "holds no image: not base64" in problem.detail


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("list.csv", "image\n", "has 0 rows."),
        ("list.tsv", "image\tid\n", "has 0 rows."),
        ("list.jsonl", "", "has 0 rows."),
        ("list.json", "[]", "has 0 rows."),
        ("list.txt", "\n\n", "has 0 rows."),
        ("list.txt", "# my images\n", "has no row with an image (left out 1 "),
        ("list.jsonl", '{"messages": []}\n', "has no row with an image (left out 1 "),
        ("list.csv", "", "is empty: it does not even have a header."),
        (
            "list.csv",
            "image;label\na.png;cat\n",
            "has only one column, 'image;label'. Separate its columns with commas",
        ),
        (
            "list.tsv",
            "image,label\na.png,cat\n",
            "has only one column, 'image,label'. Separate its columns with commas",
        ),
    ],
)
def test_a_list_without_rows_is_named_so(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    path = str(tmp_path / name)
    with pytest.raises(ConfigError, match=re.escape(f"source.path = {path!r}: {message}")) as caught:
        check_source(SourceConfig(path=path), Places(ObjectStoreConfig()))
    assert "endings" not in str(caught.value)


@pytest.mark.parametrize("in_folder", [False, True])
def test_parquet_files_without_rows_are_named_so(tmp_path: Path, in_folder: bool) -> None:
    pq.write_table(pa.table({"image": pa.array([], pa.string())}), tmp_path / "a.parquet")
    path = str(tmp_path if in_folder else tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match=re.escape(f"source.path = {path!r}: has 0 rows.")):
        check_source(SourceConfig(path=path), Places(ObjectStoreConfig()))


def test_comments_of_a_text_file_are_left_out(tmp_path: Path) -> None:
    for name in ("a.png", "#1.png"):
        (tmp_path / name).write_bytes(b"1")
    (tmp_path / "list.txt").write_text("# two images\na.png\n  # more\n./#1.png\n")
    listed = list(UriList(SourceConfig(path=str(tmp_path / "list.txt")), Places(ObjectStoreConfig())).images())
    refs = [item for item in listed if isinstance(item, ImageRef)]
    assert [ref.image_id for ref in refs] == ["list.txt/2", "list.txt/4"]
    assert refs[1].uri == f"{tmp_path}/./#1.png"
    assert [item.label for item in listed if isinstance(item, LeftOut)] == 2 * ["comments (lines that begin with #)"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "notes.txt",
            "# Shopping\n\nmilk and eggs\nbread\n",
            "line 3 names {folder}/milk and eggs, which does not exist (all of the first 2 files are missing). "
            "Give a list with the path or URI of an image on each line. A path is relative to the list's folder.",
        ),
        ("long.txt", "word " * 500, "line 1 names {folder}/word word "),
        ("nul.txt", "a\0b\n", "line 1 names "),
        (
            "table.csv",
            "image,label\ncat.png,cat\n",
            "table.csv/1 names {folder}/cat.png, which does not exist. "
            "The column 'image' needs paths or URIs of images. A path is relative to its file's folder.",
        ),
        ("list.jsonl", '{"image": "cat.png"}\n', "list.jsonl/1 names {folder}/cat.png, which does not exist."),
    ],
)
def test_a_file_that_is_no_list_of_images_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    expected = f"source.path = {str(path)!r}: {message.format(folder=tmp_path)}"
    with pytest.raises(ConfigError, match=re.escape(expected)) as caught:
        check_first_files(SourceConfig(path=str(path)), Places(ObjectStoreConfig()))
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("as_folder", [False, True])
def test_a_table_whose_files_are_missing_is_refused(tmp_path: Path, as_folder: bool) -> None:
    pq.write_table(pa.table({"image": ["cat.png", "dog.png"]}), tmp_path / "a.parquet")
    source = SourceConfig(path=str(tmp_path if as_folder else tmp_path / "a.parquet"))
    with pytest.raises(ConfigError, match=r"a\.parquet/0 names .*/cat\.png, which does not exist \(all of the first 2"):
        check_first_files(source, Places(ObjectStoreConfig()))


@pytest.mark.parametrize("number", [1, 20, 21])
def test_a_list_with_some_missing_files_is_accepted(tmp_path: Path, number: int) -> None:
    (tmp_path / "here.png").write_bytes(b"an image")
    lines = [f"missing{i}.png" for i in range(1, 31)]
    lines[number - 1] = "here.png"
    (tmp_path / "list.txt").write_text("\n".join(lines))
    source = SourceConfig(path=str(tmp_path / "list.txt"))
    if number <= 20:
        check_first_files(source, Places(ObjectStoreConfig()))
        return
    with pytest.raises(ConfigError, match="all of the first 20 files are missing"):
        check_first_files(source, Places(ObjectStoreConfig()))


@pytest.mark.parametrize("entry", ["s3://bucket/cat.png", "gs://bucket/cat.png"])
def test_remote_entries_of_a_local_list_are_not_accessed(tmp_path: Path, entry: str) -> None:
    (tmp_path / "list.txt").write_text(f"{entry}\n")
    check_first_files(SourceConfig(path=str(tmp_path / "list.txt")), Places(ObjectStoreConfig()))


class _EmptyBucket(Places):
    """Places that hold no file."""

    def of(self, uri: str) -> Any:
        class Nowhere:
            def size(self, _: str) -> int:
                raise FileNotFoundError(2, "No such file or directory", uri)

        return Nowhere()


def test_files_beside_a_remote_list_are_looked_up() -> None:
    source, places = SourceConfig(path="s3://bucket/set/notes.txt"), _EmptyBucket(ObjectStoreConfig())
    beside = [ImageRef("notes.txt/1", "s3://bucket/set/Dear diary", None)]
    with pytest.raises(ConfigError, match=r"line 1 names s3://bucket/set/Dear diary, which does not exist\. "):
        check_named_files(source, "list", beside, places)
    check_named_files(source, "list", [ImageRef("notes.txt/1", "s3://other/a.png", None)], places)
    check_named_files(source, "list", [ImageRef("notes.txt/1", "https://host/a.png", None)], places)


def test_a_run_whose_images_are_gone_after_indexing_can_be_reported(images: Path, tmp_path: Path) -> None:
    shutil.copy(images / "000.png", tmp_path / "a.png")
    (tmp_path / "list.txt").write_text("a.png\n")
    config = RunConfig.model_validate(scripted_tree(tmp_path / "list.txt", tmp_path / "run"))
    run_phase(config, "index")
    (tmp_path / "a.png").unlink()
    run_phase(config, "report")
    elsewhere = config.model_copy(update={"run_dir": str(tmp_path / "other")})
    with pytest.raises(ConfigError, match=r"line 1 names .*/a\.png, which does not exist\."):
        run_phase(elsewhere, "index")
    assert not (tmp_path / "other").exists()

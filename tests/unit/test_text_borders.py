"""Text that UTF-8 cannot encode, and deep JSON, at every border: sources, questions, replies and rows."""

from __future__ import annotations

import asyncio
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from mpa_ray.config import BenchmarkConfig, ObjectStoreConfig, SamplingConfig, SourceConfig
from mpa_ray.corpus.index import Selection
from mpa_ray.corpus.places.places import Places
from mpa_ray.corpus.read import Reader
from mpa_ray.corpus.sources.source import split_glob
from mpa_ray.engine.instrumented import Instrumented
from mpa_ray.engine.protocol import EncodedImage, Reply, Request
from mpa_ray.errors import ConfigError
from mpa_ray.evaluation.benchmarks.benchmark import read_benchmark
from mpa_ray.imaging.decode import ImageProblem
from mpa_ray.observability.usage import Load, Usage
from mpa_ray.records import Annotation, ImageRef, ParitySample, State
from mpa_ray.run.parity_export import export_parity
from mpa_ray.run.parquet_rows import from_parquet, to_parquet
from mpa_ray.run.run import Run
from mpa_ray.tasks.library import TASKS
from mpa_ray.textual import is_storable

PLACES = Places(ObjectStoreConfig())


def listed(path: Path, **settings: Any) -> list[ImageRef]:
    refs = list(Selection(SourceConfig.model_validate({"path": str(path), **settings}), PLACES).images())
    # Every reference can be stored, and is the same when it is read again.
    assert from_parquet(to_parquet(refs, ImageRef), ImageRef) == refs
    assert all(is_storable(str(field)) for ref in refs for field in vars(ref).values())
    return refs


def contents(refs: list[ImageRef]) -> list[bytes | ImageProblem]:
    return Reader(ObjectStoreConfig()).read([ref.uri for ref in refs])


def tar_of(path: Path, members: dict[str, bytes], encoding: str = "latin-1") -> Path:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding=encoding) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_members_of_a_tar_with_other_encodings_have_readable_and_different_ids(tmp_path: Path) -> None:
    members = {"café.png": b"1", "café.txt": "Größe".encode("latin-1"), r"caf\xe9.png": b"2", "ü/a.png": b"3"}
    refs = listed(tar_of(tmp_path / "x.tar", members), metadata=["txt"])
    assert [ref.image_id for ref in refs] == [r"x.tar/caf\xe9.png", r"x.tar/caf\\xe9.png", r"x.tar/\xfc/a.png"]
    assert contents(refs) == [b"1", b"2", b"3"]
    assert json.loads(refs[0].metadata or "") == {"txt": r"Gr\xf6\xdfe"}


@pytest.mark.parametrize("name", [b"caf\xe9.tar", b"caf\xe9.parquet"])
def test_files_of_images_may_have_names_in_other_encodings(name: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    plain = tmp_path / "plain"
    if name.endswith(b".tar"):
        tar_of(plain, {"a.png": b"1"})
    else:
        pq.write_table(pa.table({"image": [b"1"]}), plain)
    os.rename(plain, os.fsencode(folder) + b"/" + name)
    refs = listed(folder)
    assert [ref.image_id.startswith(r"caf\xe9.") for ref in refs] == [True]
    assert contents(refs) == [b"1"]


def test_half_a_character_in_a_list_stays_readable(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(b"0")
    with open(os.fsencode(tmp_path) + b"/caf\xe9.png", "wb") as file:
        file.write(b"1")
    rows = [
        {"image": "0.png", "caption": "\ud83d smile", "id": "a\ud83d", "k\ude00": 1},
        {"image": "caf\udce9.png", "caption": ["\udce9"], "id": r"a\ud83d"},
        {"image": "\ud83d.png", "caption": None, "id": "a\ude00"},
        {"image": "s3://bucket/\ud83d.png", "caption": {"\ud83d": "\ud83d"}, "id": "b"},
    ]
    path = tmp_path / "list.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    refs = listed(path, metadata=["caption"], id_column="id")
    assert [ref.image_id for ref in refs] == [r"a\ud83d", r"a\\ud83d", r"a\ude00", "b"]
    captions = [json.loads(ref.metadata or "")["caption"] for ref in refs]
    assert captions == [r"\ud83d smile", [r"\xe9"], None, {r"\ud83d": r"\ud83d"}]
    read = contents(refs[:3])
    assert read[:2] == [b"0", b"1"]
    assert isinstance(read[2], ImageProblem)

    run = Run.open(str(tmp_path / "run"))
    samples = [ParitySample(ref.image_id, ref.image_id, ref.uri, "?", "a", "b", ref.metadata) for ref in refs]
    assert export_parity(run, "parity/x", TASKS["text_vqa"], samples) == 4
    assert [line["metadata"]["caption"] for line in json.loads(run.storage.read("parity/x/llava.json"))] == captions


def test_a_caption_of_parquet_that_is_not_utf8_stays_readable(tmp_path: Path) -> None:
    def text(*values: bytes) -> pa.Array:
        return pa.Array.from_buffers(pa.string(), len(values), pa.array(values, pa.binary()).buffers())

    table = pa.table(
        {
            "image": [b"0", b"1"],
            "caption": text(b"caf\xe9", b"b"),
            "nested": pa.StructArray.from_arrays([text(b"\xff", b"x"), pa.array([1, 2])], ["a", "b"]),
            "list": pa.ListArray.from_arrays([0, 1, 2], text(b"\xfe", b"y")),
        }
    )
    pq.write_table(table, tmp_path / "x.parquet")
    refs = listed(tmp_path / "x.parquet", metadata=["caption", "nested", "list"], id_column="caption")
    assert [ref.image_id for ref in refs] == [r"caf\xe9", "b"]
    assert json.loads(refs[0].metadata or "") == {
        "caption": r"caf\xe9",
        "nested": {"a": r"\xff", "b": 1},
        "list": [r"\xfe"],
    }


@pytest.mark.parametrize("line", ["[" * 100_000, '{"image": "0.png", "x": ' + "[" * 500 + "]" * 500 + "}", "1" * 5000])
def test_deep_json_in_a_list_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text(line)
    with pytest.raises(ConfigError, match=r"row 1 is not (a )?JSON"):
        listed(path, metadata=["x"])


def questions(path: Path, rows: list[dict[str, Any]]) -> Any:
    path.write_text("\n".join(map(json.dumps, rows)))
    return list(read_benchmark(BenchmarkConfig(path=str(path)), PLACES))


def test_questions_with_half_characters_stay_readable_and_different(tmp_path: Path) -> None:
    rows = [
        {"question_id": "q\ud83d", "image": "0.png", "question": "what \ud83d?", "answers": ["\ude00"]},
        {
            "question_id": r"q\ud83d",
            "image": "caf\udce9.png",
            "question": "what?",
            "answers": ["x"],
            "family": "\ud83d",
        },
    ]
    one, two = questions(tmp_path / "q.jsonl", rows)
    assert (one.question_id, one.question, one.answers) == (r"q\ud83d", r"what \ud83d?", [r"\ude00"])
    assert (two.question_id, two.family, two.image_id) == (r"q\\ud83d", r"\ud83d", r"caf\xe9.png")
    assert two.uri.endswith("/caf%E9.png")
    run = Run.open(str(tmp_path / "run"))
    assert run.questions("x").commit("000000", [one, two])
    assert run.questions("x").read("000000") == [one, two]


@pytest.mark.parametrize("name", ["q.json", "q.jsonl"])
@pytest.mark.parametrize("text", ["[" * 100_000, "[" + "1" * 5000 + "]"])
def test_deep_json_in_questions_is_named(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=r"is not JSON \("):
        list(read_benchmark(BenchmarkConfig(path=str(tmp_path / name)), PLACES))


class OddModel:
    """Replies with a lone surrogate."""

    max_images_in_flight = 1

    async def encode_image(self, image_id: str, content: bytes) -> EncodedImage | ImageProblem:
        return EncodedImage(image_id, content.hex())

    async def generate(self, image: EncodedImage, request: Request) -> Reply:  # noqa: ARG002
        return Reply("Question: what \ud83d?\nAnswer: \udce9", "stop", 1, 0, 1, 1, None, 0.0)

    def close(self) -> None: ...


def test_a_reply_with_half_a_character_stays_readable() -> None:
    model = Instrumented(OddModel(), Usage(), Load())
    reply = asyncio.run(model.generate(EncodedImage("a", "k"), Request("x", SamplingConfig())))
    assert reply.text == "Question: what \\ud83d?\nAnswer: \\xe9"


def test_rows_take_any_text(tmp_path: Path) -> None:
    run = Run.open(str(tmp_path))
    row = Annotation(
        "a#0", "a", "/a", State.FAILED.value, "unreadable", "https://me:pw123456@host: \ud83d", reply="\udce9"
    )
    assert run.annotations.commit("000000", [row])
    (stored,) = run.annotations.read("000000")
    assert (stored.detail, stored.reply) == (r"https://***@host: \ud83d", r"\xe9")


@pytest.mark.parametrize("folder", ["photos [1]", "a*b", "what?", "x/[2024]/y"])
def test_a_glob_below_a_folder_with_wildcards_in_its_name(folder: str, tmp_path: Path) -> None:
    inside = tmp_path / folder / "sub"
    inside.mkdir(parents=True)
    (inside / "0.png").write_bytes(b"0")
    (tmp_path / folder / "1.jpg").write_bytes(b"1")
    assert [ref.image_id for ref in listed(Path(f"{tmp_path}/{folder}/*.jpg"))] == ["1.jpg"]
    assert [ref.image_id for ref in listed(Path(f"{tmp_path}/{folder}/**/*.png"))] == ["sub/0.png"]
    assert [ref.image_id for ref in listed(Path(f"{tmp_path}/{folder}/s[tu]b/*"))] == ["sub/0.png"]


def test_a_glob_without_a_folder_is_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path)
    assert split_glob("*.png")[0] == "."
    assert split_glob("a/*.png")[0] == "a"
    assert split_glob("/nowhere/[x]/*.png")[0] == "/nowhere"
    assert split_glob("s3://b/p/[x]*/a")[0] == "s3://b/p"


@pytest.mark.parametrize(
    "entry",
    [
        "https://host/0.png?X-Amz-Signature=Zq8xW2kP7vN4",
        "https://host/0.png?sv=1&sig=Zq8xW2kP7vN4",
        "https://me:Zq8xW2kP7vN4@host/0.png",
        "s3://key:Zq8xW2kP7vN4@bucket/0.png",
    ],
)
def test_an_entry_with_a_secret_needs_a_permission(entry: str, tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text(json.dumps({"image": entry, "id": entry, "url": entry}))
    with pytest.raises(ConfigError, match=r"row 1: .* holds a password or a signature.*'signed_urls'") as caught:
        listed(path, allow=["http"])
    assert "Zq8x" not in str(caught.value)
    (ref,) = listed(path, allow=["http", "signed_urls"], metadata=["url"])
    assert ref.uri == entry
    assert "Zq8x" not in str(ref.metadata)
    (tmp_path / "0.png").write_bytes(b"0")
    path.write_text(json.dumps({"image": "0.png", "id": entry}))
    with pytest.raises(ConfigError, match="holds a password or a signature"):
        listed(path, id_column="id")


def test_a_misspelled_uri_in_a_list_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("s3:/bucket/x.png\n")
    with pytest.raises(ConfigError, match=r"row 1: .* is misspelled\. Write s3://bucket/x\.png"):
        listed(path)


def not_utf8(*values: bytes) -> pa.Array:
    return pa.Array.from_buffers(pa.string(), len(values), pa.array(values, pa.binary()).buffers())


OFFSETS = pa.array([0, 1, 2], pa.int32())
SIZES = pa.array([1, 1], pa.int32())
NOT_UTF8 = {
    "map": (pa.MapArray.from_arrays(OFFSETS, not_utf8(b"\xff", b"k"), not_utf8(b"\xfe", b"y")), [[r"\xff", r"\xfe"]]),
    "keys": (pa.MapArray.from_arrays(OFFSETS, not_utf8(b"\xff", b"k"), pa.array([1, 2])), [[r"\xff", 1]]),
    "fixed": (pa.FixedSizeListArray.from_arrays(not_utf8(b"\xfe", b"y"), 1), [r"\xfe"]),
    "view": (pa.ListViewArray.from_arrays(OFFSETS[:2], SIZES, not_utf8(b"\xfe", b"y")), [r"\xfe"]),
    "large view": (
        pa.LargeListViewArray.from_arrays(
            OFFSETS[:2].cast(pa.int64()), SIZES.cast(pa.int64()), not_utf8(b"\xfe", b"y")
        ),
        [r"\xfe"],
    ),
    "string view": (not_utf8(b"caf\xe9", b"y").cast(pa.string_view()), r"caf\xe9"),
    "encoded": (pc.run_end_encode(not_utf8(b"\xfe", b"y")), r"\xfe"),
    "dictionary": (pa.DictionaryArray.from_arrays(pa.array([0, 1]), not_utf8(b"\xfe", b"y")), r"\xfe"),
}


NOT_IN_PARQUET = ("view", "large view", "encoded", "dictionary")
"""Parquet has no such type, or pyarrow refuses such text in it."""


@pytest.mark.parametrize(
    ("source", "kind"),
    [("saved", kind) for kind in NOT_UTF8] + [("parquet", kind) for kind in NOT_UTF8 if kind not in NOT_IN_PARQUET],
)
def test_a_caption_of_any_type_that_is_not_utf8_stays_readable(source: str, kind: str, tmp_path: Path) -> None:
    """In earlier versions, a file with such text in a map or in another kind of list counted as damaged."""
    captions, expected = NOT_UTF8[kind]
    table = pa.table({"image": [b"0", b"1"], "caption": captions})
    if source == "parquet":
        pq.write_table(table, tmp_path / "x.parquet")
    else:
        with pa.ipc.new_stream(str(tmp_path / "x.arrow"), table.schema) as stream:
            stream.write_table(table)
        (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "x.arrow"}]}')
    refs = listed(tmp_path, metadata=["caption"])
    assert json.loads(refs[0].metadata or "") == {"caption": expected}
    assert contents(refs) == [b"0", b"1"]

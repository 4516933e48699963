"""Sources that are refused as a whole: each command must end with one line that names the problem."""

from __future__ import annotations

import json
import os
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Settings = dict[str, Any]


def _list_with(name: str, content: bytes, **settings: Any) -> Callable[[Path], Settings]:
    """A source that is one file."""

    def write(root: Path) -> Settings:
        (root / name).write_bytes(content)
        return {"path": str(root / name), **settings}

    return write


def _column_of(values: list[Any], kind: pa.DataType) -> Callable[[Path], Settings]:
    def write(root: Path) -> Settings:
        pq.write_table(pa.table({"image": pa.array(values, kind)}), root / "x.parquet")
        return {"path": str(root / "x.parquet")}

    return write


def _tar_with(name: str, size: bytes | None = None) -> Callable[[Path], Settings]:
    def write(root: Path) -> Settings:
        header = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
        if size is not None:
            header[124:136] = size
            header[148:156] = b" " * 8
            header[148:156] = f"{sum(header):06o}\0 ".encode()
        (root / "x.tar").write_bytes(bytes(header) + bytes(1024))
        return {"path": str(root / "x.tar")}

    return write


def _pipe(root: Path) -> Settings:
    os.mkfifo(root / "list.csv")
    return {"path": str(root / "list.csv")}


def _only_litter(root: Path) -> Settings:
    for name in ("._a.png", ".DS_Store", "b", "c.txt"):
        (root / name).write_bytes(b"x")
    return {"path": str(root)}


def _split(root: Path) -> Settings:
    (root / "dataset_dict.json").write_text("{}")
    return {"path": str(root)}


def _state(content: str) -> Callable[[Path], Settings]:
    def write(root: Path) -> Settings:
        (root / "state.json").write_text(content)
        return {"path": str(root)}

    return write


def _rows(*rows: Any) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


REFUSALS: dict[str, tuple[Callable[[Path], Settings], str]] = {
    "broken JSON line": (_list_with("x.jsonl", b'{"image": "a.png"}\n{"image": '), "row 2 is not JSON"),
    "deep JSON line": (_list_with("x.jsonl", b'{"image": "a.png", "x": ' + b"[" * 200 + b"]" * 200 + b"}"), "deeply"),
    "very deep JSON line": (_list_with("x.jsonl", b"[" * 100_000), "row 1 is not a JSON object"),
    "number with 5,000 digits": (_list_with("x.jsonl", b'{"image": "a.png", "x": ' + b"1" * 5000 + b"}"), "row 1"),
    "JSON line that is no object": (_list_with("x.jsonl", b'"\xed\xa0\xbd"'), "utf-8"),
    "JSON list without an end": (_list_with("x.json", b'[{"image": "a.png"}'), "no end after row 1"),
    "JSON list without a comma": (_list_with("x.json", b'[{"image": "a.png"} {"image": "b.png"}]'), "not by a comma"),
    "line that is not UTF-8": (_list_with("x.txt", b"caf\xe9.png\n"), "the list must be UTF-8"),
    "row without an image": (_list_with("x.jsonl", _rows({"image": None})), "row 1: the column 'image' holds no URI"),
    "row with a number": (_list_with("x.jsonl", _rows({"image": 7})), "holds a value of type int, not a URI"),
    "row without the column": (
        _list_with("x.jsonl", _rows({"image": "a"}, {"b\ud83d": 1})),
        "is not a column of row 2",
    ),
    "half of a pair as a column": (_list_with("x.csv", b"a\n1\n", image_column="\ud83d"), "is not UTF-8"),
    "path that leads out": (_list_with("x.txt", b"../a.png\n"), "leads out of its folder"),
    "web": (_list_with("x.txt", b"http://127.0.0.1/a.png\n"), "would be fetched from the web"),
    "signed URL": (_list_with("x.txt", b"s3://b/a.png?X-Amz-Signature=abc\n"), "contains a password or a signature"),
    "misspelled URI": (_list_with("x.txt", b"s3:/b/a.png\n"), "Write s3://b/a.png"),
    "unknown URI": (_list_with("x.txt", b"ftp://b/a.png\n"), "unsupported kind"),
    "repeated id": (
        _list_with("x.jsonl", _rows(*[{"image": "x.jsonl", "i": "x\ud83d"}] * 2), id_column="i"),
        "occurs twice",
    ),
    "empty id": (_list_with("x.jsonl", _rows({"image": "a", "i": ""}), id_column="i"), "is empty in x.jsonl/1"),
    "empty list": (_list_with("x.csv", b""), "source."),
    "blank list": (_list_with("x.txt", b"\n \n\n"), "has 0 rows"),
    "pipe": (_pipe, "list.csv"),
    "folder without images": (_only_litter, "holds no images"),
    "column of numbers": (_column_of([1], pa.int64()), "has type int64"),
    "column of lists": (_column_of([[b"x"]], pa.list_(pa.binary())), "set source.image_column to image[0]"),
    "column of nulls": (_column_of([None], pa.null()), "has type null"),
    "column of structs of structs": (
        _column_of([{"a": {"b": b"x"}}], pa.struct([("a", pa.struct([("b", pa.binary())]))])),
        "has type struct",
    ),
    "damaged Parquet file": (_list_with("x.parquet", b"PAR1" + b"\xff" * 99 + b"PAR1"), "cannot be read as Parquet"),
    "tar that is cut": (_tar_with("a.png", b"00000010000\0"), "it is cut off at byte"),
    "tar with a negative size": (_tar_with("a.png", b"\xff" * 10 + struct.pack(">h", -512)), "no valid size"),
    "tar that leads out": (_tar_with("../../a\udce9.png"), "leads out of its folder"),
    "compressed tar": (_list_with("x.tar.gz", b"\x1f\x8b\x08"), "is compressed"),
    "no tar": (_list_with("x.tar", b"x" * 1024), "does not begin with a header"),
    "saved DatasetDict": (_split, "is a saved DatasetDict"),
    "saved dataset that is deep": (_state("[" * 100_000), "has no valid state.json"),
    "saved dataset that leads out": (
        _state('{"_data_files": [{"filename": "../x.arrow"}]}'),
        "leads out of its folder",
    ),
    "setting without effect": (_list_with("x.csv", b"image\na.png\n", extensions=["png"]), "has no effect"),
}
"""What makes each source, and words of the line that refuses it."""

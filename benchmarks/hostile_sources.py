"""Sources of every kind that are made of hostile records."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import re
import socket
import struct
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.hostile_records import (
    READS_HEIC,
    UNKNOWN,
    UNREADABLE,
    File,
    Files,
    HostileSource,
    Record,
    heic,
    hostile_caption,
    hostile_name,
    text_name,
)

Row = dict[str, Any]
Maker = Callable[[Path, int, random.Random], HostileSource]
PER_FILE = 500
"""The number of records in one tar, Parquet file or Arrow file."""
_DAMAGED = "damaged files (source.skip_damaged)"
_CAPTIONS = {"metadata": ["record", "caption"]}


def _path_key(root: Path) -> Callable[[Row], str]:
    """The key of an image file: the bytes of its path below the root, which its URI has literally or as escapes."""

    def key(row: Row) -> str:
        uri: str = row["uri"]
        # A # marks a path that itself ends like a position in a file.
        path = unquote_to_bytes(uri[7:]) if uri.startswith("file://") else uri.removesuffix("#").encode()
        return repr(path.removeprefix(os.fsencode(root) + b"/"))

    return key


def _record_key(row: Row) -> str:
    """The number of the record, which its row carries as metadata."""
    return str(json.loads(row["metadata"])["record"])


def _span_key(row: Row) -> str:
    """The tar and the position of the image in it."""
    path, _, span = row["uri"].rpartition("#bytes=")
    return f"{path.rpartition('/')[2]}:{span.partition('-')[0]}"


def _id_key(row: Row) -> str:
    image_id: str = row["image_id"]
    return image_id


# --- Folders of files


def folder(root: Path, num_records: int, rng: random.Random) -> HostileSource:
    """Image files with hostile names, in folders with hostile names, among what is not a regular file."""
    source = HostileSource("folder", {"path": str(root)}, _path_key(root))
    tree = _Tree(source, os.fsencode(root) + b"/", rng)
    for number in range(num_records):
        tree.add(number)
    return source


_KINDS_OF_FILES = {
    **{"image": 60.0, "link": 1.0, "broken link": 1.0, "loop": 1.0, "circle": 0.2, "pipe": 1.0, "socket": 0.2},
    **{"heic": 2.0, "appledouble": 3.0, "hidden": 2.0, "system": 1.0, "no ending": 2.0, "other ending": 2.0},
    **{"text": 2.0, "gzip": 1.0},
}
"""What a folder holds, with relative frequencies."""


class _Tree:
    """Fills a folder."""

    def __init__(self, source: HostileSource, top: bytes, rng: random.Random) -> None:
        self._source, self._top, self._rng, self._files = source, top, rng, Files(rng)
        self._written: list[tuple[bytes, File]] = []
        self._folders = [b""]
        for number in range(12):
            self._folders.append(rng.choice(self._folders) + hostile_name(rng, number)[:60] + b"/")
            os.makedirs(top + self._folders[-1], exist_ok=True)
        os.makedirs(top + b"__MACOSX")

    def add(self, number: int) -> None:
        """Add a record of any kind."""
        rng = self._rng
        parent, stem, file = rng.choice(self._folders), hostile_name(rng, number), self._files.draw()
        kind = rng.choices([*_KINDS_OF_FILES], [*_KINDS_OF_FILES.values()])[0]
        ending = rng.choice((b".png", b".PNG", b".JPeG", b".jfif", b".webp", b".TIF", b".gif", b"..png", b".x.bmp"))
        last = stem + b"z" * (251 - len(stem)) + b".png" if rng.random() < 0.03 else stem + ending
        if kind == "image":
            self._row(parent + last, file)
        elif kind == "heic":
            self._heic(parent + stem)
        elif kind in ("link", "broken link", "loop"):
            self._link(kind, parent, last)
        else:
            self._left_out(kind, parent, stem, last, number, file)

    def _row(self, path: bytes, file: File) -> None:
        self._write(path, file)
        self._written.append((path, file))
        self._source.records.append(Record(repr(path), file.reasons, file.content))

    def _heic(self, path: bytes) -> None:
        path, file = path + self._rng.choice((b".heic", b".HEIF", b".hif")), heic(self._rng)
        if READS_HEIC:
            self._row(path, file)
            return
        self._write(path, file)
        ending = path.rpartition(b".")[2].decode().lower()
        self._source.left_out[f".{ending} (needs mpa-ray[heic])"] += 1

    def _link(self, kind: str, parent: bytes, last: bytes) -> None:
        target, file = last if kind == "loop" else b"nowhere\xff", UNREADABLE
        if kind == "link" and self._written:
            path, file = self._rng.choice(self._written)
            target = self._top + path
        os.symlink(target, self._top + parent + last)
        self._source.records.append(Record(repr(parent + last), file.reasons, file.content))

    def _left_out(self, kind: str, parent: bytes, stem: bytes, last: bytes, number: int, file: File) -> None:
        """Add what index has to count as left out."""
        if kind == "circle":
            os.symlink(self._top, self._top + parent + stem)
            self._source.left_out["linked folders (listed elsewhere)"] += 1
        elif kind in ("pipe", "socket"):
            _make_special(kind, self._top + parent, b"%d.png" % number)
            self._source.left_out["pipes, sockets and devices"] += 1
        else:
            path, label = {
                "appledouble": (parent + b"._%d" % number + last[:200], "._* (AppleDouble)"),
                "hidden": (parent + b".%d" % number + last[:200], ".* (hidden)"),
                "system": (b"__MACOSX/" + last, "__MACOSX (system folder)"),
                "no ending": (parent + stem, "no ending"),
                "other ending": (
                    parent + stem + self._rng.choice((b".png ", b".p\xffg", b".pn\ng", b".")),
                    "other endings",
                ),
                "text": (parent + stem + b".TXT", ".txt"),
                "gzip": (parent + stem + b".png.gz", ".gz"),
            }[kind]
            self._write(path, file)
            self._source.left_out[label] += 1

    def _write(self, path: bytes, file: File) -> None:
        _write(self._top + path, file)


def _make_special(kind: str, folder: bytes, name: bytes) -> None:
    """Create a pipe or a socket. A socket's path has to be short, so the current folder is changed meanwhile."""
    if kind == "pipe":
        os.mkfifo(folder + name)
        return
    here = os.getcwd()
    os.chdir(folder)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(name)
    finally:
        os.chdir(here)


def _write(path: bytes, file: File) -> None:
    with open(path, "wb") as out:
        out.write(file.content or b"")


# --- Lists


def _entry(root: Path, number: int, files: Files, rng: random.Random, plain: bool = False) -> tuple[str, File]:
    """The path of a list's entry, relative to the list, and the file that it must give.

    Args:
        root: The list's folder.
        number: The number of the record.
        files: Draws the files.
        rng: Draws the rest.
        plain: Whether the list can hold only paths of one line that UTF-8 can encode.
    """
    name = text_name(rng, number)
    if plain:
        name = re.sub(r"[\udc80-\udcff\n\r\x85\u2028]", "_", name).strip()
    path = f"files/{name}{rng.choice(('.png', '.JPG', '', '.webp'))}"
    kind = rng.choices(("file", "missing", "folder", "pipe", "nul", "too long"), (90, 3, 1, 1, 1, 1))[0]
    top = os.fsencode(root) + b"/"
    if kind == "file":
        file = files.draw()
        _write(top + os.fsencode(path), file)
        return path, file
    if kind == "folder":
        os.mkdir(top + os.fsencode(path))
    elif kind == "pipe":
        os.mkfifo(top + os.fsencode(path))
    elif kind == "nul" and not plain:
        path += "\0.png"
    elif kind == "too long":
        path += "/" + "z" * 300 + ".png"
    return path, UNREADABLE


def _half(path: str) -> str:
    """Append a lone surrogate that stands for no byte, so that no file can have the name."""
    return path + "\ud83d"


def text_list(root: Path, num_records: int, rng: random.Random) -> HostileSource:
    """Paths line by line, with blank lines, repeated lines and spaces."""
    source = HostileSource("txt list", {"path": str(root / "list.TXT")}, _id_key)
    (root / "files").mkdir()
    files, lines = Files(rng), list[str]()
    earlier: list[tuple[str, File]] = []
    while len(source.records) < num_records:
        if rng.random() < 0.1:
            lines.append(rng.choice(("", "   ", "\t", "\u2003")))
            continue
        if earlier and rng.random() < 0.05:
            path, file = rng.choice(earlier)
        else:
            path, file = _entry(root, len(source.records), files, rng, plain=True)
            earlier.append((path, file))
        lines.append(rng.choice(("", "  ")) + path + rng.choice(("", " ", "\t")))
        source.records.append(Record(f"list.TXT/{len(lines)}", file.reasons, file.content))
    text = "\ufeff" + "".join(line + rng.choice(("\n", "\r\n")) for line in lines)
    (root / "list.TXT").write_bytes(text.encode())
    return source


def _csv(root: Path, num_records: int, rng: random.Random, name: str, delimiter: str) -> HostileSource:
    source = HostileSource(f"{name.rpartition('.')[2]} list", {"path": str(root / name), **_CAPTIONS}, _record_key)
    (root / "files").mkdir()
    files, out = Files(rng), io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter, lineterminator=rng.choice(("\n", "\r\n")))
    writer.writerow(["record", "caption", "image", "unused\nnote"])
    for number in range(num_records):
        if rng.random() < 0.3:
            image, file = files.embedded()
        else:
            image, file = _entry(root, number, files, rng)
            # CSV cannot hold what UTF-8 cannot encode.
            image, file = (image, file) if _is_utf8(image) else ("files/none.png", UNREADABLE)
        caption = rng.choice(("", "a\nb", 'say "x"', "=1+1", "\0", "<b>", "😀", "\u202e", "None", "NaN", "1e400"))
        caption += str(number) if rng.random() < 0.5 else ""
        more = ["more", "cells"] if rng.random() < 0.05 else ["x" * rng.choice((1, 1, 9000))]
        writer.writerow([number, caption, image, *more])
        if rng.random() < 0.03:
            out.write("\n")
        source.records.append(Record(str(number), file.reasons, file.content, caption))
    (root / name).write_bytes(b"\xef\xbb\xbf" + out.getvalue().encode())
    return source


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def csv_list(root: Path, num_records: int, rng: random.Random) -> HostileSource:
    """A CSV file with cells of several lines, quotes, base64 and rows of other lengths."""
    return _csv(root, num_records, rng, "list.csv", ",")


def tsv_list(root: Path, num_records: int, rng: random.Random) -> HostileSource:
    """The same with tabs."""
    return _csv(root, num_records, rng, "list.tsv", "\t")


def _json_row(root: Path, number: int, files: Files, rng: random.Random) -> tuple[str, Record | str]:
    """A row as JSON text, and its record, or the label under which it is left out."""
    caption, stored = hostile_caption(rng, number)
    form = rng.random()
    image: Any
    if form < 0.25:
        image, file = files.embedded()
    else:
        image, file = _entry(root, number, files, rng)
        if form < 0.3:
            image, file = _half(image), UNREADABLE
        elif form < 0.35:
            image = {"bytes": None, "path": image}
        elif form < 0.4:
            image = [image]
    text = json.dumps(image, ensure_ascii=False)
    text = text if _is_utf8(text) and rng.random() < 0.5 else json.dumps(image)
    text = text.replace("/", "\\/") if rng.random() < 0.1 else text
    left_out = None
    if form < 0.02 and isinstance(image, str) and ";base64," in image:
        # A letter of the base64 as an escape: the image cannot be found in the file.
        text = text.replace(";base64,", ";base64,\\u0041")
        left_out = "rows whose base64 image contains escapes"
    row = f'{{"record": {number}, "caption": {caption}, "image": {text}, "x": {{"image": [1, "}}{{"]}}}}'
    if left_out is not None:
        return row, left_out
    return row, Record(str(number), file.reasons, file.content, stored)


def _add_rows(source: HostileSource, rows: list[tuple[str, Record | str]]) -> None:
    for _, outcome in rows:
        if isinstance(outcome, str):
            source.left_out[outcome] += 1
        else:
            source.records.append(outcome)


def json_lines(root: Path, num_records: int, rng: random.Random) -> HostileSource:
    """An object on each line, with blank lines between them."""
    source = HostileSource("jsonl list", {"path": str(root / "list.JSONL"), **_CAPTIONS}, _record_key)
    (root / "files").mkdir()
    files = Files(rng)
    rows = [_json_row(root, number, files, rng) for number in range(num_records)]
    _add_rows(source, rows)
    lines = [text + rng.choice(("\n", "\r\n", "\n\n", "\n \t\n")) for text, _ in rows]
    (root / "list.JSONL").write_bytes("".join(lines).encode())
    return source


def json_list(root: Path, num_records: int, rng: random.Random) -> HostileSource:
    """One list of objects over several lines."""
    source = HostileSource("json list", {"path": str(root / "list.json"), **_CAPTIONS}, _record_key)
    (root / "files").mkdir()
    files = Files(rng)
    rows = [_json_row(root, number, files, rng) for number in range(num_records)]
    _add_rows(source, rows)
    text = " \n[" + ",\n ".join(text for text, _ in rows) + "\t]\n"
    (root / "list.json").write_bytes(b"\xef\xbb\xbf" + text.encode())
    return source


def ids(root: Path, num_records: int, rng: random.Random) -> HostileSource:
    """A list whose ids are hostile, and differ only in what cannot be stored."""
    settings = {"path": str(root / "ids.jsonl"), "id_column": "id", "metadata": ["record"]}
    source = HostileSource("jsonl list with ids", settings, _record_key)
    (root / "files").mkdir()
    files, lines = Files(rng), list[str]()
    twins = ("\ud83d", r"\ud83d", r"\\ud83d", "\udce9", r"\xe9", "é", "\ude00", "\0", " ", "#0", "/", "\n", "%2F")
    for number in range(num_records):
        image, file = _entry(root, number, files, rng)
        row = {"record": number, "id": f"{number // len(twins)}{twins[number % len(twins)]}", "image": image}
        lines.append(json.dumps(row))
        source.records.append(Record(str(number), file.reasons, file.content))
    (root / "ids.jsonl").write_text("\n".join(lines))
    return source


def llava(root: Path, num_records: int, rng: random.Random) -> HostileSource:
    """A list of LLaVA's conversations, some without an image."""
    source = HostileSource("LLaVA list", {"path": str(root / "llava.json")}, _id_key)
    (root / "files").mkdir()
    files, rows = Files(rng), list[Row]()
    for number in range(num_records):
        talk = [{"from": "human", "value": "<image>\n" + text_name(rng, number)}, {"from": "gpt", "value": "\ud83d"}]
        row: Row = {"id": rng.choice((number, str(number), None)), "conversations": talk}
        if rng.random() < 0.1:
            rows.append({**row, **rng.choice(({}, {"image": None}, {"image": ""}))})
            source.left_out["rows without an image"] += 1
            continue
        row["image"], file = _entry(root, number, files, rng)
        rows.append(row)
        source.records.append(Record(f"llava.json/{len(rows)}", file.reasons, file.content))
    (root / "llava.json").write_text(json.dumps(rows, indent=rng.choice((None, 1))))
    return source


def ms_swift(root: Path, num_records: int, rng: random.Random) -> HostileSource:
    """A list of ms-swift's conversations with none, one or several images each."""
    source = HostileSource("ms-swift list", {"path": str(root / "swift.jsonl")}, _id_key)
    (root / "files").mkdir()
    files, rows = Files(rng), list[Row]()
    while source.num_records < num_records:
        row: Row = {"messages": [{"role": "user", "content": "<image>" + text_name(rng, len(rows))}], "images": []}
        rows.append(row)
        for part in range(rng.choice((0, 1, 1, 2, 3))):
            if rng.random() < 0.2:
                image, file = files.embedded()
            else:
                image, file = _entry(root, source.num_records, files, rng)
            row["images"].append(image if rng.random() < 0.8 else {"bytes": None, "path": image})
            suffix = f".{part}" if part else ""
            source.records.append(Record(f"swift.jsonl/{len(rows)}{suffix}", file.reasons, file.content))
        if not row["images"]:
            source.left_out["rows without an image"] += 1
    (root / "swift.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return source


# --- Columns


def _not_utf8(values: list[bytes | None]) -> pa.Array:
    """A column of text whose bytes are not UTF-8."""
    binary = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(values), binary.buffers(), binary.null_count)


def _caption_column(num_rows: int, first: int, rng: random.Random) -> tuple[pa.Array, list[Any]]:
    """A column of captions of some type, and what must be stored of it."""
    form = rng.randrange(10)
    numbers = range(first, first + num_rows)
    if form == 0:
        return _not_utf8([b"caf\xe9 %d" % n for n in numbers]), [rf"caf\xe9 {n}" for n in numbers]
    if form == 1:
        values = [rng.choice((1.5, None, float("nan"), float("inf"), -float("inf"))) for _ in numbers]
        return pa.array(values, pa.float64()), [value if value == 1.5 else None for value in values]
    if form == 2:
        nested = [{"a": [rng.choice((None, "\0", "😀", "x" * 1000))], "": None} for _ in numbers]
        return pa.array(nested, pa.struct([("a", pa.list_(pa.string())), ("", pa.int8())])), list(nested)
    if form == 3:
        return pa.array([rng.randbytes(9) for _ in numbers], pa.binary()), [UNKNOWN] * num_rows
    if form == 4:
        return pa.nulls(num_rows), [None] * num_rows
    if form == 5:
        texts = [rng.choice(("<b>", "\u202e", "\0", "\n")) for _ in numbers]
        return pa.array(texts).dictionary_encode(), list(texts)
    if form == 6:
        return pa.array([n * 10**6 for n in numbers], pa.timestamp("us", "UTC")), [UNKNOWN] * num_rows
    if form == 7:
        pairs = pa.array([[("k", n), ("", None)] for n in numbers], pa.map_(pa.string(), pa.int64()))
        return pairs, [[["k", n], ["", None]] for n in numbers]
    if form == 8:
        texts = pa.FixedSizeListArray.from_arrays(_not_utf8([b"\xfe %d" % n for n in numbers]), 1)
        return texts, [[rf"\xfe {n}"] for n in numbers]
    keys = _not_utf8([b"\xff%d" % n for n in numbers])
    return pa.MapArray.from_arrays(range(num_rows + 1), keys, keys), [[[rf"\xff{n}"] * 2] for n in numbers]


_STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_NESTED = pa.struct([("path", pa.string()), ("more", pa.struct([("bytes", pa.int8())])), ("bytes", pa.large_binary())])


def _image_column(
    root: Path, first: int, num_rows: int, files: Files, rng: random.Random
) -> tuple[pa.Array, list[File]]:
    """A column with images in some form, and the file that each row must give."""
    form = rng.randrange(8)
    cells: list[Any] = []
    contents: list[File] = []
    for number in range(first, first + num_rows):
        if form in (0, 1, 2, 3):
            file = files.draw()
            cell: Any = file.content
            if rng.random() < 0.03:
                cell, file = None, UNREADABLE
        elif form in (4, 5):
            cell, file = files.embedded() if rng.random() < 0.4 else _entry_above(root, number, files, rng)
            if not _is_utf8(cell):
                cell = os.fsencode(cell) if form == 4 else "none.png"
                file = file if form == 4 else UNREADABLE
            if rng.random() < 0.03:
                cell, file = None, UNREADABLE
        else:
            cell, file = _struct_cell(root, number, files, rng)
        cells.append(cell)
        contents.append(file)
    if form in (6, 7):
        return pa.array(cells, _STRUCT if form == 6 else _NESTED), contents
    if form == 4:
        return _not_utf8([cell.encode() if isinstance(cell, str) else cell for cell in cells]), contents
    if form == 5:
        return pa.array(cells, rng.choice((pa.string(), pa.large_string()))).dictionary_encode(), contents
    column = pa.array(cells, pa.large_binary() if form == 1 else pa.binary())
    return (column.dictionary_encode() if form == 2 else column), contents


def _entry_above(root: Path, number: int, files: Files, rng: random.Random) -> tuple[str, File]:
    """An entry of a table that is in a folder beside the files."""
    path, file = _entry(root, number, files, rng)
    return f"../{path}", file


def _struct_cell(root: Path, number: int, files: Files, rng: random.Random) -> tuple[Any, File]:
    form = rng.random()
    if form < 0.05:
        return None, UNREADABLE
    if form < 0.1:
        return {"bytes": None, "path": rng.choice((None, ""))}, UNREADABLE
    if form < 0.4:
        path, file = _entry_above(root, number, files, rng)
        return ({"bytes": None, "path": path}, file) if _is_utf8(path) else (None, UNREADABLE)
    file = files.draw()
    unused = rng.choice((None, "", "\0", "../../etc/passwd", "x.png", "http://h/?sig=x"))
    return {"bytes": file.content, "path": unused}, file


def _tables(root: Path, num_records: int, rng: random.Random, source: HostileSource) -> Iterator[pa.Table]:
    files = Files(rng)
    for first in range(0, num_records, PER_FILE):
        num_rows = min(PER_FILE, num_records - first)
        images, contents = _image_column(root, first, num_rows, files, rng)
        captions, stored = _caption_column(num_rows, first, rng)
        numbers = pa.array(range(first, first + num_rows), pa.int32())
        columns = {"record": numbers, "caption": captions, "image": images, "image.path": pa.nulls(num_rows)}
        yield pa.table(columns if rng.random() < 0.5 else dict(reversed(columns.items())))
        for number, file, caption in zip(range(first, first + num_rows), contents, stored, strict=True):
            source.records.append(Record(str(number), file.reasons, file.content, caption))


def parquet(root: Path, num_records: int, rng: random.Random) -> HostileSource:
    """Parquet files whose columns have other types in each file, and two damaged files."""
    folder = root / "tables"
    settings = {"path": str(folder), "skip_damaged": True, "allow": ["parent_folders"], **_CAPTIONS}
    source = HostileSource("Parquet", settings, _record_key)
    (root / "files").mkdir()
    folder.mkdir()
    name = ""
    for number, table in enumerate(_tables(root, num_records, rng, source)):
        name = f"{number:03d} #{rng.choice(('é', '😀', '%2F', '~'))}.Parquet"
        with_statistics = rng.random() < 0.7
        pq.write_table(table, folder / name, row_group_size=rng.choice((7, 100, 500)), write_statistics=with_statistics)
    (folder / "cut.parquet").write_bytes((folder / name).read_bytes()[:-100])
    (folder / "empty.parquet").write_bytes(b"")
    (folder / "._0.parquet").write_bytes(b"\0\5\x16\7")
    (folder / "table.csv").write_bytes(b"")
    source.left_out.update({_DAMAGED: 2, "._* (AppleDouble)": 1, ".csv": 1})
    return source


def saved_dataset(root: Path, num_records: int, rng: random.Random) -> HostileSource:
    """Arrow streams of a saved dataset, one of them truncated."""
    folder = root / "tables"
    settings = {"path": str(folder), "skip_damaged": True, "allow": ["parent_folders"], **_CAPTIONS}
    source = HostileSource("saved dataset", settings, _record_key)
    (root / "files").mkdir()
    folder.mkdir()
    names = []
    for number, table in enumerate(_tables(root, num_records, rng, source)):
        names.append(f"data-{number:05d} é#.arrow")
        with pa.ipc.new_stream(folder / names[-1], table.schema) as stream:
            stream.write_table(table, max_chunksize=rng.choice((9, 100, 500)))
    names.append("cut.arrow")
    (folder / "cut.arrow").write_bytes((folder / names[0]).read_bytes()[:-200])
    source.left_out[_DAMAGED] += 1
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    return source


# --- Tars


class _Tar:
    """Writes a tar member by member, and knows where each one begins."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.content = bytearray()

    def add(self, name: bytes, content: bytes, *, pax: bool = False, **fields: Any) -> str:
        """Add a member, and return the key of its content."""
        info = tarfile.TarInfo(name.decode(errors="surrogateescape"))
        info.size = len(content)
        for field, value in fields.items():
            setattr(info, field, value)
        self.content += info.tobuf(tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
        key = f"{self.name}:{len(self.content)}"
        self.content += content + bytes(-len(content) % 512)
        return key

    def end(self) -> None:
        """Add the blocks that end a tar."""
        self.content += bytes(1024)


def _member_name(rng: random.Random, number: int) -> tuple[bytes, bool]:
    """The stem of a sample in a tar, and whether its headers are pax records."""
    name = hostile_name(rng, number)
    if rng.random() < 0.05:
        name = b"d/" * 100 + name
    prefix = rng.choice((b"", b"", b"./", b"a b/", b"caf\xe9/"))
    pax = rng.random() < 0.3
    if pax:
        name = name.decode(errors="replace").encode()
        prefix = prefix.decode(errors="replace").encode()
    return prefix + name, pax


def tars_with_captions(root: Path, num_records: int, rng: random.Random) -> HostileSource:
    """Shards in which a caption, and a .json member that may be damaged, follow each image."""
    settings = {"path": str(root), "metadata": ["txt", "record", "caption"]}
    source = HostileSource("tars with captions", settings, _span_key)
    files = Files(rng)
    for first in range(0, num_records, PER_FILE):
        tar = _Tar(f"{first:06d}.TAR")
        for number in range(first, min(first + PER_FILE, num_records)):
            _add_sample(tar, source, number, files, rng)
        tar.end()
        (root / tar.name).write_bytes(tar.content)
    return source


def _add_sample(tar: _Tar, source: HostileSource, number: int, files: Files, rng: random.Random) -> None:
    stem, pax = _member_name(rng, number)
    if rng.random() < 0.05:
        tar.add(stem + b".txt", b"no image", pax=pax)
        source.left_out[".txt"] += 1
        return
    file = files.draw()
    key = tar.add(stem + rng.choice((b".png", b".JPG", b".x.webp")), file.content or b"", pax=pax)
    tar.add(stem + b".txt", rng.choice((b"caf\xe9", b"\0", b"", b"<b>", "😀".encode(), b"\xed\xa0\xbd")), pax=pax)
    document, stored, label = _json_member(number, rng)
    tar.add(stem + b".json", document.encode(errors="surrogatepass"), pax=pax)
    if label is not None:
        source.left_out[label] += 1
    source.records.append(Record(key, file.reasons, file.content, stored))


_BROKEN_JSON = ("{", "", "[" * 100_000, "nul", '{"a":' * 200 + "0" + "}" * 200, "\ud83d", "1" * 5000)


def _json_member(number: int, rng: random.Random) -> tuple[str, Any, str | None]:
    """A .json member, the caption that must be stored, and the label under which the member is left out."""
    caption, stored = hostile_caption(rng, number)
    document = f'{{"record": {number}, "caption": {caption}}}'
    form = rng.random()
    if form < 0.1:
        return rng.choice(_BROKEN_JSON), None, ".json (damaged metadata)"
    if form < 0.15:
        return rng.choice(("[]", "1", "null", '"x"')), None, None
    if form < 0.152:
        document += " " * 2**20
    if len(document) > 2**20:
        return document, None, ".json (metadata larger than 1 MiB)"
    return document, stored, None


def tars(root: Path, num_records: int, rng: random.Random) -> HostileSource:
    """Shards without captions: links, devices, repeated names, concatenated tars, and tars that are damaged."""
    source = HostileSource("tars", {"path": str(root), "skip_damaged": True}, _span_key)
    files = Files(rng)
    for shard, first in enumerate(range(0, num_records, PER_FILE)):
        tar = _Tar(f"{shard:04d} #é.tar")
        for number in range(first, min(first + PER_FILE, num_records)):
            _add_member(tar, source, number, files, rng)
            if rng.random() < 0.01:
                tar.end()
        if shard % 2:
            tar.end()
        elif tar.content[-512:].strip(b"\0"):
            source.left_out["ends of tars that may be truncated (no end mark)"] += 1
        (root / tar.name).write_bytes(tar.content)
    damaged = _damaged_tars(rng)
    for name, content in damaged.items():
        (root / f"x-{name}.tar").write_bytes(content)
    source.left_out[_DAMAGED] += len(damaged)
    return source


def _add_member(tar: _Tar, source: HostileSource, number: int, files: Files, rng: random.Random) -> None:
    stem, pax = _member_name(rng, number)
    kinds = ("image", "same name", "hard link", "symbolic link", "bad link", "device", "hidden", "ending", "none")
    kind = rng.choices(kinds, (70, 3, 3, 3, 2, 2, 3, 3, 1))[0]
    file = files.draw()
    content = file.content or b""
    if kind in ("image", "same name"):
        name = b"same.png" if kind == "same name" else stem + rng.choice((b".png", b".JPEG", b".gif"))
        source.records.append(Record(tar.add(name, content, pax=pax), file.reasons, file.content))
    elif kind in ("hard link", "symbolic link"):
        target = b"target-%d.png" % number
        key = tar.add(target, content)
        link = tarfile.LNKTYPE if kind == "hard link" else tarfile.SYMTYPE
        tar.add(b"link-%d.png" % number, b"", type=link, linkname=target.decode(), size=0)
        source.records += 2 * [Record(key, file.reasons, file.content)]
    elif kind == "bad link":
        tar.add(stem + b".png", b"", pax=pax, type=tarfile.SYMTYPE, linkname="/etc/passwd", size=0)
        source.left_out["symbolic links (to no image before them in the tar)"] += 1
    elif kind == "device":
        tar.add(stem + b".png", b"", pax=pax, type=rng.choice((tarfile.CHRTYPE, tarfile.FIFOTYPE)), size=0)
        source.left_out["other members (in tars)"] += 1
    elif kind == "hidden":
        tar.add(b"d%d/._x.png" % number, content)
        source.left_out["._* (AppleDouble)"] += 1
    elif kind == "ending":
        tar.add(stem + b".TXT", content, pax=pax)
        source.left_out[".txt"] += 1
    else:
        tar.add(stem, content, pax=pax)
        source.left_out["no ending"] += 1


def _with_size(header: bytes, size: bytes) -> bytes:
    """A header with another size field, and the matching checksum."""
    changed = bytearray(header)
    changed[124:136] = size
    changed[148:156] = b" " * 8
    changed[148:156] = f"{sum(changed):06o}\0 ".encode()
    return bytes(changed)


def _damaged_tars(rng: random.Random) -> dict[str, bytes]:
    whole = _Tar("whole")
    for number in range(4):
        whole.add(b"%d.png" % number, rng.randbytes(700))
    whole.end()
    content = bytes(whole.content)
    header = content[:512]
    pax = tarfile.TarInfo("pax")
    pax.type, pax.size = tarfile.XHDTYPE, 20
    return {
        "cut in a member": content[:900],
        "cut in a header": content[:1700],
        "negative": _with_size(header, b"\xff" * 10 + struct.pack(">h", -512)) + content[512:],
        "huge": _with_size(header, b"\x80" + b"\xff" * 11) + content[512:],
        "octal": _with_size(header, b"99999999999\0") + content[512:],
        "sum": header[:5] + b"!" + content[6:],
        "pax": pax.tobuf(tarfile.USTAR_FORMAT) + b"999 path=x\n".ljust(512, b"\0") + content,
        "no tar": rng.randbytes(5000),
        "empty": b"",
        "gzip": b"\x1f\x8b\x08" + rng.randbytes(900),
        "zeros in between": content[:1536] + rng.randbytes(512) + content[2048:],
    }


def img2dataset(root: Path, num_records: int, rng: random.Random) -> HostileSource:
    """The output of img2dataset: a tar, a table and a file of counts for each shard."""
    source = HostileSource("img2dataset", {"path": str(root), "metadata": ["url", "caption", "record"]}, _span_key)
    files = Files(rng)
    for shard, first in enumerate(range(0, num_records, PER_FILE)):
        tar = _Tar(f"{shard:05d}.tar")
        numbers = range(first, min(first + PER_FILE, num_records))
        for number in numbers:
            _add_download(tar, source, number, files, rng)
        tar.end()
        (root / tar.name).write_bytes(tar.content)
        table = pa.table({"url": [f"http://host/{n}" for n in numbers], "status": ["success"] * len(numbers)})
        pq.write_table(table, root / f"{shard:05d}.parquet")
        (root / f"{shard:05d}_stats.json").write_text('{"count": NaN}')
        source.left_out.update({".parquet": 1, ".json": 1})
    return source


def _add_download(tar: _Tar, source: HostileSource, number: int, files: Files, rng: random.Random) -> None:
    name = f"{number:09d}".encode()
    document, stored, label = _json_member(number, rng)
    if label is not None:
        source.left_out[label] += 1
    if rng.random() < 0.05:
        # A download that failed.
        tar.add(name + b".json", document.encode(errors="surrogatepass"))
        source.left_out[".json"] += 1
        return
    file = files.draw()
    key = tar.add(name + b".jpg", file.content or b"")
    tar.add(name + b".txt", b"caf\xe9")
    tar.add(name + b".json", document.encode(errors="surrogatepass"))
    source.records.append(Record(key, file.reasons, file.content, stored))


MAKERS: tuple[tuple[Maker, float], ...] = (
    (folder, 0.12),
    (text_list, 0.06),
    (csv_list, 0.07),
    (tsv_list, 0.05),
    (json_lines, 0.10),
    (json_list, 0.07),
    (ids, 0.04),
    (llava, 0.05),
    (ms_swift, 0.05),
    (parquet, 0.11),
    (saved_dataset, 0.08),
    (tars_with_captions, 0.08),
    (tars, 0.06),
    (img2dataset, 0.06),
)
"""What makes each source, and its share of all records."""

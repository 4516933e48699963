"""Writes the same images as every kind of source, with the libraries that users write them with."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset

PER_FILE = 12
"""The number of images in one tar or Parquet file."""

Maker = Callable[[list[bytes], Path], Path]


def as_files(contents: list[bytes], root: Path) -> Path:
    folder = root / "files"
    folder.mkdir()
    for number, content in enumerate(contents):
        (folder / f"{number:03d}.png").write_bytes(content)
    return folder


def as_text(contents: list[bytes], root: Path) -> Path:
    as_files(contents, root)
    (root / "list.txt").write_text("".join(f"files/{n:03d}.png\n\n" for n in range(len(contents))))
    return root / "list.txt"


def as_csv(contents: list[bytes], root: Path) -> Path:
    as_files(contents, root)
    with (root / "list.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["caption", "image"])
        writer.writerows([f'"{n}", with a comma', f"files/{n:03d}.png"] for n in range(len(contents)))
    return root / "list.csv"


def as_json_lines(contents: list[bytes], root: Path) -> Path:
    as_files(contents, root)
    lines = [json.dumps({"image": f"files/{n:03d}.png", "caption": n}) for n in range(len(contents))]
    (root / "list.jsonl").write_text("\n".join(lines))
    return root / "list.jsonl"


def as_parquet(values: list[Any], kind: pa.DataType, root: Path) -> Path:
    """Several files, addressed by a glob, since image files may be in the same folder."""
    table = pa.table({"image": pa.array(values, kind), "caption": [f"c{n}" for n in range(len(values))]})
    for part, first in enumerate(range(0, len(values), PER_FILE)):
        pq.write_table(table.slice(first, PER_FILE), root / f"{part:02d}.parquet", row_group_size=5)
    return root / "*.parquet"


HF_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def as_parquet_bytes(contents: list[bytes], root: Path) -> Path:
    return as_parquet(contents, pa.binary(), root)


def as_parquet_structs(contents: list[bytes], root: Path) -> Path:
    return as_parquet([{"bytes": c, "path": f"{n}.png"} for n, c in enumerate(contents)], HF_IMAGE, root)


def as_parquet_paths(contents: list[bytes], root: Path) -> Path:
    as_files(contents, root)
    return as_parquet([{"bytes": None, "path": f"files/{n:03d}.png"} for n in range(len(contents))], HF_IMAGE, root)


def as_parquet_uris(contents: list[bytes], root: Path) -> Path:
    as_files(contents, root)
    return as_parquet([f"files/{n:03d}.png" for n in range(len(contents))], pa.string(), root)


def as_tars(contents: list[bytes], root: Path) -> Path:
    folder = root / "tars"
    folder.mkdir()
    for part, first in enumerate(range(0, len(contents), PER_FILE)):
        with webdataset.TarWriter(str(folder / f"{part:02d}.tar")) as tar:
            for number, content in enumerate(contents[first : first + PER_FILE], first):
                caption = {"txt": f"c{number}", "json": {"caption": f"c{number}"}}
                tar.write({"__key__": f"sample/{number:03d}", "png": content, **caption})
    return folder


def as_saved_dataset(contents: list[bytes], root: Path) -> Path:
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    rows = {"image": [{"bytes": c, "path": None} for c in contents], "caption": [f"c{n}" for n in range(len(contents))]}
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(root / "saved", num_shards=3)
    return root / "saved"


KINDS: list[tuple[Maker, str]] = [
    (as_files, "images"),
    (as_text, "list"),
    (as_csv, "list"),
    (as_json_lines, "list"),
    (as_parquet_bytes, "parquet"),
    (as_parquet_structs, "parquet"),
    (as_parquet_paths, "parquet"),
    (as_parquet_uris, "parquet"),
    (as_tars, "webdataset"),
    (as_saved_dataset, "saved_dataset"),
]

"""Recount a run from its files, without any code of mpa_ray: json reads the markers, and pyarrow reads the rows.

    python benchmarks/chaos_recount.py BUCKET/run small BUCKET --endpoint http://127.0.0.1:5000

BUCKET/run is the run, small is the student, and the last argument is the folder or the bucket of the images. Without
`--endpoint`, both are local folders.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

import pyarrow.parquet as pq
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem, S3FileSystem

Row = dict[str, Any]


def read_rows(files: FileSystem, folder: str, dataset: str) -> tuple[list[Row], set[str]]:
    """The rows of the files that the newest markers name, and the digests of settings in these markers."""
    newest: dict[str, tuple[int, str]] = {}
    for path in _paths(files, f"{folder}/{dataset}/commits") + _paths(files, f"{folder}/{dataset}/generations"):
        shard, _, generation = path.rpartition("/")[2].removesuffix(".json").partition(".")
        newest[shard] = max(newest.get(shard, (-1, "")), (int(generation or 0), path))
    markers = [_read_json(files, newest[shard][1]) for shard in sorted(newest)]
    current = [marker for marker in markers if not marker.get("is_withdrawn")]
    tables = [pq.read_table(f"{folder}/{marker['file']}", filesystem=files) for marker in current]
    return [row for table in tables for row in table.to_pylist()], {marker.get("fingerprint", "") for marker in current}


def recount(files: FileSystem, folder: str, student: str, images: Iterable[str]) -> tuple[dict[str, Any], list[Row]]:
    """Count what is lost and doubled on the way from the images to the samples of a training.

    Returns:
        The counts, and the verdicts.
    """
    datasets = ["corpus", "annotations", f"verdicts/{student}", f"students/{student}/parity/epoch"]
    read = [read_rows(files, folder, dataset) for dataset in datasets]
    corpus, annotations, verdicts, epoch = (rows for rows, _ in read)
    export = f"{folder}/parity/{student}/parity.parquet"
    parity = pq.read_table(export, filesystem=files).to_pylist() if _exists(files, export) else []
    kept = [row["annotation_id"] for row in verdicts if row["state"] == "kept"]
    steps = [
        (list(images), [row["image_id"] for row in corpus]),
        ([row["image_id"] for row in corpus], list(dict.fromkeys(row["image_id"] for row in annotations))),
        ([row["annotation_id"] for row in annotations], [row["annotation_id"] for row in verdicts]),
        (kept, [row["annotation_id"] for row in parity]),
        (kept if epoch else [], [row["annotation_id"] for row in epoch]),
    ]
    counts = {
        "images": len(corpus),
        "states": dict(Counter(row["reason"] or row["state"] for row in verdicts)),
        "lost": sum((Counter(before) - Counter(after)).total() for before, after in steps),
        "doubled": sum((Counter(after) - Counter(before)).total() for before, after in steps),
        "mixed": sum(len(digests) > 1 for _, digests in read),
    }
    return counts, verdicts


def _paths(files: FileSystem, folder: str) -> list[str]:
    found = files.get_file_info(FileSelector(folder, allow_not_found=True))
    return sorted(info.path for info in found if info.type == FileType.File and info.path.endswith(".json"))


def _read_json(files: FileSystem, path: str) -> dict[str, Any]:
    with files.open_input_file(path) as file:
        content: dict[str, Any] = json.loads(file.read())
    return content


def _exists(files: FileSystem, path: str) -> bool:
    return bool(files.get_file_info(path).type == FileType.File)


def names_in(files: FileSystem, folder: str) -> list[str]:
    """The names of the files in a folder."""
    return sorted(info.base_name for info in files.get_file_info(FileSelector(folder)))


def open_files(endpoint: str | None) -> FileSystem:
    """The files of this machine, or those of an object store, with the credentials of the environment."""
    if endpoint is None:
        return LocalFileSystem()
    return S3FileSystem(endpoint_override=urlsplit(endpoint).netloc, scheme=urlsplit(endpoint).scheme)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("student")
    parser.add_argument("images")
    parser.add_argument("--endpoint")
    options = parser.parse_args()
    store = open_files(options.endpoint)
    counted, _ = recount(store, options.run, options.student, names_in(store, options.images))
    print(json.dumps(counted))
    sys.exit(1 if counted["lost"] or counted["doubled"] or counted["mixed"] else 0)

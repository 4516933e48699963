"""Recounts a run of hostile records from its files, with pyarrow and none of the project's code."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.hostile_records import SECRET, UNKNOWN, HostileSource, Record

Row = dict[str, Any]
STUDENT = "small"
_OF_IMAGES = (
    *("unreadable", "storage", "too_few_bytes", "too_many_bytes", "image_changed", "empty_file", "not_an_image"),
    *("unsupported_format", "truncated_image", "too_many_pixels", "extreme_aspect_ratio", "duplicate_of"),
)
"""Reasons that say something about the file; an image that can be shown to a model may have none of them."""
_MARKS = ("Traceback", SECRET)
"""What no output and no file of a run may hold."""
_NUM_SHOWN = 5


class Recount:
    """The rows of a run, and what is wrong with them."""

    def __init__(self, source: HostileSource, run_dir: Path) -> None:
        """Read the run, and compare it with what its source was made of."""
        self._source, self._run_dir = source, run_dir
        self.problems: list[str] = []
        self.images = self._rows("corpus")
        self.annotations = self._rows("annotations")
        self.verdicts = self._rows(f"verdicts/{STUDENT}")
        self.left_out: Counter[str] = Counter(self._json("corpus/manifest.json").get("left_out", {}))
        records = self._check_corpus()
        self._check_annotations(records)
        self._check_verdicts()
        self._check_report()
        self._check_files()

    def check_audit(self, counts: dict[str, Any]) -> None:
        """Compare what `audit` has printed with the rows."""
        kept = sum(row["state"] == "kept" for row in self.annotations)
        parity = sum(row["state"] == "kept" for row in self.verdicts)
        self._compare("audit: images", [str(len(self.images))], [str(counts["images"])])
        self._compare("audit: annotated", [str(kept)], [str(counts["annotated"])])
        self._compare("audit: kept", [str(parity)], [str(counts["kept"][STUDENT])])
        self._compare("audit: left out", _flat(self.left_out), _flat(Counter(counts.get("left_out_files", {}))))
        self.problems += [f"audit: {problem}" for problem in counts["problems"]]

    def outcomes(self) -> dict[str, int]:
        """The number of annotations by state and reason."""
        outcomes = Counter(f"{row['state']} {row['reason'] or ''}".strip() for row in self.annotations)
        return dict(outcomes.most_common())

    def _check_corpus(self) -> dict[str, Record]:
        """Compare the corpus with the records. Returns the record of each image."""
        ids = [row["image_id"] for row in self.images]
        self._check_unique("corpus", ids)
        keys = [self._source.key_of(row) for row in self.images]
        self._compare("corpus", [record.key for record in self._source.records], keys)
        self._compare("left out", _flat(self._source.left_out), _flat(self.left_out))
        by_key = {record.key: record for record in self._source.records}
        records = {image_id: by_key[key] for image_id, key in zip(ids, keys, strict=True) if key in by_key}
        for row in self.images:
            record = records.get(row["image_id"])
            metadata = json.loads(row["metadata"]) if row["metadata"] is not None else {}
            if record is not None and record.caption is not UNKNOWN and not _same(metadata["caption"], record.caption):
                self.problems.append(
                    f"caption of {record.key!r}: {metadata['caption']!r:.80}, not {record.caption!r:.80}"
                )
        return records

    def _check_annotations(self, records: dict[str, Record]) -> None:
        ids = [row["image_id"] for row in self.images]
        self._compare("annotations", ids, [row["image_id"] for row in self.annotations])
        self._check_unique("annotations", [row["annotation_id"] for row in self.annotations])
        by_content: dict[str, list[Row]] = defaultdict(list)
        for row in self.annotations:
            self._check_state("annotations", row)
            record = records.get(row["image_id"])
            if record is None:
                continue
            if row["content_sha256"] and row["reason"] != "empty_file":
                by_content[row["content_sha256"]].append(row)
            if row["reason"] != "duplicate_of" and not _fits(row["reason"], record):
                reasons = ", ".join(record.reasons) or "none of an image"
                self.problems.append(f"reason of {record.key!r}: {row['reason']}, not {reasons} ({row['detail']})")
            if row["content_sha256"] not in (None, _digest(record)):
                self.problems.append(f"content of {record.key!r}: other bytes than those of the record")
            if row["reason"] is None and not row["question"]:
                self.problems.append(f"annotations: {row['image_id']} is kept without a question")
        self._check_duplicates(by_content)

    def _check_duplicates(self, by_content: dict[str, list[Row]]) -> None:
        for rows in by_content.values():
            originals = [row["image_id"] for row in rows if row["reason"] != "duplicate_of"]
            if len(originals) != 1 or any(r["duplicate_of"] not in (None, originals[0]) for r in rows):
                names = ", ".join(repr(row["image_id"]) for row in rows[:_NUM_SHOWN])
                self.problems.append(f"duplicates: {len(originals)} originals among {names}")

    def _check_verdicts(self) -> None:
        ids = [row["annotation_id"] for row in self.verdicts]
        self._compare("verdicts", [row["annotation_id"] for row in self.annotations], ids)
        for row in self.verdicts:
            self._check_state("verdicts", row)
        kept = [row["annotation_id"] for row in self.verdicts if row["state"] == "kept"]
        folder = f"parity/{STUDENT}"
        exported = pq.read_table(self._run_dir / folder / "parity.parquet").column("annotation_id").to_pylist()
        self._compare("parity.parquet", kept, exported)
        self._compare("llava.json", kept, [row["id"] for row in self._json(f"{folder}/llava.json")])
        lines = (self._run_dir / folder / "messages.jsonl").read_text().split("\n")
        self._compare("messages.jsonl", [str(len(kept))], [str(len([json.loads(line) for line in lines if line]))])

    def _check_state(self, dataset: str, row: Row) -> None:
        if row["state"] not in ("kept", "dropped", "failed") or (row["state"] == "kept") != (row["reason"] is None):
            self.problems.append(f"{dataset}: {row['image_id']} is {row['state']} ({row['reason']})")

    def _check_report(self) -> None:
        """The report has the numbers of the rows, and can be read by a strict reader of JSON."""
        report = self._json("report/report.json")
        outcomes = Counter(row["reason"] or row["state"] for row in self.annotations)
        self._compare("report: annotations", _flat(outcomes), _flat(Counter(report["teacher"]["by_outcome"])))
        self.check_audit(report["counts"])

    def _check_files(self) -> None:
        for path in self._run_dir.rglob("*"):
            if path.is_file():
                self.check_text(str(path.relative_to(self._run_dir)), _text_of(path))

    def check_text(self, where: str, texts: Iterable[str]) -> None:
        """Look for what no output and no file may hold."""
        for text in texts:
            self.problems += [f"{where}: holds {mark!r}" for mark in _MARKS if mark in text]

    def _rows(self, dataset: str) -> list[Row]:
        """The rows that the markers of a dataset publish."""
        markers = sorted((self._run_dir / dataset / "commits").glob("[0-9]*.json"))
        files = [json.loads(marker.read_text())["file"] for marker in markers]
        return [row for file in files for row in pq.read_table(self._run_dir / file).to_pylist()]

    def _json(self, path: str) -> Any:
        def refuse(constant: str) -> None:
            self.problems.append(f"{path}: holds {constant}, which is no JSON")

        return json.loads((self._run_dir / path).read_text(), parse_constant=refuse)

    def _compare(self, subject: str, expected: Iterable[str], actual: Iterable[str]) -> None:
        missing, extra = Counter(expected), Counter(actual)
        missing, extra = missing - extra, extra - missing
        for word, names in (("missing", missing), ("too many", extra)):
            if names:
                shown = ", ".join(map(repr, list(names)[:_NUM_SHOWN]))
                self.problems.append(f"{subject}: {names.total()} {word}: {shown}")

    def _check_unique(self, subject: str, ids: list[str]) -> None:
        doubled = [name for name, number in Counter(ids).items() if number > 1]
        if doubled:
            self.problems.append(f"{subject}: {len(doubled)} doubled: {', '.join(map(repr, doubled[:_NUM_SHOWN]))}")


def _fits(reason: str | None, record: Record) -> bool:
    return reason in record.reasons if record.reasons else reason not in _OF_IMAGES


def _digest(record: Record) -> str | None:
    return None if record.content is None else hashlib.sha256(record.content).hexdigest()


def _same(value: Any, expected: Any) -> bool:
    """Whether two values are the same JSON; 1 and True are not."""
    return json.dumps(value, sort_keys=True) == json.dumps(expected, sort_keys=True)


def _flat(counts: Counter[str]) -> list[str]:
    return [f"{label}: {number}" for label, number in counts.items()]


def _text_of(path: Path) -> Iterator[str]:
    """The text of a file; of a Parquet file, that of its rows."""
    if path.suffix != ".parquet":
        yield path.read_bytes().decode(errors="replace")
        return
    for row in pq.read_table(path).to_pylist():
        yield from (value for value in row.values() if isinstance(value, str))

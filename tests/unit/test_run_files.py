"""JSON files and columns of a run are read as dataclasses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from mpa_ray.errors import ConfigError
from mpa_ray.evaluation.scores import (
    BenchmarkScores,
    MetricReference,
    ModelScores,
    PairedDifference,
    Summary,
    read_scores,
    write_scores,
)
from mpa_ray.records import Annotation, Outcome
from mpa_ray.run.export_check import CheckedAnswer, ExportCheck
from mpa_ray.run.manifest import Manifest
from mpa_ray.run.run import CORPUS_MANIFEST, Run

FOLDER = "students/small/parity"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.open(str(tmp_path))


def test_scores_are_read_as_they_were_written(run: Run) -> None:
    groups = {"all": Summary(0.5, 0.25, 1.0, 8), "family: count": Summary(0.0, 0.0, 0.5, 2)}
    scores = BenchmarkScores(
        MetricReference("anls", "1.0", "me"),
        {"teacher": ModelScores(groups, 1, ["few"])},
        [PairedDifference("small.before", "small.after", groups)],
    )
    write_scores(run, {"docvqa": scores})
    assert read_scores(run) == {"docvqa": scores}
    (pair,) = run.read_json("evaluation/scores.json")["docvqa"]["differences"]
    assert (pair["from"], pair["to"]) == ("small.before", "small.after")


def test_the_answers_of_a_check_are_read_as_they_were_written(run: Run) -> None:
    check = ExportCheck((CheckedAnswer("1#0", "1", "/1.png", "what?", "a cat"),))
    check.write(run, FOLDER)
    assert ExportCheck.read(run, FOLDER) == check


def test_fields_of_another_version_are_ignored(run: Run) -> None:
    run.write_json(CORPUS_MANIFEST, {"num_images": 9, "num_shards": 2, "checksum": "x"})
    assert run.manifest() == Manifest(9, 2)
    run.write_json("parity/small/manifest.json", {"num_samples": 3})
    assert (run.parity_manifest("small").num_samples, run.parity_version("small")) == (3, "")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"num_images": 9}, "num_shards: Field required"),
        ({"num_images": "nine", "num_shards": 2}, "num_images: Input should be a valid integer"),
    ],
)
def test_a_file_with_other_content_is_named(run: Run, content: dict[str, int | str], problem: str) -> None:
    run.write_json(CORPUS_MANIFEST, content)
    with pytest.raises(ConfigError, match=rf"run_dir = .*corpus/manifest\.json cannot be read \({problem}.*\)\."):
        run.manifest()


@dataclass(frozen=True)
class Reviewed(Outcome):
    """Columns in another order than in the file, and one that the file does not have."""

    uri: str
    image_id: str
    reviewer: str | None


@dataclass(frozen=True)
class Counted:
    """A column that may not be None, and that the file does not have."""

    num_copies: int


@dataclass(frozen=True)
class Numbered:
    """A column with the wrong type."""

    image_id: int


def test_columns_are_read_as_the_fields_of_a_dataclass(run: Run) -> None:
    rows = [
        Annotation(f"{n}#0", f"{n}", f"/{n}", "kept" if n else "failed", None if n else "storage") for n in range(3)
    ]
    run.annotations.commit("000000", rows)
    assert run.annotations.columns("000000", Reviewed) == [
        Reviewed(row.state, row.reason, row.uri, row.image_id, None) for row in rows
    ]


@pytest.mark.parametrize("columns", [Counted, Numbered])
def test_columns_that_a_file_does_not_have_are_refused(run: Run, columns: type) -> None:
    run.annotations.commit("000000", [Annotation("1#0", "1", "/1", "kept")])
    with pytest.raises(ValueError, match=f"not {columns.__name__} rows"):
        run.annotations.columns("000000", columns)

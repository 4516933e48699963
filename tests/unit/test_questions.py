"""Benchmarks in a run: their questions in shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mpa_ray.config import EvaluateConfig, ObjectStoreConfig
from mpa_ray.corpus.places.places import Places
from mpa_ray.errors import ConfigError, FingerprintMismatch
from mpa_ray.evaluation.questions import metric_of, write_questions
from mpa_ray.records import LabelledQuestion
from mpa_ray.run.run import Run
from tests.conftest import write_images

PLACES = Places(ObjectStoreConfig())


def entry(number: int, image: int) -> dict[str, Any]:
    return {"question_id": f"q{number:02d}", "image": f"{image:03d}.png", "question": f"{number}?", "answers": ["1"]}


def benchmark(folder: Path, images: list[int]) -> Path:
    write_images(folder, max(images) + 1)
    lines = [json.dumps(entry(number, image)) for number, image in enumerate(images)]
    (folder / "questions.jsonl").write_text("\n".join(lines))
    return folder / "questions.jsonl"


def config(*paths: Path, shard_size: int = 4, **changes: Any) -> EvaluateConfig:
    benchmarks = [{"name": f"set{n}", "path": str(path), **changes} for n, path in enumerate(paths)]
    return EvaluateConfig.model_validate({"benchmarks": benchmarks, "shard_size": shard_size})


def run_in(folder: Path) -> Run:
    return Run.open(str(folder / "run"))


def shards(run: Run, name: str) -> list[list[LabelledQuestion]]:
    return [run.questions(name).read(shard) for shard in run.manifest(f"evaluation/{name}").shards]


def test_all_questions_on_an_image_are_in_one_shard(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    write_questions(config(benchmark(tmp_path / "set", [0, 1, 2, 0, 1, 2, 0, 1, 3, 3, 0])), run, PLACES)
    stored = shards(run, "set0")
    assert [[q.image_id for q in shard] for shard in stored] == [
        ["000.png"] * 4,
        ["001.png"] * 3 + ["002.png"] * 2,
        ["003.png"] * 2,
    ]
    assert [q.question_id for q in stored[0]] == ["q00", "q03", "q06", "q10"]
    assert run.manifest("evaluation/set0").num_images == 4


def test_a_limit_takes_the_first_questions(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    write_questions(config(benchmark(tmp_path / "set", [3, 1, 2, 0]), limit=2), run, PLACES)
    assert [[q.question_id for q in shard] for shard in shards(run, "set0")] == [["q01", "q00"]]


def test_stored_questions_are_not_read_again_and_may_not_change(tmp_path: Path) -> None:
    run, path = run_in(tmp_path), benchmark(tmp_path / "set", [0, 1])
    write_questions(config(path), run, PLACES)
    first = shards(run, "set0")
    (tmp_path / "set/000.png").unlink()
    write_questions(config(path, metric="anls"), run, PLACES)
    assert shards(run, "set0") == first
    path.write_text(path.read_text().replace('["1"]', '["2"]'))
    with pytest.raises(FingerprintMismatch, match=r"its dataset evaluation/set0/questions was made.*another name"):
        write_questions(config(path), run, PLACES)
    write_questions(config(benchmark(tmp_path / "other", [0])), run_in(tmp_path / "else"), PLACES)


def test_stored_questions_may_move_and_do_not_depend_on_the_size_of_shards(tmp_path: Path) -> None:
    run, path = run_in(tmp_path), benchmark(tmp_path / "set", [0, 1])
    write_questions(config(path), run, PLACES)
    first = shards(run, "set0")
    (tmp_path / "set").rename(tmp_path / "moved")
    write_questions(config(tmp_path / "moved/questions.jsonl", shard_size=1), run, PLACES)
    assert shards(run, "set0") == first


def test_errors_name_the_benchmark_by_its_index(tmp_path: Path) -> None:
    good, bad = benchmark(tmp_path / "a", [0]), benchmark(tmp_path / "b", [0, 1])
    (tmp_path / "b/001.png").unlink()
    run = run_in(tmp_path)
    with pytest.raises(
        ConfigError, match=r"^evaluate\.benchmarks\.1\.images = .*b/001\.png.*missing image files: 1 of 2"
    ):
        write_questions(config(good, bad), run, PLACES)
    bad.write_text('{"question_id": "q"}')
    with pytest.raises(ConfigError, match=r"^evaluate\.benchmarks\.0\.path = .*'image' is missing"):
        write_questions(config(bad), run_in(tmp_path / "else"), PLACES)
    assert not run.storage.exists("evaluation/set1/manifest.json")


def test_a_benchmark_has_its_own_metric_unless_another_is_set() -> None:
    def of(**settings: Any) -> str:
        return metric_of(EvaluateConfig.model_validate({"benchmarks": [settings]}).benchmarks[0], "relaxed_accuracy")

    assert of(path="a") == "relaxed_accuracy"
    assert of(path="a", kind="docvqa") == "anls"
    assert of(path="a", kind="vqav2", metric="vqa_accuracy_official") == "vqa_accuracy_official"


def test_names_of_benchmarks_differ() -> None:
    with pytest.raises(ValueError, match="benchmarks: names must be distinct"):
        EvaluateConfig.model_validate({"benchmarks": [{"path": "a"}, {"path": "b"}]})

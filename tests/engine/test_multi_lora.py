"""Adapters of one model, served in one engine with that model: each answers as it does alone in an engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.multi_lora import (
    annotated_run,
    differing,
    merged_models,
    verdicts_of,
    write_adapters,
    write_images,
)
from mpa_ray.config import ModelConfig, VllmEngineConfig, resolve_path
from mpa_ray.engine.vllm.engine import VllmEngine
from mpa_ray.models.shared_engines import Adapter
from mpa_ray.phases.context import RunContext
from mpa_ray.phases.evaluate import evaluate
from mpa_ray.phases.identify import identify, identify_student
from mpa_ray.run.run import Run
from mpa_ray.storage.user_cache import CACHE_VARIABLE

NUM_IMAGES = 96


def test_an_adapter_that_this_vllm_does_not_serve_is_refused_before_the_engine_starts(tmp_path: Path) -> None:
    """A request for it would kill the engine, and the images in the engine would be blamed."""
    base = resolve_path("bundled:demo/models/student")
    settings = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": ["q_proj"], "use_dora": True}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="DoRA"):
        VllmEngine(ModelConfig(model=base), VllmEngineConfig(), 8, {"dora": Adapter(str(tmp_path), base, 8)})


@pytest.mark.long
@pytest.mark.timeout(600)
def test_one_engine_gives_the_verdicts_of_separate_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every batch mixes base and adapters, and the cache is so small that all of it is evicted many times."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    questions = write_images(tmp_path / "images", NUM_IMAGES)
    models = write_adapters(tmp_path, 2)
    few_blocks = {"engine_args": {"num_gpu_blocks_override": 64}}
    rows = [
        {"question_id": name, "image": name, "question": q.question, "answers": [q.answer]}
        for name, q in questions.items()
    ]
    (tmp_path / "images/questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluation = {"benchmarks": [{"name": "same", "path": str(tmp_path / "images/questions.jsonl")}], "teacher": False}
    shared = annotated_run(tmp_path / "shared", tmp_path / "images", questions, models, few_blocks, evaluation)
    identify(RunContext.open(shared))
    run = Run.open(shared.run_dir)
    assert [path for path in run.storage.list("phases") if "identify" in path] == ["phases/identify.base.json"]

    merged = merged_models(models)
    separate = annotated_run(tmp_path / "separate", tmp_path / "images", questions, merged)
    for student in separate.students:
        identify_student(RunContext.open(separate), student)
    actual, expected = verdicts_of(shared), verdicts_of(separate)
    # If two answers were equally likely, the order of sums could decide; that never happened.
    assert [
        (name, one.question, one.student_answer, other.student_answer)
        for name, one, other in differing(actual, expected)
    ] == []
    assert {name: {id_: v.state for id_, v in rows.items()} for name, rows in actual.items()} == {
        name: {id_: v.state for id_, v in rows.items()} for name, rows in expected.items()
    }
    answers = {name: [v.student_answer for v in rows.values()] for name, rows in actual.items()}
    assert len({tuple(texts) for texts in answers.values()}) == 3, "the adapters change nothing"
    for name in models:
        assert run.storage.exists(f"parity/{name}/manifest.json")

    evaluate(RunContext.open(shared))
    assert [path for path in run.storage.list("phases") if "evaluate" in path] == ["phases/evaluate.base.before.json"]
    for name, rows_of in actual.items():
        answered = run.predictions("same", f"{name}.before").rows(run.manifest("evaluation/same").shards)
        assert {row.image_id: row.prediction for row in answered} == {
            v.image_id: v.student_answer for v in rows_of.values()
        }

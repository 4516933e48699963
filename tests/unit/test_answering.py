"""The pass in which models answer labelled questions."""

from __future__ import annotations

from pathlib import Path

from mpa_ray.config import EvaluationRunConfig, RunConfig
from mpa_ray.models.shared_engines import EngineGroup
from mpa_ray.phases.answering import answer_pass
from mpa_ray.phases.context import RunContext
from mpa_ray.phases.measured_models import comparisons, measured_models, upstream_of_model
from mpa_ray.pipeline.pass_spec import Pass
from mpa_ray.records import Prediction
from mpa_ray.run.phase_record import PhaseKey
from tests.conftest import scripted_tree


def answers_of(config: EvaluationRunConfig) -> Pass[Prediction]:
    context = RunContext.from_checked(config)
    model = measured_models(context)["rival"]
    run = context.run
    group = EngineGroup.single("rival", model)
    return answer_pass(
        context, PhaseKey("evaluate", "rival"), group, run.questions("set"), run.predictions("set", "rival")
    )


def test_images_are_read_with_the_configured_number_of_threads(tmp_path: Path) -> None:
    tree = {
        "run_dir": str(tmp_path / "run"),
        "reading": {"num_threads": 3},
        "evaluate": {
            "benchmarks": [{"path": "q.jsonl", "name": "set"}],
            "models": [{"name": "rival", "model": "scripted", "engine": {"kind": "scripted"}}],
        },
    }
    alone = EvaluationRunConfig.model_validate(tree)
    assert answers_of(alone).reader.num_threads == 3
    # The size limits of the corpus do not hold for benchmarks.
    of_run = scripted_tree(tmp_path, tmp_path / "run")
    of_run["source"] |= {"min_bytes": 100, "max_bytes": 200}
    reader = answers_of(RunConfig.model_validate({**of_run, **tree})).reader
    assert (reader.num_threads, reader.min_bytes, reader.max_bytes) == (3, 0, None)


def test_models_are_measured_compared_and_traced_to_their_training(tmp_path: Path) -> None:
    tree = scripted_tree(tmp_path, tmp_path / "run")
    tree["students"][0]["arms"] = ["parity", "random"]
    tree["evaluate"] = {
        "benchmarks": [{"path": "q.jsonl"}],
        "models": [{"name": "rival", "model": "other", "compared_to": "teacher"}],
    }
    context = RunContext.from_checked(RunConfig.model_validate(tree))
    assert list(measured_models(context)) == ["small.before", "teacher", "rival"]
    context.run.mark_leveled("small", "random")
    models = measured_models(context)
    assert list(models) == ["small.before", "small.random", "teacher", "rival"]
    assert models["small.random"].model == context.run.merged_model("small", "random")
    assert context.config.evaluate is not None
    assert comparisons(context.config, context.config.evaluate) == [
        ("small.before", "small.after"),
        ("small.before", "small.random"),
        ("teacher", "rival"),
    ]
    assert upstream_of_model(context.config, "small.random") == ["students/small/random"]
    assert upstream_of_model(context.config, "small.before") == upstream_of_model(context.config, "rival") == []

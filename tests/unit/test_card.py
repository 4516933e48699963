"""The model card of an exported student, and the learning rates of its components."""

from __future__ import annotations

from pathlib import Path

import yaml

from mpa_ray.config import FullConfig, LoraConfig, RunConfig
from mpa_ray.evaluation.scores import BenchmarkScores, MetricReference, ModelScores, Summary
from mpa_ray.leveling.trainable import learning_rates
from mpa_ray.metrics import METRICS
from mpa_ray.records import EpochCounts
from mpa_ray.report.card import model_card
from tests.conftest import scripted_tree

COUNTS = EpochCounts(12, 3, 0, 0, 0, 15)


def test_a_card_has_data_teacher_task_counts_versions_and_scores(tmp_path: Path) -> None:
    config = RunConfig.model_validate(scripted_tree(tmp_path, tmp_path / "run"))
    before = ModelScores({"all": Summary(0.5, 0.4, 0.6, 80)}, num_missing=0, warnings=[])
    after = ModelScores({"all": Summary(0.75, 0.7, 0.8, 80)}, num_missing=0, warnings=[])
    models = {"small.before": before, "small.after": after, "teacher": after}
    scores = {"held": BenchmarkScores(MetricReference.of(METRICS["anls"]), models, differences=[])}
    card = model_card(config, config.students[0], "parity", COUNTS, {"ray": "2.60.0"}, "## Use\n\nAsk.", scores)
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front)["base_model"] == "scripted"
    for part in (
        "aligned with `scripted`",
        "| task | demo_world |",
        "| D_PI | 12 samples |",
        "| method | kind lora, rank 16, alpha 32.0, dropout 0.0, components language, quantize no |",
        "ray 2.60.0",
        "| held | anls | 80 | 50.0 [40.0, 60.0] | 75.0 [70.0, 80.0] |\n\n## Use\n\nAsk.",
    ):
        assert part in body
    assert "benchmark" not in model_card(config, config.students[0], "parity", COUNTS, {}, "")


def test_each_component_has_its_own_rate_in_full_training() -> None:
    assert set(learning_rates(LoraConfig(), 1e-3).values()) == {1e-3}
    own = FullConfig(kind="full", components=("language", "vision"), projector_learning_rate=5e-4)
    assert learning_rates(own, 1e-3) == {"language": 1e-3, "projector": 5e-4, "vision": 1e-4}

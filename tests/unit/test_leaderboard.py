"""The table of all students and arms."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from mpa_ray.config import RunConfig
from mpa_ray.evaluation.scores import BenchmarkScores, Groups, MetricReference, ModelScores, PairedDifference, Summary
from mpa_ray.metrics import METRICS
from mpa_ray.records import EpochCounts
from mpa_ray.report.leaderboard import leaderboard, render_leaderboard
from mpa_ray.run.run import Run
from tests.conftest import scripted_tree


def group(mean: float) -> Groups:
    return {"all": Summary(mean, mean, mean, num_questions=10)}


def test_the_leaderboard_sorts_students_and_arms_by_gain_and_shows_their_cost(tmp_path: Path) -> None:
    tree = scripted_tree(tmp_path, tmp_path / "run")
    tree["students"] = [
        {**tree["students"][0], "name": name, "arms": ["parity", "random"], "gpus_per_replica": 0.5, "num_replicas": 4}
        for name in ("small", "late")
    ]
    config = RunConfig.model_validate(tree)
    run = Run.open(tree["run_dir"])
    for arm, num_samples in (("parity", 20), ("random", 15)):
        counts = EpochCounts(num_samples, 0, 0, 0, 0, num_samples)
        run.write_json(f"students/small/{arm}/epoch/manifest.json", asdict(counts))
        run.write_json(f"students/small/{arm}/complete.json", {})
    for phase, wall_s in (("identify.small", 100), ("level.small", 50), ("level.small@random", 30)):
        run.write_json(f"phases/{phase}.json", {"wall_s": wall_s})
    means = {"small.before": 0.5, "small.after": 0.7, "small.random": 0.8}
    scores = {
        "held": BenchmarkScores(
            metric=MetricReference.of(METRICS["anls"]),
            models={name: ModelScores(group(mean), num_missing=0, warnings=[]) for name, mean in means.items()},
            differences=[
                PairedDifference("small.before", "small.after", group(0.2)),
                PairedDifference("small.before", "small.random", group(0.3)),
            ],
        )
    }
    rows = leaderboard(run, config, scores)
    assert [(row.student, row.arm, row.num_chosen) for row in rows] == [
        ("small", "random", 15),
        ("small", "parity", 20),
    ]
    assert [(row.seconds, row.gpu_seconds) for row in rows] == [(130.0, 200.0), (150.0, 200.0)]
    assert [line.split() for line in render_leaderboard(rows).splitlines()] == [
        ["student", "samples", "held", "GPU-s"],
        ["small", "(random)", "15", "50.0", "80.0", "+30.0", "200"],
        ["small", "20", "50.0", "70.0", "+20.0", "200"],
    ]

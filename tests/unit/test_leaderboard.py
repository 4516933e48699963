"""The table of all students and arms."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from mpa_ray.config import RunConfig
from mpa_ray.records import EpochCounts
from mpa_ray.report.leaderboard import leaderboard, render_leaderboard
from mpa_ray.run.run import Run
from tests.conftest import scripted_tree


def group(mean: float) -> dict[str, Any]:
    return {"all": {"mean": mean, "low": mean, "high": mean, "num_questions": 10}}


def test_students_and_arms_by_their_gain_with_what_they_cost(tmp_path: Path) -> None:
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
    gains = {"small.after": 0.2, "small.random": 0.3}
    scores = {
        "held": {
            "models": {
                "small.before": {"groups": group(0.5)},
                "small.after": {"groups": group(0.7)},
                "small.random": {"groups": group(0.8)},
            },
            "differences": [{"from": "small.before", "to": to, "groups": group(gain)} for to, gain in gains.items()],
        }
    }
    rows = leaderboard(run, config, scores)
    assert [(row["student"], row["arm"], row["num_chosen"]) for row in rows] == [
        ("small", "random", 15),
        ("small", "parity", 20),
    ]
    assert [(row["seconds"], row["gpu_seconds"]) for row in rows] == [(130.0, 200.0), (150.0, 200.0)]
    assert [line.split() for line in render_leaderboard(rows).splitlines()] == [
        ["student", "samples", "held", "GPU-s"],
        ["small", "(random)", "15", "50.0", "80.0", "+30.0", "200"],
        ["small", "20", "50.0", "70.0", "+20.0", "200"],
    ]

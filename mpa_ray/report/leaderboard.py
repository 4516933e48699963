"""All students of a run, and all that they were trained on, in one table."""

from __future__ import annotations

from typing import Any

from mpa_ray.config import Arm, RunConfig, StudentConfig, measured_as
from mpa_ray.run.phase_record import PhaseKey, phase_record
from mpa_ray.run.run import Run


def leaderboard(run: Run, config: RunConfig, scores: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each student and arm that is trained, the largest mean gain first.

    `benchmarks` holds before, after and gain (mean, low, high) of each; `seconds` how long identification, training and
    measuring took, `gpu_seconds` the same times the GPUs that each was given.
    """
    rows = [_row(run, student, arm, scores) for student in config.students for arm in student.arms]
    return sorted((row for row in rows if row is not None), key=_mean_gain, reverse=True)


def _row(run: Run, student: StudentConfig, arm: Arm, scores: dict[str, Any]) -> dict[str, Any] | None:
    folder = run.student_dir(student.name, arm)
    if not run.storage.exists(f"{folder}/complete.json"):
        return None
    counts = run.read_json(f"{folder}/epoch/manifest.json")
    when = measured_as(arm)
    seconds, gpu_seconds = _cost(run, student, arm)
    return {
        "student": student.name,
        "arm": arm,
        "model": student.model,
        "method": student.level.method.kind,
        "num_chosen": counts["num_chosen"],
        "num_samples": counts["num_samples"],
        "benchmarks": {
            name: found
            for name, scored in scores.items()
            if (found := _scores(scored, f"{student.name}.before", f"{student.name}.{when}"))
        },
        "seconds": seconds,
        "gpu_seconds": gpu_seconds,
    }


def _scores(scored: dict[str, Any], before: str, after: str) -> dict[str, Any] | None:
    models = scored["models"]
    gains = [pair["groups"]["all"] for pair in scored["differences"] if (pair["from"], pair["to"]) == (before, after)]
    if before not in models or after not in models or not gains:
        return None
    return {"before": models[before]["groups"]["all"], "after": models[after]["groups"]["all"], "gain": gains[0]}


def _cost(run: Run, student: StudentConfig, arm: Arm) -> tuple[float, float]:
    """Of what the arm alone needs, and of identification, which the student's arms share."""
    name, trained = student.name, f"{student.name}.{measured_as(arm)}"
    serving = student.num_replicas * student.gpus_per_replica
    training = student.level.num_workers * student.level.gpus_per_worker
    phases = {
        PhaseKey("identify", name): serving,
        PhaseKey("level", name, arm): training,
        PhaseKey("check", name, arm): serving,
        PhaseKey("evaluate", f"{name}.before"): serving,
        PhaseKey("evaluate", trained): serving,
    }
    seconds = gpu_seconds = 0.0
    for key, num_gpus in phases.items():
        if (record := phase_record(run, key)) is not None:
            seconds, gpu_seconds = seconds + record.wall_s, gpu_seconds + num_gpus * record.wall_s
    return round(seconds, 1), round(gpu_seconds, 1)


def _mean_gain(row: dict[str, Any]) -> float:
    gains = [found["gain"]["mean"] for found in row["benchmarks"].values()]
    return sum(gains) / len(gains) if gains else -1.0


def render_leaderboard(rows: list[dict[str, Any]]) -> str:
    """Scores in percent, gains in points."""
    benchmarks = list(dict.fromkeys(name for row in rows for name in row["benchmarks"]))
    names = [row["student"] if row["arm"] == "parity" else f"{row['student']} ({row['arm']})" for row in rows]
    width = max(len("student"), *map(len, names))
    shown = "GPU-s" if any(row["gpu_seconds"] for row in rows) else "seconds"
    columns = [max(len(name), len("100.0 100.0 +100.0")) for name in benchmarks]
    head = "".join(f"  {name:>{size}}" for name, size in zip(benchmarks, columns, strict=True))
    lines = [f"{'student':<{width}}  {'samples':>8}{head}  {shown:>8}"]
    for name, row in zip(names, rows, strict=True):
        cells = "".join(
            f"  {_cell(row['benchmarks'].get(benchmark)):>{size}}"
            for benchmark, size in zip(benchmarks, columns, strict=True)
        )
        cost = row["gpu_seconds"] if shown == "GPU-s" else row["seconds"]
        lines.append(f"{name:<{width}}  {row['num_chosen']:>8}{cells}  {cost:>8.0f}")
    return "\n".join(lines)


def _cell(found: dict[str, Any] | None) -> str:
    if found is None:
        return "-"
    before, after, gain = (100 * found[name]["mean"] for name in ("before", "after", "gain"))
    return f"{before:.1f} {after:.1f} {gain:+.1f}"

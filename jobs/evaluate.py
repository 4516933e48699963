"""Measure models on labelled benchmarks: a run's students before and after, its teacher, and other checkpoints.

A configuration without source, teacher and students measures only `evaluate.models`.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mpa_ray.cli import parse_options, run_job
from mpa_ray.config import load_evaluation

SCORE_ONLY = ("--score-only", "only score stored predictions; no model is loaded")


def main() -> None:
    options, overrides = parse_options(__doc__, SCORE_ONLY)
    config = load_evaluation(options.config, overrides)
    from mpa_ray.phases.context import RunContext
    from mpa_ray.phases.evaluate import evaluate

    evaluate(RunContext.open(config), options.score_only)


if __name__ == "__main__":
    sys.exit(run_job(main))

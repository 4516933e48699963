"""Estimate what a run takes before it starts: hours, GPU-hours, cost, and whether its models fit the GPUs.

Rates come from the settings in `plan`, else from an earlier run (`--plan.from_run RUN`), else from estimates for known
GPUs. The exit code is 1 if a model does not fit.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mpa_ray.cli import parse_options, run_job
from mpa_ray.config import load_config


def main() -> int:
    options, overrides = parse_options(__doc__, ("--json", "print one JSON object, for programs"))
    config = load_config(options.config, overrides)
    from mpa_ray.sizing.plan import size_run
    from mpa_ray.sizing.render import render_sizing

    sizing = size_run(config)
    print(json.dumps(sizing.record(), indent=2) if options.json else render_sizing(sizing))
    return 0 if sizing.fits else 1


if __name__ == "__main__":
    sys.exit(run_job(main))

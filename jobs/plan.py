"""Reckon what a run takes before anything is started: hours, GPU-hours, cost, and whether its models fit the GPUs.

Rates are those that `plan` gives, else those of an earlier run (`--plan.from_run RUN`), else estimates for known GPUs.
The exit code is 1 where a model does not fit.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mpa_ray.cli import exit_code, parsed
from mpa_ray.config import load_config


def main() -> int:
    options, overrides = parsed(__doc__, ("--json", "for programs: one JSON object"))
    config = load_config(options.config, overrides)
    from mpa_ray.sizing.plan import size
    from mpa_ray.sizing.render import render_sizing

    sizing = size(config)
    print(json.dumps(sizing.record(), indent=2) if options.json else render_sizing(sizing))
    return 0 if sizing.fits else 1


if __name__ == "__main__":
    sys.exit(exit_code(main))

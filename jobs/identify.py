"""Ask every student the teacher's questions, and keep those that only the teacher answers correctly (D_PI)."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mpa_ray.cli import parse_options, run_job
from mpa_ray.config import load_config

REMATCH = ("--rematch", "only apply identify.matcher to stored verdicts; no model is loaded")


def main() -> None:
    options, overrides = parse_options(__doc__, REMATCH)
    config = load_config(options.config, overrides)
    from mpa_ray.phases.context import RunContext
    from mpa_ray.phases.identify import identify
    from mpa_ray.phases.rematch import rematch

    (rematch if options.rematch else identify)(RunContext.open(config))


if __name__ == "__main__":
    sys.exit(run_job(main))

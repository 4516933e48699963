"""Fine-tune every student on its parity samples (D_PI) for one epoch."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mpa_ray.cli import load_from_arguments, run_job
from mpa_ray.config import RunConfig


def main(config: RunConfig) -> None:
    from mpa_ray.phases.context import RunContext
    from mpa_ray.phases.level import level

    level(RunContext.open(config))


if __name__ == "__main__":
    sys.exit(run_job(lambda: main(load_from_arguments(__doc__))))

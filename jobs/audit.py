"""Recount a run from its files: JSON on standard output, exit code 1 where an image is missing or counted twice."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mpa_ray.command_line import exit_code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", metavar="RUN", help="a run directory")
    options = parser.parse_args()
    from mpa_ray.store.audit import audit
    from mpa_ray.store.run import Run
    from mpa_ray.store.storage import open_storage

    counts = audit(Run(open_storage(options.run_dir)))
    print(json.dumps(counts, indent=2, ensure_ascii=False))
    return 1 if counts["problems"] else 0


if __name__ == "__main__":
    sys.exit(exit_code(main))

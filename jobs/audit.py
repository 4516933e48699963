"""Recount a run from its files: JSON on standard output, exit code 1 if an image is missing or counted twice.

With --collect, also remove files that failed and slower attempts left behind.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mpa_ray.cli import parse_run_options, run_job


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--collect", action="store_true", help="remove files that belong to no committed shard")
    parser.add_argument(
        "--older-than-hours",
        type=float,
        default=24.0,
        metavar="H",
        help="with --collect: only files older than this; no attempt may take longer (default: 24)",
    )
    options, object_store = parse_run_options(parser)
    from mpa_ray.run.audit import audit
    from mpa_ray.run.garbage import collect_garbage
    from mpa_ray.run.run import Run
    from mpa_ray.storage.open import open_storage

    run = Run(open_storage(options.run_dir, object_store))
    counts = audit(run)
    summary = counts.to_json()
    if options.collect:
        summary["collected"] = asdict(collect_garbage(run, timedelta(hours=options.older_than_hours)))
    print(json.dumps(summary, indent=2, ensure_ascii=False))
    return 1 if counts.problems else 0


if __name__ == "__main__":
    sys.exit(run_job(main))

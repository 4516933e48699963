"""Show the progress of a run from its files, on any machine that can read them."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mpa_ray.cli import parse_run_options, run_job


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    parser.add_argument("--count", action="store_true", help="read all rows and count kept, dropped and failed")
    options, object_store = parse_run_options(parser)
    from mpa_ray.report.render_status import render_status
    from mpa_ray.report.status import status
    from mpa_ray.run.run import Run
    from mpa_ray.storage.open import open_storage

    run_status = status(Run(open_storage(options.run_dir, object_store)), options.count)
    print(json.dumps(run_status.to_json(), indent=2, ensure_ascii=False) if options.json else render_status(run_status))


if __name__ == "__main__":
    sys.exit(run_job(main))

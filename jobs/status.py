"""Show how far a run has come, from its files alone: on any machine that can read them, at any time."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mpa_ray.cli import exit_code, of_a_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="for programs: one JSON object")
    parser.add_argument("--count", action="store_true", help="read all rows' states: kept, dropped and failed so far")
    options, object_store = of_a_run(parser)
    from mpa_ray.report.render_status import render_status
    from mpa_ray.report.status import status
    from mpa_ray.run.run import Run
    from mpa_ray.storage.storage import open_storage

    now = status(Run(open_storage(options.run_dir, object_store)), options.count)
    print(json.dumps(now.to_json(), indent=2, ensure_ascii=False) if options.json else render_status(now))


if __name__ == "__main__":
    sys.exit(exit_code(main))

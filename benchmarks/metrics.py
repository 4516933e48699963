"""The time of each metric on a million hostile strings, and the memory of scoring a million predictions.

    python benchmarks/metrics.py [--num-strings 1000000] [--num-predictions 1000000]

A string has up to 20 pieces: digits, punctuation, articles, letters of several scripts, white space and lone
surrogates. Each is scored against one to three others; an exception or a score outside [0, 1] ends the benchmark.
Predictions are stored in a run directory as evaluation stores them. They are scored as `jobs/evaluate.py --score-only`
does: two models with their groups, intervals and paired difference.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from mpa_ray.evaluation.score import score_benchmark
from mpa_ray.metrics import METRICS
from mpa_ray.observability.progress import Progress, say
from mpa_ray.records import Prediction, State
from mpa_ray.run.markers import shard_name
from mpa_ray.run.run import Run

PIECES = [*"aAthe onez1234567890,.%$€'\"-–+!?/\\()[]{}:;éüßж犬日٣\u00a0\u3000\n\t\ud800", "the ", "two", "1e5", "don't"]  # noqa: RUF001
SHARD_SIZE = 1024
MIB = 2**20


def strings(count: int, seed: int) -> Iterator[str]:
    rng = random.Random(seed)
    for _ in range(count):
        yield "".join(rng.choices(PIECES, k=rng.randrange(21)))


def fuzz(metric: str, count: int) -> float:
    """Seconds that the metric takes, without the making of the strings."""
    score, elapsed_s = METRICS[metric].score, 0.0
    texts = strings(4 * count, seed=1)
    with Progress(metric, count, "strings") as progress:
        for number in range(count):
            prediction, *answers = (next(texts) for _ in range(2 + number % 3))
            started = time.perf_counter()
            value = score(prediction, answers)
            elapsed_s += time.perf_counter() - started
            assert 0 <= value <= 1, (prediction, answers, value)
            if number % 10_000 == 9_999:
                progress.advance(10_000)
    return elapsed_s


def write_predictions(run: Run, count: int) -> None:
    """Store the predictions of two models, of which the second is right more often."""
    rng = random.Random(0)
    with Progress("write predictions", 2 * count, "rows") as progress:
        for model, share in (("before", 0.5), ("after", 0.7)):
            for shard in range(0, count, SHARD_SIZE):
                numbers = range(shard, min(count, shard + SHARD_SIZE))
                rows = [prediction(number, rng.random() < share) for number in numbers]
                run.predictions("set", model).commit(shard_name(shard // SHARD_SIZE), rows)
                progress.advance(len(rows))


def prediction(number: int, is_right: bool) -> Prediction:
    answers = [f"{number % 97} dogs"] * 7 + ["dogs", "many", "a few dogs"]
    image = f"i{number // 4}"
    return Prediction(
        question_id=f"q{number}",
        image_id=image,
        uri=f"/{image}.jpg",
        question="How many dogs?",
        answers=answers,
        family=f"family {number % 9}",
        state=State.KEPT.value,
        prediction=answers[0] if is_right else "cats",
    )


def score_all(folder: str, count: int) -> dict[str, Any]:
    """Score both models in this process, and measure the time and the peak memory."""
    run = Run.open(folder)
    shards = [shard_name(index) for index in range(-(-count // SHARD_SIZE))]
    before, started = psutil.Process().memory_info().rss, time.monotonic()
    with Progress("score", 2, "models") as progress:
        rows = {model: partial(run.predictions("set", model).rows, shards) for model in ("before", "after")}
        scores = score_benchmark("vqa_accuracy", rows, [("before", "after")], progress)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "num_predictions": count,
        "seconds": round(time.monotonic() - started, 1),
        "mib_before": round(before / MIB),
        "mib_at_most": round(peak / MIB),
        "means": {name: round(model.overall.mean, 4) for name, model in scores.models.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-strings", type=int, default=1_000_000)
    parser.add_argument("--num-predictions", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--score", metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.score:
        (count,) = options.num_predictions
        print(json.dumps(score_all(options.score, count)))
        return
    seconds = {metric: round(fuzz(metric, options.num_strings), 1) for metric in METRICS}
    scored = []
    for count in options.num_predictions:
        with tempfile.TemporaryDirectory() as folder:
            write_predictions(Run.open(folder), count)
            # In a new process, since the peak memory of this one includes the predictions that it wrote.
            command = [sys.executable, __file__, "--score", folder, "--num-predictions", str(count)]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            scored.append(json.loads(output.splitlines()[-1]))
    results = {
        "conditions": {"processor": platform.processor() or platform.machine(), "python": platform.python_version()},
        "num_strings": options.num_strings,
        "seconds_by_metric": seconds,
        "scoring": scored,
    }
    (ROOT / "benchmarks/results/metrics.json").write_text(json.dumps(results, indent=2) + "\n")
    say(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()

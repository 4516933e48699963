"""What each command does. Ray, torch and vLLM are imported only where a phase needs them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from mpa_ray.api.phases import Phase, align, run_phase
from mpa_ray.cli.arguments import Arguments
from mpa_ray.config import (
    EvaluationRunConfig,
    RunConfig,
    load_config,
    load_evaluation,
    load_object_store,
    resolve_path,
)
from mpa_ray.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from mpa_ray.run.run import Run

_STARTERS = Path(__file__).parent / "starters"
_DEMO = "bundled:demo/demo.yaml"


def _config(arguments: Arguments) -> RunConfig:
    return load_config(_config_file(arguments), arguments.settings)


def _evaluation(arguments: Arguments) -> EvaluationRunConfig:
    return load_evaluation(_config_file(arguments), arguments.settings)


def _config_file(arguments: Arguments) -> str:
    return arguments.required("config", "`mpa-ray init > my.yaml` writes a file to start from.")


def _open_run(arguments: Arguments) -> Run:
    if arguments.argument is None:
        raise ConfigError("RUN", None, "is required.", "Give a run directory, such as runs/mine or s3://bucket/run.")
    object_store = load_object_store(arguments.settings)
    path = arguments.argument
    if path.endswith((".yaml", ".yml")) and Path(path).is_file():
        raise ConfigError("RUN", path, "is a file, and this command takes a run directory.", "Give its run_dir.")
    from mpa_ray.run.run import Run
    from mpa_ray.storage.open import open_storage

    return Run(open_storage(path, object_store))


def _align(arguments: Arguments) -> None:
    align(_config(arguments))


def _phase(phase: Phase) -> Callable[[Arguments], None]:
    return lambda arguments: run_phase(_config(arguments), phase)


def _identify(arguments: Arguments) -> None:
    config = _config(arguments)
    if not arguments.has("rematch"):
        run_phase(config, "identify")
        return
    from mpa_ray.phases.context import RunContext
    from mpa_ray.phases.rematch import rematch

    rematch(RunContext.open(config))


def _evaluate(arguments: Arguments) -> None:
    run_phase(_evaluation(arguments), "score" if arguments.has("score-only") else "evaluate")


def _report(arguments: Arguments) -> None:
    if arguments.argument is None:
        run_phase(_evaluation(arguments), "report")
        return
    if arguments.has("config"):
        raise ConfigError("RUN", arguments.argument, "is given beside --config.", "Give one of them.")
    run = _open_run(arguments)
    from mpa_ray.phases.context import RunContext
    from mpa_ray.phases.report import report
    from mpa_ray.run.recorded_config import read_config

    # On this machine, the run's folder and object store may have other names than where it was written.
    here: dict[str, object] = {"run_dir": run.storage.root}
    if arguments.settings:
        here["object_store"] = load_object_store(arguments.settings)
    report(RunContext.from_checked(read_config(run).model_copy(update=here)))


def _audit(arguments: Arguments) -> int:
    older_than = timedelta(hours=arguments.number("older-than-hours", 24.0))
    run = _open_run(arguments)
    from mpa_ray.run.audit import audit
    from mpa_ray.run.garbage import collect_garbage

    counts = audit(run)
    summary = counts.to_json()
    if arguments.has("collect"):
        summary["collected"] = asdict(collect_garbage(run, older_than))
    print(json.dumps(summary, indent=2, ensure_ascii=False))
    return 1 if counts.problems else 0


def _status(arguments: Arguments) -> None:
    run = _open_run(arguments)
    from mpa_ray.report.render_status import render_status
    from mpa_ray.report.status import status

    run_status = status(run, arguments.has("count"))
    as_json = arguments.has("json")
    print(json.dumps(run_status.to_json(), indent=2, ensure_ascii=False) if as_json else render_status(run_status))


def _plan(arguments: Arguments) -> int:
    config = _config(arguments)
    from mpa_ray.sizing.plan import size_run
    from mpa_ray.sizing.render import render_sizing

    sizing = size_run(config)
    print(json.dumps(sizing.record(), indent=2) if arguments.has("json") else render_sizing(sizing))
    return 0 if sizing.fits else 1


def _demo(arguments: Arguments) -> None:
    seed, num_images = int(arguments.number("seed", 0)), int(arguments.number("num-images", 4000))
    out = Path(arguments.options.get("out", f"runs/demo-{seed}")).expanduser()
    settings = {
        "run_dir": str(out / "run"),
        "source.path": str(out / "data/unlabeled"),
        "evaluate.benchmarks.0.path": str(out / "data/heldout/questions.jsonl"),
        "annotate.sampling.seed": str(seed),
        "students.0.level.seed": str(seed),
    }
    config = load_config(arguments.options.get("config", resolve_path(_DEMO)), {**settings, **arguments.settings})
    from mpa_ray.demo.images import write_data

    write_data(out / "data", num_images, seed)
    align(config)


def _init(arguments: Arguments) -> None:
    cases = [path.stem for path in sorted(_STARTERS.glob("*.yaml"))]
    case = arguments.argument or ("gpu" if Path("/dev/nvidiactl").exists() else "cpu")
    if case not in cases:
        remedy = did_you_mean(case, cases) or f"Choose one of {', '.join(cases)}."
        raise ConfigError("mpa-ray init", case, "is not a case.", remedy)
    print((_STARTERS / f"{case}.yaml").read_text(encoding="utf-8"), end="")


HANDLERS: dict[str, Callable[[Arguments], int | None]] = {
    "align": _align,
    "index": _phase("index"),
    "annotate": _phase("annotate"),
    "identify": _identify,
    "level": _phase("level"),
    "evaluate": _evaluate,
    "report": _report,
    "audit": _audit,
    "status": _status,
    "plan": _plan,
    "demo": _demo,
    "init": _init,
}
"""By the names of the commands. Each returns its exit code, or None for 0."""

"""The functions that run the commands.

Each function imports the packages that it needs, because `setup-cpu` runs before any package is installed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import mpa_ray
from mpa_ray.cli.arguments import Arguments
from mpa_ray.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from mpa_ray.api.phases import Phase
    from mpa_ray.config import EvaluationRunConfig, RunConfig
    from mpa_ray.run.run import Run

_STARTERS = Path(__file__).parent / "starters"
_DEMO = "bundled:demo/demo.yaml"


def _config(arguments: Arguments) -> RunConfig:
    return mpa_ray.load_config(_config_file(arguments), arguments.settings)


def _evaluation(arguments: Arguments) -> EvaluationRunConfig:
    return mpa_ray.load_evaluation(_config_file(arguments), arguments.settings)


def _config_file(arguments: Arguments) -> str:
    return arguments.required("config", "`mpa-ray init > my.yaml` writes a file to start from.")


def _open_run(arguments: Arguments, *, allows_damage: bool = False) -> Run:
    if arguments.argument is None and (file := arguments.settings.get("config")) is not None:
        problem = "is not an option of this command, which takes a run directory."
        raise ConfigError("--config", file, problem, "Give the run_dir that the file sets.")
    if arguments.argument is None:
        raise ConfigError("RUN", None, "is required.", "Give a run directory, such as runs/mine or s3://bucket/run.")
    from mpa_ray.config import load_object_store

    object_store = load_object_store(arguments.settings)
    path = arguments.argument
    if path.endswith((".yaml", ".yml")) and Path(path).is_file():
        raise ConfigError(
            "RUN", path, "is a file, and this command takes a run directory.", "Give the run_dir that the file sets."
        )
    from mpa_ray.run.run import Run
    from mpa_ray.storage.open import open_storage

    return Run(open_storage(path, object_store), allows_damage=allows_damage)


def _align(arguments: Arguments) -> None:
    mpa_ray.align(_config(arguments), redo=arguments.options.get("redo"), relevel=arguments.has("relevel"))


def _phase(phase: Phase) -> Callable[[Arguments], None]:
    return lambda arguments: mpa_ray.run_phase(
        _config(arguments), phase, redo=arguments.options.get("redo"), relevel=arguments.has("relevel")
    )


def _identify(arguments: Arguments) -> None:
    config = _config(arguments)
    if not arguments.has("rematch"):
        mpa_ray.run_phase(config, "identify", redo=arguments.options.get("redo"))
        return
    from mpa_ray.api.phases import check_begun
    from mpa_ray.phases.context import RunContext
    from mpa_ray.phases.rematch import rematch

    check_begun(config, "identify")
    rematch(RunContext.open(config))


def _evaluate(arguments: Arguments) -> None:
    phase: Phase = "score" if arguments.has("score-only") else "evaluate"
    mpa_ray.run_phase(_evaluation(arguments), phase, redo=arguments.options.get("redo"))


def _report(arguments: Arguments) -> None:
    if arguments.argument is None:
        mpa_ray.run_phase(_evaluation(arguments), "report")
        return
    if arguments.has("config"):
        raise ConfigError("RUN", arguments.argument, "is given together with --config.", "Give only one of them.")
    run = _open_run(arguments)
    from mpa_ray.config import load_object_store
    from mpa_ray.phases.context import RunContext
    from mpa_ray.phases.report import report
    from mpa_ray.run.recorded_config import read_config

    # The stored configuration may come from another machine, where the run directory and object store differ.
    here: dict[str, object] = {"run_dir": run.storage.root}
    if arguments.settings:
        here["object_store"] = load_object_store(arguments.settings)
    report(RunContext.from_checked(read_config(run).model_copy(update=here)))


def _audit(arguments: Arguments) -> int:
    older_than = timedelta(hours=arguments.number("older-than-hours", 24.0))
    run = _open_run(arguments, allows_damage=True)
    from mpa_ray.run.audit import audit
    from mpa_ray.run.audit_deep import audit_deep
    from mpa_ray.run.garbage import collect_garbage

    findings = audit_deep(run) if arguments.has("deep") or arguments.has("repair") else []
    try:
        summary = audit(run).to_json()
    except ConfigError as error:
        if not findings:
            raise
        # Because of a damaged file, the rows cannot be counted.
        summary = {"problems": [str(error)]}
    if findings:
        repaired = {finding.path for finding in findings if arguments.has("repair") and finding.repair()}
        summary["damage"] = [
            {**finding.to_json(run.storage.root), "repaired": finding.path in repaired} for finding in findings
        ]
    if arguments.has("collect"):
        summary["collected"] = asdict(collect_garbage(run, older_than))
    print(json.dumps(summary, indent=2, ensure_ascii=False))
    return 1 if findings or summary["problems"] else 0


def _status(arguments: Arguments) -> None:
    run = _open_run(arguments)
    from mpa_ray.report.render_status import render_status
    from mpa_ray.report.status import status

    run_status = status(run, arguments.has("count"))
    as_json = arguments.has("json")
    print(json.dumps(run_status.to_json(), indent=2, ensure_ascii=False) if as_json else render_status(run_status))


def _plan(arguments: Arguments) -> int:
    config = _config(arguments)
    from mpa_ray.phases.preflight import check_task
    from mpa_ray.sizing.plan import size_run
    from mpa_ray.sizing.render import render_sizing

    check_task(config)
    sizing = size_run(config)
    print(json.dumps(sizing.to_json(), indent=2) if arguments.has("json") else render_sizing(sizing))
    return 0 if sizing.fits else 1


def _demo(arguments: Arguments) -> None:
    seed, num_images = arguments.whole_number("seed", 0), arguments.whole_number("num-images", 4000)
    out = Path(os.path.expanduser(arguments.options.get("out", f"runs/demo-{seed}")))
    settings = {
        "run_dir": str(out / "run"),
        "source.path": str(out / "data/unlabeled"),
        "evaluate.benchmarks.0.path": str(out / "data/heldout/questions.jsonl"),
        "annotate.sampling.seed": str(seed),
        "students.0.level.seed": str(seed),
    }
    from mpa_ray.config import resolve_path
    from mpa_ray.demo.images import write_data
    from mpa_ray.observability.progress import say

    config_file = arguments.options.get("config", resolve_path(_DEMO))
    config = mpa_ray.load_config(config_file, {**settings, **arguments.settings})
    say(f"The demo aligns a bundled student with a bundled teacher, on {num_images} images drawn in {out}/data.")
    say("On 2 cores this takes at least 5 minutes: most phases start an engine, which takes at least half a minute.")
    write_data(out / "data", num_images, seed)
    mpa_ray.align(config)
    say(
        "\nTo align a student on your own images: mpa-ray init > my.yaml, edit the file, mpa-ray align --config my.yaml"
    )


def _init(arguments: Arguments) -> None:
    cases = [path.stem for path in sorted(_STARTERS.glob("*.yaml"))]
    case = arguments.argument or ("gpu" if Path("/dev/nvidiactl").exists() else "cpu")
    if case not in cases:
        remedy = did_you_mean(case, cases) or f"Choose one of {', '.join(cases)}."
        if case.endswith((".yaml", ".yml")):
            remedy = f"To write a starter file, run mpa-ray init > {case}."
        raise ConfigError("mpa-ray init", case, "is not a starter file.", remedy)
    print((_STARTERS / f"{case}.yaml").read_text(encoding="utf-8"), end="")


def _setup_cpu(arguments: Arguments) -> None:
    from mpa_ray.cli.setup_cpu import TORCH_INDEX, ThisEnvironment, check_machine, own_requirements, setup_cpu

    options, environment = arguments.options, ThisEnvironment()
    check_machine(gpu_version=environment.version("vllm"))
    requirements = own_requirements(options.get("extra"), options.get("vllm"))
    setup_cpu(environment, requirements, options.get("torch-index", TORCH_INDEX), arguments.has("dry-run"))


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
    "setup-cpu": _setup_cpu,
}
"""The functions that run the commands, by command. Each returns the exit code, or None for 0."""

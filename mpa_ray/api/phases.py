"""Run phases from Python, as the commands do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePath
from typing import Any, Literal, get_args

from mpa_ray.config import EvaluationRunConfig, RunConfig
from mpa_ray.errors import ConfigError, did_you_mean

Phase = Literal["index", "annotate", "identify", "level", "evaluate", "score", "report"]
"""The phases in their order. `evaluate` includes `score`; `score` alone only scores stored predictions."""

_WITHOUT_STUDENTS = ("evaluate", "score", "report")
"""The phases that also exist in a run that only measures models."""
_WITH_MODELS = ("annotate", "identify", "level", "evaluate")
"""The phases that run models and may therefore need Ray."""


def run_phase(config: EvaluationRunConfig, phase: Phase, *, redo: str | None = None, relevel: bool = False) -> None:
    """Run one phase of a run, for all students. The phase continues where an earlier attempt ended.

    Progress goes to standard output, results go to the run directory. Phases with models use the Ray cluster that
    `RAY_ADDRESS` names or, if it is not set, start Ray on this machine.

    Args:
        config: The settings, from `load_config`. `evaluate`, `score` and `report` also accept the settings of a run
            that only measures models, from `load_evaluation`.
        phase: The phase: `index`, `annotate`, `identify`, `level`, `evaluate`, `score` or `report`.
        redo: In `annotate`, `identify` and `evaluate`: process again the images that failed for this reason, or for one
            of several reasons, separated by commas; `failed` means any reason. All other rows are kept.
        relevel: In `level`: train again the students whose D_PI was redone after their training.

    Raises:
        ConfigError: a setting is wrong, or the run has results that were made with other settings. Nothing was started.
        RunError: the phase failed, or an earlier phase is not done. Finished work is kept. The error is `Unfinished` if
            its cause may be temporary, even if only some images failed for such a cause.
    """
    _check_config(config)
    if phase not in get_args(Phase):
        remedy = did_you_mean(phase, get_args(Phase)) or f"Choose one of {', '.join(get_args(Phase))}."
        raise ConfigError("phase", phase, "is not a phase.", remedy)
    if phase not in _WITHOUT_STUDENTS and not isinstance(config, RunConfig):
        problem = "needs a run with source, teacher and students, and this one only measures models."
        raise ConfigError("phase", phase, problem, f"Choose one of {', '.join(_WITHOUT_STUDENTS)}.")
    from mpa_ray.phases.context import RunContext
    from mpa_ray.phases.repeated_work import Again
    from mpa_ray.phases.resource_needs import check_resources_of
    from mpa_ray.run.commands import command_recorded

    again = Again.of(redo, relevel)
    if phase in _WITH_MODELS:
        _check_cluster()
    check_resources_of(config, phase)
    check_begun(config, phase)
    context = RunContext.open(config, again, reads_benchmarks=phase == "evaluate")
    with command_recorded(context.run.storage, f"mpa-ray {'evaluate' if phase == 'score' else phase}"):
        _function_of(phase)(context)
        context.failures.check()


def check_begun(config: EvaluationRunConfig, phase: Phase) -> None:
    """Check that the run has what a phase reads. `index` and `evaluate` may begin a run; other phases may not.

    Raises:
        ConfigError: there is no run in the run directory, or its images are not indexed. Nothing was written.
    """
    if phase in ("index", "evaluate"):
        return
    from mpa_ray.run.run import RUN_FILE, Run
    from mpa_ray.storage.open import open_storage

    run = Run(open_storage(config.run_dir, config.object_store))
    if phase not in _WITHOUT_STUDENTS:
        run.manifest()
    elif not run.storage.exists(RUN_FILE):
        verb = "score" if phase == "score" else "report"
        remedy = "Run mpa-ray align or mpa-ray evaluate first, or correct run_dir."
        raise ConfigError("run_dir", config.run_dir, f"holds no run, so there is nothing to {verb}.", remedy)


def align(config: RunConfig, *, redo: str | None = None, relevel: bool = False) -> None:
    """Run all phases for all students, as many at the same time as the cluster allows.

    A student that fails does not stop the others. Repeat the call to do what is missing.

    Args:
        config: The settings, from `load_config`.
        redo: See `run_phase`. It applies to the teacher, the students and the evaluation.
        relevel: See `run_phase`.

    Raises:
        ConfigError: a setting that all students need is wrong. Nothing was started.
        RunError: the teacher's pass or some students failed; the error names them. Finished work is kept. The error is
            `Unfinished` for the same reasons as in `run_phase`.
    """
    _check_config(config)
    if not isinstance(config, RunConfig):
        problem = "only measures models: it has no source, teacher and students."
        raise ConfigError("config", type(config).__name__, problem, 'Call run_phase(config, "evaluate").')
    from mpa_ray.campaign.campaign import align as align_students
    from mpa_ray.phases.repeated_work import Again

    options = Again.of(redo, relevel)
    _check_cluster()
    align_students(config, again=options)


def _check_cluster() -> None:
    from mpa_ray.pipeline.cluster_address import check_cluster

    check_cluster()


def _check_config(config: object) -> None:
    if isinstance(config, EvaluationRunConfig):
        return
    is_path = isinstance(config, str | PurePath)
    remedy = f"Pass load_config({str(config)!r})." if is_path else "Pass what load_config or load_evaluation returns."
    raise ConfigError("config", config, f"is a {type(config).__name__}, not a loaded configuration.", remedy)


def _function_of(phase: Phase) -> Callable[[Any], object]:
    # Each phase is imported only when it runs, since some of them import Ray or torch.
    if phase == "index":
        from mpa_ray.phases.index import index

        return index
    if phase == "annotate":
        from mpa_ray.phases.annotate import annotate

        return annotate
    if phase == "identify":
        from mpa_ray.phases.identify import identify

        return identify
    if phase == "level":
        from mpa_ray.phases.level import level

        return level
    if phase == "report":
        from mpa_ray.phases.report import report

        return report
    from mpa_ray.phases.evaluate import evaluate

    return lambda context: evaluate(context, score_only=phase == "score")

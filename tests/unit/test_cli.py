"""The command line: help, exit codes, starters, and answers to mistakes."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
import yaml

import mpa_ray
from mpa_ray.cli import main
from mpa_ray.cli.arguments import Arguments, parse
from mpa_ray.cli.commands import COMMANDS
from mpa_ray.cli.handlers import HANDLERS
from mpa_ray.cli.run_job import EXIT_CODES, run_job
from mpa_ray.config import EvaluationRunConfig, RunConfig, ScriptedEngineConfig, load_config
from mpa_ray.config.setting_path import all_settings
from mpa_ray.errors import CannotWrite, ConfigError, RunError, TransientError, Unfinished, did_you_mean
from mpa_ray.models.hub import process_hub
from mpa_ray.run.run import Run
from tests.conftest import scripted_tree

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "ray", "vllm", "transformers"}
JOB = '''"""`mpa-ray {name}`, for `ray job submit --working-dir .`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mpa_ray.cli import main

if __name__ == "__main__":
    sys.exit(main([Path(__file__).stem, *sys.argv[1:]]))
'''


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


# --- Help


def test_help_needs_neither_the_settings_nor_anything_heavy() -> None:
    done = run_python(
        "import sys; from mpa_ray.cli import main\n"
        "assert main(['--help']) == main(['--version']) == main(['init', '--help']) == 0\n"
        f"heavy = {HEAVY | {'pyarrow', 'numpy', 'pydantic', 'yaml'}} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    assert done.returncode == 0, done.stderr


def test_help_of_all_commands_imports_nothing_heavy() -> None:
    done = run_python(
        "import sys; from mpa_ray.cli import main\n"
        f"for name in {list(COMMANDS)}:\n"
        "    assert main([name, '--help']) == main([name, '--help-all']) == 0\n"
        f"heavy = {HEAVY | {'pyarrow', 'numpy'}} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    assert done.returncode == 0, done.stderr


def test_the_help_lists_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"], ["-h"], ["help"]):
        assert main(words) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "usage: mpa-ray COMMAND [options]"
        assert all(any(line.startswith(f"  {name} ") for line in lines) for name in COMMANDS)
        assert len(lines) < 50


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_is_short(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "110")
    assert main([name, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"usage: mpa-ray {name} ")
    assert len(lines) < 60
    assert sum(line.startswith(f"  mpa-ray {name}") for line in lines) == 3


def test_all_settings_and_exit_codes_are_in_the_long_help(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help-all"], ["align", "--help-all"]):
        assert main(words) == 0
        text = capsys.readouterr().out
        assert EXIT_CODES in text
        for name, setting in all_settings(RunConfig):
            last = name.rpartition(".")[2]
            assert re.search(rf"^  (--|\.){last}\b", text, re.MULTILINE) or setting.description is None, name
        assert "\nteacher, students.0, evaluate.models.0\n" in text


def test_knobs_of_the_scripted_engine_are_in_no_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name in (None, *COMMANDS):
        for flag in ("--help", "--help-all"):
            main([word for word in (name, flag) if word is not None])
    text = capsys.readouterr().out
    knobs = set(ScriptedEngineConfig.model_fields) - {"kind", "num_questions"}
    assert len(knobs) > 8
    assert not [knob for knob in {*knobs, "scripted"} if knob in text]


def test_common_settings_exist() -> None:
    known = dict(all_settings(RunConfig))
    assert not [name for command in COMMANDS.values() for name in command.common_settings if name not in known]


def test_examples_parse(tmp_path: Path) -> None:
    starter = (ROOT / "mpa_ray/cli/starters/gpu.yaml").read_text()
    path = tmp_path / "my.yaml"
    path.write_text(f"{starter}\nevaluate: {{benchmarks: [{{path: q.jsonl}}]}}\n")
    for command in COMMANDS.values():
        for example in command.examples:
            words = [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', example.partition(" > ")[0])]
            assert words[:2] == ["mpa-ray", command.name]
            arguments = parse(command, words[2:])
            if arguments.has("config"):
                load_config(path, arguments.settings)


def test_every_command_has_a_handler_and_a_job() -> None:
    assert list(COMMANDS) == list(HANDLERS)
    jobs = {path.stem: path.read_text() for path in (ROOT / "jobs").glob("*.py")}
    # setup-cpu changes the environment of one machine, which a job on a cluster must not do.
    assert jobs == {name: JOB.format(name=name) for name in COMMANDS if name != "setup-cpu"}


def test_a_job_is_the_command(tmp_path: Path) -> None:
    words = [sys.executable, str(ROOT / "jobs/init.py"), "cpu"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, (ROOT / "mpa_ray/cli/starters/cpu.yaml").read_text())


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mpa-ray {mpa_ray.__version__}\n"


# --- Arguments


def test_words_are_options_settings_and_an_argument() -> None:
    words = ["runs/mine", "--json", "--object_store.region=eu", "--object_store.endpoint_url", "http://minio"]
    assert parse(COMMANDS["status"], words) == Arguments(
        "runs/mine", {"json": ""}, {"object_store.region": "eu", "object_store.endpoint_url": "http://minio"}
    )
    words = ["--config=my.yaml", "--source.path", "*/x=y", "--rematch", "--run_dir", "-1"]
    assert parse(COMMANDS["identify"], words) == Arguments(
        None, {"config": "my.yaml", "rematch": ""}, {"source.path": "*/x=y", "run_dir": "-1"}
    )


# --- Exit codes


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ConfigError("field", 0, "is wrong.", "Fix it."), 2, "ConfigError: field = 0: is wrong. Fix it."),
        (RunError("too many images failed."), 1, "RunError: too many images failed."),
        (Unfinished("no node is free."), 3, "Unfinished: no node is free."),
        (CannotWrite("/run/x", "No space left on device"), 3, "Unfinished: /run/x cannot be written (No space left"),
        (
            TransientError("s3://b/k: timed out"),
            3,
            "Unfinished: TransientError: s3://b/k: timed out. Run the same command again to continue.",
        ),
        (OSError("http://me:hunter2@host: refused"), 1, "RunError: OSError: http://***@host: refused."),
        (
            ModuleNotFoundError("", name="vllm.engine"),
            2,
            "the package vllm is not installed. Run pip install 'vllm>=0.29,<0.34', or mpa-ray setup-cpu on a machine",
        ),
        (ModuleNotFoundError("", name="boto3"), 2, "the package boto3 is not installed. Install mpa-ray with its"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(
    error: Exception, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    assert run_job(fail) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_command_that_is_done_exits_with_0_and_an_interrupted_one_with_130() -> None:
    assert run_job(lambda: None) == 0
    assert run_job(lambda: 1) == 1
    done = run_python(
        "from mpa_ray.cli.run_job import run_job\n"
        "def interrupted(): raise KeyboardInterrupt\n"
        "raise SystemExit(run_job(interrupted))\n"
    )
    assert (done.returncode, done.stderr) == (130, "Interrupted: run the same command again to continue.\n")


def test_an_error_in_our_own_modules_is_not_taken_for_a_missing_package() -> None:
    def fail() -> None:
        raise ModuleNotFoundError("no", name="mpa_ray.nowhere")

    with pytest.raises(ModuleNotFoundError):
        run_job(fail)


def test_an_unsupported_python_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"], python=(3, 10)) == 2
    error = capsys.readouterr().err
    assert error == f"mpa_ray needs Python 3.11, 3.12 or 3.13, and this is Python 3.10 ({sys.executable}).\n"


@pytest.mark.parametrize("file", ["mpa_ray/__init__.py", "mpa_ray/cli/__init__.py", "jobs/align.py"])
def test_an_old_python_can_parse_the_modules_that_refuse_it(file: str) -> None:
    ast.parse((ROOT / file).read_text(), feature_version=(3, 8))


def test_a_missing_dependency_is_named_in_one_line() -> None:
    done = run_python(
        "import sys\nsys.modules['pydantic'] = None\nfrom mpa_ray.cli import main\n"
        "raise SystemExit(main(['align', '--config', 'x.yaml']))\n"
    )
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert line.startswith("ConfigError: the package pydantic is not installed. Install mpa-ray with its dependencies")


def test_a_pipe_that_ends_early_ends_a_run_that_prints_in_a_thread() -> None:
    program = (
        "import time; from mpa_ray.cli.run_job import run_job; from mpa_ray.observability.progress import Progress\n"
        "def wait():\n    with Progress('x', 1, 'images', every_s=0.1):\n        time.sleep(100)\n"
        "raise SystemExit(run_job(wait))"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b"Interrupted: run the same command again to continue.\n"
    assert process.returncode == 130


def test_a_pipe_that_ends_early_prints_no_traceback() -> None:
    command = f"{sys.executable} -m mpa_ray.cli --help-all | head -n 1"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("usage: mpa-ray COMMAND [options]\n", "")


# --- Starters


@pytest.mark.parametrize("case", ["cpu", "gpu", "cluster"])
def test_a_starter_is_a_configuration(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", case]) == 0
    text = capsys.readouterr().out
    path = tmp_path / "my.yaml"
    path.write_text(text)
    config = load_config(path)
    assert isinstance(config, RunConfig)
    assert text.count("#") > 15
    # The commented parts are settings, too.
    path.write_text(
        re.sub(r"^# ((?:evaluate|object_store):.*|  benchmarks:|    - .*)$", r"\1", text, flags=re.MULTILINE)
    )
    more = load_config(path)
    assert more.evaluate is not None
    assert more.evaluate.benchmarks[0].label == "mine"


def test_without_a_case_the_machine_decides(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init"]) == 0
    kind = "with one GPU" if Path("/dev/nvidiactl").exists() else "without a GPU"
    assert capsys.readouterr().out.startswith(f"# A run on a machine {kind} ")


def test_the_demo_has_settings_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs: list[RunConfig] = []
    monkeypatch.setattr("mpa_ray.align", configs.append)
    out = tmp_path / "demo"
    words = ["--out", str(out), "--num-images", "3", "--seed", "5", "--students.0.level.batch_size", "4"]
    assert main(["demo", *words]) == 0
    (config,) = configs
    assert config.run_dir == str(out / "run")
    assert len(list((out / "data/unlabeled").rglob("*.png"))) == 3
    assert config.evaluate is not None
    assert Path(config.evaluate.benchmarks[0].path).is_file()
    assert (config.annotate.sampling.seed, config.students[0].level.seed) == (5, 5)
    assert config.annotate.sampling.temperature == 1.0
    assert config.students[0].level.batch_size == 4


# --- Runs by their directory


def test_report_and_status_work_on_a_run_that_only_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate = {"benchmarks": [{"path": "q.jsonl", "name": "held"}], "models": [{"name": "rival", "model": "m"}]}
    tree = {"run_dir": str(tmp_path / "run"), "evaluate": evaluate}
    Run.open(tree["run_dir"]).record_config(EvaluationRunConfig.model_validate(tree), {})
    assert main(["report", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run/report/index.html").is_file()
    assert "no benchmark was measured" in capsys.readouterr().out
    assert main(["status", str(tmp_path / "run"), "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert [phase["name"] for phase in status["phases"]] == ["evaluate rival on held", "score"]


def test_a_report_needs_no_configuration_file(images: Path, tmp_path: Path) -> None:
    tree = scripted_tree(images, tmp_path / "run")
    config = tmp_path / "my.yaml"
    config.write_text(yaml.safe_dump(tree))
    assert main(["index", "--config", str(config)]) == 0
    assert main(["report", tree["run_dir"]]) == 0
    assert json.loads((tmp_path / "run/report/report.json").read_text())["counts"]["images"] == 60


# --- Thirty natural mistakes, and some more


TASK = {"name": "own", "annotation_prompt": "Ask something.", "answer_prompt": "{question}"}
RIVAL = "{{benchmarks: [{{path: {config}}}], models: [{{name: a, model: m, compared_to: small.befor}}]}}"

MISTAKES = {
    "a misspelled command": ("algin --config {config}", "mpa-ray = 'algin': is not a command. Did you mean align?"),
    "a command in capitals": ("ALIGN --config {config}", "mpa-ray = 'ALIGN': is not a command. Did you mean align?"),
    "the beginning of a command": ("eval --config {config}", "is not a command. Did you mean evaluate?"),
    "an option as a command": ("version", "is not a command. Did you mean --version?"),
    "a short option in front": ("-v", "mpa-ray = '-v': is not a command. Did you mean --version?"),
    "help of an unknown command": ("help algin", "mpa-ray = 'algin': is not a command. Did you mean align?"),
    "a number for a name of a list": (
        "align --config {config} --students.-1.name x",
        "--students.-1.name = 'x': there is no students.-1.",
    ),
    "true for a number": ("align --config {config} --source.limit true", "source.limit = True: is not a whole number."),
    "a setting without its branch": ("align --config {config} --limit 5", "Did you mean source.limit or evaluate"),
    "a store that is not supported": ("align --config {config} --source.path az://c/x", "az:// is not supported"),
    "a bucket that cannot exist": ("status s3://my_bu!cket/x", "'my_bu!cket' cannot be the name of a bucket"),
    "an unknown command": ("train --config {config}", "Choose one of align, index"),
    "options before the command": ("--config {config} align", "Write mpa-ray align --config {config}."),
    "no configuration": ("align", "--config = None: is required. `mpa-ray init > my.yaml`"),
    "a file without --config": ("align {config}", "Did you mean --config {config}?"),
    "a misspelled option": ("align --confg {config}", "is not an option of mpa-ray align. Did you mean --config?"),
    "a short option": ("align -c {config}", "Did you mean --config?"),
    "an option without its file": ("align --config", "--config = None: has no value."),
    "a missing file": ("align --config none.yaml", "cannot be read (No such file or directory). Give a YAML file"),
    "a folder for a file": ("align --config {folder}", "cannot be read (Is a directory)"),
    "a tab in YAML": ("align --config {tabs}", "is not YAML (line 2, column 1"),
    "an empty file": ("align --config {empty_file}", "does not contain a mapping. `mpa-ray init"),
    "a setting without a value": ("align --config {config} --task", "--task = None: has no value."),
    "two settings, one without": ("align --config {config} --task --source.limit 3", "--task = None: has no value."),
    "a setting with one dash": ("align --config {config} -source.limit 3", "Did you mean --source.limit?"),
    "a setting without dashes": ("align --config {config} source.limit=3", "Did you mean --source.limit 3?"),
    "a misspelled setting": ("align --config {config} --source.limt 3", "Did you mean source.limit?"),
    "a hyphen in a setting": ("plan --config {config} --plan.num-images 3", "Did you mean plan.num_images"),
    "a setting of another branch": (
        "align --config {config} --learning_rate 1",
        "is not a setting. Did you mean students.0.level.learning_rate?",
    ),
    "a student that is not there": ("align --config {config} --students.1.model x", "there is no students.1."),
    "a word for a number": ("align --config {config} --teacher.num_replicas many", "is not a whole number"),
    "a number out of range": ("align --config {config} --source.fraction 2", "is more than 1.0"),
    "a misspelled choice": ("align --config {config} --source.kind webdatset", "Did you mean webdataset?"),
    "a missing branch": ("align --config {no_teacher}", "teacher = None: is required."),
    "a mapping for a list": (
        "align --config {config} --students {{name: x}}",
        "is not a list. Begin each item with `- `.",
    ),
    "two students of one name": (
        "align --config {config} --students [{{model: a}},{{model: b}}]",
        "students = [2 entries]: names must be distinct, ignoring case, got",
    ),
    "two students whose folders are one where case is ignored": (
        "align --config {config} --students [{{model: a,name: s}},{{model: b,name: S}}]",
        "names must be distinct, ignoring case, got ['s', 'S']",
    ),
    "fewer replicas than at the start": (
        "align --config {config} --teacher.num_replicas 4 --teacher.max_num_replicas 2",
        "teacher.max_num_replicas = 2: is less than num_replicas 4.",
    ),
    "a misspelled task": ("align --config {config} --task textvqa", "Did you mean text_vqa?"),
    "a prompt without a format": ("align --config {config} --task {task}", "has no {{format}} and asks for no labels"),
    "a missing source": ("align --config {config} --source.path /no/such", "source.path = '/no/such': does not exist"),
    "a source without images": ("align --config {config} --source.path {folder}", "holds no images"),
    "a misspelled bundled model": (
        "align --config {config} --teacher {{model: bundled:demo/models/teachr}}",
        "Did you mean bundled:demo/models/teacher",
    ),
    "a missing model": (
        "align --config {config} --teacher {{model: ./none}}",
        "teacher.model = './none': is not a folder",
    ),
    "a model on a hub that is down": (
        "align --config {config} --teacher {{model: owner/name}}",
        "and the hub cannot be reached",
    ),
    "a password in a URL": (
        "align --config {config} --object_store.endpoint_url http://me:hunter2@host",
        "object_store.endpoint_url = 'http://***@host': is a URL with credentials",
    ),
    "missing questions": (
        "evaluate --config {config} --evaluate.benchmarks.0.path /none.jsonl",
        "evaluate.benchmarks.0.path = '/none.jsonl': cannot be read",
    ),
    "a misspelled metric": (
        "evaluate --config {config} --evaluate {{benchmarks: [{{path: {config}, metric: anlss}}]}}",
        "Did you mean anls?",
    ),
    "a misspelled model to compare to": (
        f"evaluate --config {{config}} --evaluate {RIVAL}",
        "Did you mean small.before",
    ),
    "status of nothing": ("status", "RUN = None: is required."),
    "status of a folder without a run": ("status {folder}", "has no run.json."),
    "an audit of nothing": ("audit runs/none", "has no run.json. Give the directory of a run."),
    "a model without its key": ("align --config {config} --teacher owner/name", "such as teacher.model."),
    "status of a configuration": ("status {config}", "is a file, and this command takes a run directory."),
    "a misspelled flag": ("status {folder} --jsn", "Did you mean --json?"),
    "a setting that a command does not take": ("status {folder} --task x", "takes only --object_store.NAME"),
    "two run directories": ("status {folder} {folder}", "is not an option."),
    "a word for hours": ("audit {folder} --older-than-hours soon", "is not a number from 0 to 1,000,000,000"),
    "endless hours": ("audit {folder} --older-than-hours inf", "is not a number from 0 to 1,000,000,000"),
    "a part of an image": ("demo --num-images 2.7", "--num-images = '2.7': is not a whole number."),
    "a flag of other tools": (
        "align --config {config} --verbose",
        "--verbose = None: is not an option of mpa-ray align.",
    ),
    "an endpoint without a scheme": (
        "index --config {config} --object_store.endpoint_url minio:9000",
        "is not a URL: write http://minio:9000 or https://minio:9000",
    ),
    "status of a file of a run": ("status {indexed}/run.json", "has no run.json. Give the directory of a run."),
    "a file for a starter": ("init my.yaml", "To write a starter file, run mpa-ray init > my.yaml."),
    "an alias in a list": (
        "index --config {config} --source.extensions [*.jpg]",
        "is not a list. It is not YAML: put quotation marks around its texts, as in ['a', 'b'].",
    ),
    "an environment variable": (
        "index --config {config} --source.path $PHOTOS/2024",
        "does not exist. Environment variables are not replaced: write the whole path.",
    ),
    "a misspelled case": ("init gpus", "Did you mean gpu?"),
    "an option of another command": ("init --config {config}", "is not an option of mpa-ray init."),
    "a word for a version": ("setup-cpu --vllm newest", "--vllm = 'newest': is not a version."),
    "an unknown extra": ("setup-cpu --extra tests", "is not an extra of mpa-ray. Choose one of"),
    "a value for a flag": ("identify --config {config} --rematch=yes", "takes no value."),
    "a plan of a misspelled task": ("plan --config {config} --task textvqa", "Did you mean text_vqa?"),
    "a plan without a size": ("plan --config {config}", "plan.num_images = None: is not known"),
    "a report of no run": ("report --config {config}", "holds no run, so there is nothing to report."),
    "scores of no run": ("evaluate --config {config} --score-only", "holds no run, so there is nothing to score."),
    "annotations of no index": ("annotate --config {config}", "has no corpus/manifest.json. Run mpa-ray index first."),
    "an identification of no index": ("identify --config {config}", "has no corpus/manifest.json."),
    "a rematch of no index": ("identify --config {config} --rematch", "has no corpus/manifest.json."),
    "a training of no index": ("level --config {config}", "has no corpus/manifest.json. Run mpa-ray index first."),
    "a file as run_dir": ("index --config {config} --run_dir {config}", "is a file, not a folder)."),
    "a run inside its source": ("align --config {config} --run_dir {photos}/run", "is inside the source"),
    "a student with the teacher's name": (
        "align --config {config} --students.0.name Teacher",
        "students.0.name = 'Teacher': is the name of the run's teacher. Choose another name.",
    ),
    "a dataset of the hub": (
        "align --config {config} --source.path hf://datasets/owner/photos",
        "is not supported: download it first, with `hf download owner/photos --repo-type dataset --local-dir DIR`",
    ),
    "a model of the hub as a URI": (
        "align --config {config} --teacher.model hf://owner/model",
        "hf:// is not supported: write owner/model",
    ),
    "levelling before identifying": (
        "level --config {indexed}.yaml --students.0.model bundled:demo/models/student",
        "has no parity samples of small yet. Run mpa-ray identify first.",
    ),
    "identifying before annotating": (
        "identify --config {indexed}.yaml",
        "has 1 of 1 shards that are not annotated. Run mpa-ray annotate first.",
    ),
    "aligning with a file that only measures": ("align --config {measures}", "Use mpa-ray evaluate, or add them."),
    "planning with a file that only measures": ("plan --config {measures}", "Use mpa-ray evaluate, or add them."),
    "indexing with a file that only measures": ("index --config {measures}", "Use mpa-ray evaluate, or add them."),
    "a benchmark in CSV": (
        "evaluate --config {config} --evaluate.benchmarks.0.path {table}",
        "is a table in a format that benchmarks do not support. Give the questions as JSON, JSON lines or Parquet.",
    ),
    "draws that are all the same": (
        "index --config {config} --annotate.num_questions 3 --annotate.sampling.temperature 0",
        "annotate.num_questions = 3: more than 1 needs sampling.temperature over 0",
    ),
    "a plan from no run": (
        "plan --config {config} --plan.num_images 5 --plan.from_run {folder}/none",
        "plan.from_run = '{folder}/none': has no run.json.",
    ),
    "status with a configuration": (
        "status --config {config}",
        "is not an option of this command, which takes a run directory. Give the run_dir that the file sets.",
    ),
    "the page of a model": (
        "align --config {config} --students.0.model https://huggingface.co/Qwen/Qwen2-VL-2B-Instruct/tree/main "
        "--students.0.engine {{kind: vllm}}",
        "is a URL of the hub, not a name. Write Qwen/Qwen2-VL-2B-Instruct.",
    ),
    "annotating before indexing": ("annotate --config {config}", "Run mpa-ray index first."),
    "other settings than the run's": ("index --config {config} --run_dir {indexed}", "source.limit: was 7, now None."),
    "a run directory that is a file": (
        "index --config {config} --run_dir {config}",
        "run_dir = '{config}': cannot be written",
    ),
}


FILES = ("config", "tabs", "empty_file", "no_teacher", "task", "measures")


@pytest.fixture
def place(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Fills in the files that the mistakes need. There is no hub."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    process_hub.cache_clear()
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    tree = scripted_tree(images, tmp_path / "run")
    paths = {name: tmp_path / f"{name}.yaml" for name in FILES}
    paths["config"].write_text(yaml.safe_dump(tree))
    paths["tabs"].write_text("source:\n\tpath: x\n")
    paths["empty_file"].write_text("")
    paths["no_teacher"].write_text(yaml.safe_dump({name: tree[name] for name in tree if name != "teacher"}))
    paths["task"].write_text(yaml.safe_dump(TASK))
    paths["measures"].write_text(yaml.safe_dump({"run_dir": tree["run_dir"], "evaluate": {"benchmarks": []}}))
    paths["table"] = tmp_path / "table.csv"
    paths["table"].write_text("question,answer\nis it?,yes\n")
    paths["folder"] = tmp_path / "folder"
    paths["folder"].mkdir()
    paths["indexed"] = tmp_path / "indexed"
    paths["photos"] = images

    def fill(text: str) -> str:
        if "{indexed}" in text:
            words = [
                "index",
                "--config",
                str(paths["config"]),
                "--source.limit",
                "7",
                "--run_dir",
                str(paths["indexed"]),
            ]
            assert main(words) == 0
            same = tree | {"run_dir": str(paths["indexed"]), "source": tree["source"] | {"limit": 7}}
            (tmp_path / "indexed.yaml").write_text(yaml.safe_dump(same))
        return text.format(**paths)

    yield fill
    process_hub.cache_clear()


@pytest.mark.parametrize(("line", "answer"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_answered_in_a_few_lines(
    line: str, answer: str, place: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = re.findall(r"\{.*\}|\[.*\]|\S+", place(line))
    capsys.readouterr()
    assert main(words) == 2
    output = capsys.readouterr()
    assert place(answer) in output.err
    assert 1 <= len(output.err.splitlines()) <= 3
    assert len(output.err) < 1000
    assert "hunter2" not in output.err


def test_mistakes_are_answered_without_heavy_imports(place: Callable[[str], str]) -> None:
    # transformers is not listed: the hub's client asks for its version.
    lines = [place(line) for line, _ in MISTAKES.values() if "owner/name" not in line]
    words = [re.findall(r"\{.*\}|\[.*\]|\S+", line) for line in lines]
    done = run_python(
        "import sys; from mpa_ray.cli import main\n"
        f"for words in {words!r}:\n"
        "    assert main(words) == 2, words\n"
        "    heavy = {'torch', 'ray', 'vllm', 'transformers'} & set(sys.modules)\n"
        "    assert not heavy, (words, heavy)\n"
    )
    assert done.returncode == 0, done.stderr


def test_a_wrong_source_is_answered_without_the_packages_of_stores_and_reports(place: Callable[[str], str]) -> None:
    words = place("align --config {config} --source.path {folder}/none").split()
    done = run_python(
        "import sys; from mpa_ray.cli import main\n"
        f"assert main({words!r}) == 2\n"
        "slow = {'boto3', 'botocore', 'jinja2', 'pyarrow.compute'} & set(sys.modules)\n"
        "assert not slow, slow\n"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("closed", ["1", "2"])
def test_a_command_runs_with_a_closed_stream(closed: str) -> None:
    command = f'exec "{sys.executable}" -m mpa_ray.cli init cpu {closed}>&-'
    assert subprocess.run(["sh", "-c", command], check=False, capture_output=True).returncode == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_help_may_come_first(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert main(["help", command]) == 0
    assert capsys.readouterr().out == text


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("H1000", "H100"),
        ("a100-80g", "A100-80G"),
        ("evaluat", "evaluate"),
        ("eval", "evaluate"),
        ("EVALUATE", "evaluate"),
        ("ev", None),
        ("train", None),
        (None, None),
        (5, None),
    ],
)
def test_a_suggestion_ignores_case_and_completes_words(word: object, meant: str | None) -> None:
    suggestion = did_you_mean(word, ["evaluate", "align", "H100", "A100-80G"])
    assert suggestion == (f"Did you mean {meant}?" if meant else "")


def test_a_suggestion_names_each_choice_once() -> None:
    assert did_you_mean("limit", ["limits", "limits", "Limits", "limit"], 3) == "Did you mean limit or limits?"


def test_the_package_runs_as_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "mpa_ray", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"mpa-ray {mpa_ray.__version__}\n"), done.stderr


def test_an_unknown_engine_is_not_answered_with_the_engine_of_tests(
    place: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(place("align --config {config} --teacher.engine.kind sglang").split()) == 2
    error = capsys.readouterr().err
    assert "Choose one of vllm." in error
    assert "scripted" not in error

"""The Python API: imported lazily, running any phase, and reading runs as tables."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import mpa_ray
from mpa_ray import ConfigError, EvaluationRunConfig, ObjectStoreConfig, RunConfig, open_run, run_phase
from mpa_ray.evaluation.scores import (
    BenchmarkScores,
    MetricReference,
    ModelScores,
    PairedDifference,
    Summary,
    write_scores,
)
from mpa_ray.metrics import METRICS
from mpa_ray.phases.context import RunContext
from mpa_ray.phases.report import report as write_report
from mpa_ray.records import Annotation, ImageRef, ParitySample, Prediction, Verdict, arrow_schema
from mpa_ray.report.summary import ReportSummary
from mpa_ray.run.parity_export import export_parity
from mpa_ray.run.run import Run
from mpa_ray.storage.local import LocalStorage
from mpa_ray.tasks.library import TASKS
from tests.conftest import scripted_tree
from tests.s3_server import CREDENTIALS, s3_server

ROOT = Path(__file__).parents[2]
EVALUATE = {"benchmarks": [{"path": "q.jsonl", "name": "held"}], "models": [{"name": "rival", "model": "m"}]}


def run_python(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_imports_nothing_else() -> None:
    run_python(
        "import sys; before = set(sys.modules); import mpa_ray\n"
        "loaded = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "assert not loaded & {'torch', 'ray', 'vllm', 'pyarrow', 'transformers', 'pydantic', 'numpy'}, loaded\n"
    )


def test_every_name_is_exported_and_none_imports_ray_or_torch() -> None:
    run_python(
        "import sys\nfrom mpa_ray import *\n"
        "import mpa_ray\n"
        "assert all(name in globals() for name in mpa_ray.__all__)\n"
        "assert not {'torch', 'ray', 'vllm', 'transformers'} & set(sys.modules)\n"
        "assert set(mpa_ray.__all__) == {*mpa_ray._MODULES, '__version__'} <= set(dir(mpa_ray))\n"
    )
    with pytest.raises(AttributeError, match="no attribute 'alig'"):
        _ = mpa_ray.alig


def test_the_version_and_the_pythons_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == mpa_ray.__version__
    oldest, first_unsupported = mpa_ray._OLDEST_PYTHON, mpa_ray._FIRST_UNSUPPORTED_PYTHON
    written = [".".join(map(str, version)) for version in (oldest, first_unsupported)]
    assert project["requires-python"] == ">={},<{}".format(*written)


@pytest.mark.parametrize("version", [(3, 10), (3, 14)])
def test_another_python_is_named_in_one_line(version: tuple[int, int]) -> None:
    problem = mpa_ray._unsupported_python(version)
    assert problem is not None
    assert "needs Python 3.11, 3.12 or 3.13, and this is Python 3." in problem
    assert "\n" not in problem
    assert mpa_ray._unsupported_python((3, 12)) is None


def refusal(call: Callable[[], object]) -> str:
    """The whole message of the ConfigError that a call raises."""
    with pytest.raises(ConfigError) as caught:
        call()
    return str(caught.value)


def test_the_package_has_types() -> None:
    package_data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert "py.typed" in package_data["mpa_ray"]
    assert (ROOT / "mpa_ray/py.typed").is_file()


def test_a_phase_runs_by_its_name(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = RunConfig.model_validate(scripted_tree(images, tmp_path / "run"))
    run_phase(config, "index")
    assert capsys.readouterr().out.splitlines()[-1] == "index: 60 images in 8 shards"
    assert refusal(lambda: run_phase(config, "anotate")) == (  # type: ignore[arg-type]
        "phase = 'anotate': is not a phase. Did you mean annotate?"
    )
    alone = EvaluationRunConfig.model_validate({"run_dir": str(tmp_path / "alone"), "evaluate": None})
    assert refusal(lambda: run_phase(alone, "level")) == (
        "phase = 'level': needs a run with source, teacher and students, and this one only measures models. Choose one "
        "of evaluate, score, report."
    )
    for phase in ("report", "score"):
        assert refusal(partial(run_phase, alone, phase)) == (
            f"run_dir = '{tmp_path}/alone': holds no run, so there is nothing to {phase}. Run mpa-ray align or mpa-ray "
            "evaluate first, or correct run_dir."
        )
    assert not (tmp_path / "alone").exists()
    run_phase(config, "report")
    assert (tmp_path / "run/report/index.html").is_file()


@pytest.mark.parametrize("call", [mpa_ray.align, lambda config: run_phase(config, "index")])
def test_something_else_than_a_configuration_is_refused(call: Callable[[Any], None]) -> None:
    load = "is a {}, not a loaded configuration. Pass load_config('my.yaml')."
    others = "is a {}, not a loaded configuration. Pass what load_config or load_evaluation returns."
    for config, message in (
        ("my.yaml", load.format("str")),
        (Path("my.yaml"), load.format("PosixPath")),
        ({"run_dir": "x"}, others.format("dict")),
        (None, others.format("NoneType")),
    ):
        assert refusal(partial(call, config)) == f"config = {config!r}: {message}"


def test_wrong_arguments_are_refused(images: Path, tmp_path: Path) -> None:
    config = RunConfig.model_validate(scripted_tree(images, tmp_path / "run"))
    alone = EvaluationRunConfig.model_validate({"run_dir": str(tmp_path / "alone"), "evaluate": None})
    file = tmp_path / "my.yaml"
    file.write_text("run_dir: x")
    give_file = "Give a YAML file; `mpa-ray init > my.yaml` writes one to start from."
    pass_dict = 'Pass a dict, such as {"source.limit": 5}.'
    pass_run_dir = "Pass a run directory, such as config.run_dir."
    calls: list[tuple[Callable[[], Any], str]] = [
        (
            lambda: mpa_ray.align(alone),  # type: ignore[arg-type]
            "config = 'EvaluationRunConfig': only measures models: it has no source, teacher and students. "
            'Call run_phase(config, "evaluate").',
        ),
        (
            lambda: run_phase(config, None),  # type: ignore[arg-type]
            "phase = None: is not a phase. Choose one of index, annotate, identify, level, evaluate, score, report.",
        ),
        (
            lambda: run_phase(config, "identify", redo=["storage"]),  # type: ignore[arg-type]
            "redo = ['storage']: is a list, not text. Pass one text with commas, such as \"storage,unreadable\"; "
            '"failed" means any reason.',
        ),
        (
            lambda: mpa_ray.load_config(None),  # type: ignore[arg-type]
            f"--config = None: is a NoneType, not a path. {give_file}",
        ),
        (
            lambda: mpa_ray.load_config({"run_dir": "x"}),  # type: ignore[arg-type]
            f"--config = {{'run_dir': 'x'}}: is a dict, not a path. {give_file}",
        ),
        (
            lambda: mpa_ray.load_config(file, ["a"]),  # type: ignore[arg-type]
            f"overrides = ['a']: is a list, not a mapping. {pass_dict}",
        ),
        (
            lambda: mpa_ray.load_evaluation(file, "x"),  # type: ignore[arg-type]
            f"overrides = 'x': is a str, not a mapping. {pass_dict}",
        ),
        (lambda: open_run(None), f"path = None: is a NoneType, not a path. {pass_run_dir}"),  # type: ignore[arg-type]
        (
            lambda: open_run("x", {"endpoint_url": "y"}),  # type: ignore[arg-type]
            "object_store = {'endpoint_url': 'y'}: is a dict, not an ObjectStoreConfig. "
            "Pass one, such as ObjectStoreConfig(endpoint_url=...).",
        ),
        (lambda: open_run(file), f"path = '{file}': is a file, and not a run directory. Pass its run_dir."),
    ]
    for call, message in calls:
        assert refusal(call) == message
    shown = refusal(lambda: open_run(config))  # type: ignore[arg-type]
    assert re.fullmatch(rf"path = RunConfig\(run_dir='.*\.\.\.: is a RunConfig, not a path\. {pass_run_dir}", shown)
    assert "\n" not in shown


def written(tree: dict[str, Any]) -> Run:
    """A run with two of three shards annotated, judged and answered by one student."""
    config = RunConfig.model_validate({**tree, "evaluate": EVALUATE})
    run = Run.open(config.run_dir, config.object_store)
    run.record_config(config, {})
    for number in range(3):
        run.corpus.commit(f"{number:06d}", [ImageRef(f"{number}.png", f"/{number}.png")])
    run.write_json("corpus/manifest.json", {"num_images": 3, "num_shards": 3})
    kept = []
    # Committed out of order, as passes do.
    for number in (1, 0):
        ids, shard = (f"{number}.png#0", f"{number}.png", f"/{number}.png"), f"{number:06d}"
        run.annotations.commit(shard, [Annotation(*ids, "kept", question="?", answer="2", second_answer="2")])
        verdict = Verdict(*ids, "kept", question="?", answer="2", teacher_agrees=True, student_agrees=False)
        run.verdicts("small").commit(shard, [verdict])
        kept.append(verdict.sample())
    export_parity(run, run.parity_dir("small"), TASKS["demo_world"], kept)
    run.predictions("held", "small.before").commit("000000", [Prediction("q", "i", "/i", "?", ["2"], "all", "kept")])
    return run


@pytest.fixture
def tree(images: Path, tmp_path: Path) -> dict[str, Any]:
    return scripted_tree(images, tmp_path / "run")


def test_rows_are_tables_in_the_order_of_the_corpus(tree: dict[str, Any]) -> None:
    view = open_run(written(tree).storage.root)
    assert view.annotations().schema == arrow_schema(Annotation)
    assert view.annotations()["image_id"].to_pylist() == ["0.png", "1.png"]
    assert view.verdicts("small").schema == arrow_schema(Verdict)
    assert view.verdicts("small")["state"].to_pylist() == ["kept", "kept"]
    assert view.parity("small").schema == arrow_schema(ParitySample)
    assert view.parity("small")["answer"].to_pylist() == ["2", "2"]
    assert view.predictions("held", "small.before")["question_id"].to_pylist() == ["q"]
    assert view.predictions("held", "teacher").num_rows == 0
    assert view.predictions("held", "teacher").schema == arrow_schema(Prediction)


def test_batches_hold_one_shard_at_a_time(tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    run = written(tree)
    read = []
    storage_read = LocalStorage.read

    def counted(self: LocalStorage, path: str) -> bytes:
        read.append(path)
        return storage_read(self, path)

    view = open_run(run.storage.root)
    monkeypatch.setattr(LocalStorage, "read", counted)
    batches = view.annotation_batches()
    first = next(batches)
    assert first["image_id"].to_pylist() == ["0.png"]
    assert len([path for path in read if path.endswith(".parquet")]) == 1
    assert [table.num_rows for table in batches] == [1]
    assert pa.concat_tables(view.verdict_batches("small")) == view.verdicts("small")
    assert pa.concat_tables(view.parity_batches("small")) == view.parity("small")
    assert pa.concat_tables(view.prediction_batches("held", "small.before")).num_rows == 1


def test_names_are_listed_and_wrong_ones_answered(tree: dict[str, Any]) -> None:
    view = open_run(written(tree).storage.root)
    assert (view.students, view.benchmarks) == (["small"], ["held"])
    assert view.models == ["teacher", "small.before", "small.after", "rival"]
    student, benchmark = f"is not a student of {view.path}.", f"is not a benchmark of {view.path}."
    model = f"is not a model of {view.path}."
    students, benchmarks = "Choose one of small.", "Choose one of held."
    models = "Choose one of teacher, small.before, small.after, rival."
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: view.verdicts("smal"), f"student = 'smal': {student} Did you mean small? {students}"),
        (lambda: view.parity_batches("other"), f"student = 'other': {student} {students}"),
        (lambda: view.parity(None), f"student = None: {student} {students}"),  # type: ignore[arg-type]
        (lambda: view.verdicts(0), f"student = 0: {student} {students}"),  # type: ignore[arg-type]
        (
            lambda: view.predictions("hold", "teacher"),
            f"benchmark = 'hold': {benchmark} Did you mean held? {benchmarks}",
        ),
        (
            lambda: view.predictions(None, "teacher"),  # type: ignore[arg-type]
            f"benchmark = None: {benchmark} {benchmarks}",
        ),
        (
            lambda: view.predictions("held", "small.befor"),
            f"model = 'small.befor': {model} Did you mean small.before or small.after? {models}",
        ),
        (lambda: view.predictions("held", "nothing"), f"model = 'nothing': {model} {models}"),
        (
            lambda: view.predictions("held", ["teacher"]),  # type: ignore[arg-type]
            f"model = ['teacher']: {model} Did you mean teacher? {models}",
        ),
    ]
    for call, message in calls:
        assert refusal(call) == message


def test_scores_status_and_report_are_typed(tree: dict[str, Any]) -> None:
    run = written(tree)
    view = open_run(run.storage.root)
    assert view.scores() == {}
    model = ModelScores({"all": Summary(0.5, 0.4, 0.6, 8)}, 0, [])
    scores = BenchmarkScores(MetricReference.of(METRICS["anls"]), {"small.before": model}, [])
    write_scores(run, {"held": scores})
    assert view.scores() == {"held": scores}
    states = {phase.name: phase.state for phase in view.status().phases}
    assert (states["index"], states["annotate"]) == ("done", "begun")
    report = view.report()
    assert isinstance(report, ReportSummary)
    assert (report.counts.num_images, report.counts.kept) == (3, {"small": 2})
    assert list(report.scores) == ["held"]


def test_the_example_of_scores_and_reports_runs(tree: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    run = written(tree)
    after = ModelScores({"all": Summary(0.5, 0.4, 0.6, 8)}, 0, [])
    before = ModelScores({"all": Summary(0.25, 0.2, 0.3, 8)}, 0, [])
    pair = PairedDifference("small.before", "small.after", {"all": Summary(0.25, 0.1, 0.4, 8)})
    models = {"small.before": before, "small.after": after}
    write_scores(run, {"held": BenchmarkScores(MetricReference.of(METRICS["anls"]), models, [pair])})
    examples = (ROOT / "docs/python-api.md").read_text().split("```python\n")[1:]
    (example,) = [text.partition("```")[0] for text in examples if "run.scores()" in text]
    names: dict[str, Any] = {"run": open_run(run.storage.root)}
    exec(example, names)
    assert capsys.readouterr().out.splitlines()[:3] == [
        "held small.before anls 0.25 0.2 0.3 8",
        "held small.after anls 0.5 0.4 0.6 8",
        "small.before small.after 0.25",
    ]
    write_report(RunContext.from_checked(names["run"].config))
    assert names["content"].keys() == run.read_json("report/report.json").keys()


def test_a_run_with_later_rounds_has_its_settings_back(tree: dict[str, Any]) -> None:
    tree["students"][0]["rounds"] = 2
    config = RunConfig.model_validate(tree)
    run = Run.open(config.run_dir)
    run.mark_leveled("small", "parity")
    context = RunContext.from_checked(config)
    context.begin()
    view = open_run(config.run_dir)
    assert view.students == ["small", "small.round2"]
    assert view.config == config


def test_a_run_that_only_measures_models_is_read(tmp_path: Path) -> None:
    config = EvaluationRunConfig.model_validate({"run_dir": str(tmp_path), "evaluate": EVALUATE})
    Run.open(config.run_dir).record_config(config, {})
    view = open_run(str(tmp_path))
    assert (view.students, view.benchmarks, view.models) == ([], ["held"], ["rival"])
    assert view.annotations().num_rows == 0
    assert asdict(view.report()).keys() == {"run_dir", "task", "scores", "phases", "versions", "problems"}
    assert [phase.name for phase in view.status().phases] == ["evaluate rival on held", "score"]


def test_a_run_at_an_object_store_is_read(tree: dict[str, Any]) -> None:
    with pytest.MonkeyPatch.context() as patch, s3_server() as endpoint:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        store = ObjectStoreConfig(endpoint_url=endpoint)
        written({**tree, "run_dir": "s3://bucket/run", "object_store": {"endpoint_url": endpoint}})
        view = open_run("s3://bucket/run", store)
        assert view.annotations()["image_id"].to_pylist() == ["0.png", "1.png"]
        assert [table.num_rows for table in view.parity_batches("small")] == [2]
        assert (view.path, view.students) == ("s3://bucket/run", ["small"])


def test_a_run_is_opened_by_a_path(tree: dict[str, Any]) -> None:
    root = written(tree).storage.root
    assert open_run(Path(root)).students == open_run(root).students


@pytest.mark.parametrize("content", [b"", b'{"format": 2, "con', b"[]", b"\xff"])
def test_a_damaged_copy_of_a_run_is_named(tree: dict[str, Any], content: bytes) -> None:
    run = written(tree)
    Path(run.storage.root, "run.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"^run_dir = .*: run\.json cannot be read \("):
        open_run(run.storage.root)


def test_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run_dir.*has no run\.json"):
        open_run(str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()

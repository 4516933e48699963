"""Errors in a configuration are found before anything starts, and name the setting."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from mpa_ray.config import EvaluationRunConfig, ModelConfig, RunConfig, load_config, load_evaluation, resolve_path
from mpa_ray.config.setting_path import all_settings
from mpa_ray.errors import ConfigError
from mpa_ray.phases.preflight import check_names, check_run
from tests.conftest import scripted_tree

STUDENT = Path(resolve_path("bundled:demo/models/student"))


@pytest.fixture
def tree(images: Path, tmp_path: Path) -> dict[str, Any]:
    return scripted_tree(images, tmp_path / "run")


def written(tree: dict[str, Any], tmp_path: Path) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return str(path)


def test_overrides_reach_lists_and_nested_settings(tree: dict[str, Any], tmp_path: Path) -> None:
    overrides = {"students.0.level.seed": "7", "source.limit": 3, "task": "chart_qa"}
    config = load_config(Path(written(tree, tmp_path)), overrides)
    assert config.students[0].level.seed == 7
    assert config.source.limit == 3
    assert config.task == "chart_qa"


@pytest.mark.parametrize(
    ("change", "field", "problem"),
    [
        ({"techer": {}}, "techer", "is not a setting"),
        ({"teacher.num_replicas": 0}, "teacher.num_replicas", "is less than 1"),
        ({"teacher.engine.wrong_rat": 0.1}, "teacher.engine.wrong_rat", "is not a setting"),
        ({"students": []}, "students", "fewer than 1"),
        ({"identify.matcher": "fuzzy"}, "identify.matcher", "exact, containment, vqa_normalized, numeric"),
        ({"run_dir": None}, "run_dir", "is not text"),
        ({"students.0.level.learning_rate": float("inf")}, "students.0.level.learning_rate", "finite"),
        ({"run_dir.deeper.still": 1}, "--run_dir.deeper.still", "there is no run_dir"),
        (
            {"students.0.rounds": 2, "students.0.arms": ["random"]},
            "students.0.arms",
            "lacks parity, which rounds after the first train on",
        ),
    ],
)
def test_a_wrong_value_is_named(
    tree: dict[str, Any], tmp_path: Path, change: dict[str, Any], field: str, problem: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(written(tree, tmp_path), change)
    assert caught.value.field == field
    assert problem in str(caught.value)


@pytest.mark.parametrize("value", [True, False, "true", "off"])
@pytest.mark.parametrize(
    "field",
    [
        "source.limit",
        "source.fraction",
        "teacher.num_replicas",
        "teacher.gpus_per_replica",
        "students.0.level.method.rank",
        "students.0.level.holdout.patience",
        "identify.matcher.tolerance",
    ],
)
def test_true_and_false_are_no_numbers(tree: dict[str, Any], tmp_path: Path, field: str, value: object) -> None:
    change = {"identify.matcher.kind": "numeric", field: value}
    with pytest.raises(ConfigError, match=rf"^{field} = (True|False): is not a (whole )?number\. `mpa-ray"):
        load_config(written(tree, tmp_path), change)


@pytest.mark.parametrize(("text", "value"), [("1e4", 10000), ("1E2", 100), (3.0, 3), ("3.0", 3), ("2.50e2", 250)])
def test_a_whole_number_may_have_any_notation(tree: dict[str, Any], tmp_path: Path, text: object, value: int) -> None:
    assert load_config(written(tree, tmp_path), {"source.limit": text}).source.limit == value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source.limit": "2.5"}, "source.limit = 2.5: is not a whole number."),
        ({"source.limit": "25e-1"}, "source.limit = 2.5: is not a whole number."),
        ({"source.limit": "ten"}, "source.limit = 'ten': is not a whole number."),
        ({"source.limit": "1e400"}, "source.limit = inf: is not a finite number."),
        ({"source.limit": [3]}, "source.limit = [3]: is not a whole number."),
        ({"source.fraction": "half"}, "source.fraction = 'half': is not a number."),
        ({"source.fraction": "0"}, "source.fraction = 0: is not more than 0.0."),
        ({"source.include_hidden": "maybe"}, "source.include_hidden = 'maybe': is neither true nor false."),
        ({"source.extensions": [1]}, "source.extensions.0 = 1: is not text."),
        ({"teacher.engine": {"kind": "vlm"}}, "teacher.engine = {'kind': 'vlm'}: has an unknown `kind`. Did you mean"),
        ({"teacher.engine": {"kind": "x"}}, "has an unknown `kind`. Choose one of vllm."),
        ({"annotate.reply": "yaml"}, "annotate.reply = 'yaml': is not one of 'free' or 'json'."),
    ],
)
def test_a_wrong_value_has_a_plain_message(
    tree: dict[str, Any], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(written(tree, tmp_path), change)
    assert message in str(caught.value)


_NAMED = ("students.0.name", "evaluate.benchmarks.0.name", "evaluate.models.0.name")


@pytest.mark.parametrize("field", _NAMED)
@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("scores.json", "ends like a file name: remove .json"),
        ("manifest.JSON", "ends like a file name: remove .json"),
        ("train.parquet", "ends like a file name: remove .parquet"),
        ("a/b", "is not a valid name"),
        ("..", "is not a valid name"),
        (".hidden", "is not a valid name"),
        ("two words", "is not a valid name"),
        ("émile", "is not a valid name"),
        ("x" * 61, "at most 60"),
        ("", "is not a valid name"),
    ],
)
def test_a_name_that_could_be_a_file_of_the_run_is_refused(
    tree: dict[str, Any], tmp_path: Path, field: str, name: str, problem: str
) -> None:
    tree["evaluate"] = {"benchmarks": [{"path": "q.jsonl"}], "models": [{"name": "other", "model": "m"}]}
    branch, _, last = field.rpartition(".")
    node: Any = tree
    for key in branch.split("."):
        node = node[int(key) if key.isdigit() else key]
    node[last] = name
    with pytest.raises(ConfigError) as caught:
        load_config(written(tree, tmp_path))
    assert caught.value.field == field
    assert problem in str(caught.value)


def test_the_folder_of_all_benchmarks_is_no_benchmark(tree: dict[str, Any], tmp_path: Path) -> None:
    tree["evaluate"] = {"benchmarks": [{"path": "q.jsonl", "name": "again"}]}
    with pytest.raises(ConfigError, match=r"^evaluate\.benchmarks\.0\.name = 'again': is the name of another folder"):
        load_config(written(tree, tmp_path))


def test_names_that_differ_only_in_case_are_refused(tree: dict[str, Any], tmp_path: Path) -> None:
    """Their folders would be one where a file system ignores case."""
    tree["evaluate"] = {"benchmarks": [{"path": "q.jsonl"}], "models": [{"name": "Small.Before", "model": "m"}]}
    with pytest.raises(
        ConfigError, match=r"evaluate\.models\.0\.name = 'Small.Before': is already the name of another model"
    ):
        check_names(load_config(written(tree, tmp_path)))
    tree["evaluate"]["models"] = [{"name": name, "model": "m"} for name in ("other", "Other")]
    with pytest.raises(ConfigError, match=r"evaluate\.models = .*names must be distinct, ignoring case"):
        load_config(written(tree, tmp_path))


@pytest.mark.parametrize("measured", [True, False])
@pytest.mark.parametrize("name", ["teacher", "Teacher"])
def test_no_other_model_may_be_named_teacher(tree: dict[str, Any], tmp_path: Path, name: str, measured: bool) -> None:
    """This also holds if the teacher is not measured: the report would show the model as the teacher."""
    models = [{"name": name, "model": "m"}]
    tree["evaluate"] = {"benchmarks": [{"path": "q.jsonl"}], "models": models, "teacher": measured}
    with pytest.raises(
        ConfigError, match=r"^evaluate\.models\.0\.name = '[Tt]eacher': is the name of the run's teacher\."
    ):
        load_config(written(tree, tmp_path))


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_component_that_is_there_twice_is_refused(tree: dict[str, Any], tmp_path: Path, kind: str) -> None:
    method = {"kind": kind, "components": ["language", "vision", "language"]}
    with pytest.raises(ConfigError, match=r"^students\.0\.level\.method.*components = .*: has a component twice"):
        load_config(written(tree, tmp_path), {"students.0.level.method": method})


@pytest.mark.parametrize("name", ["small", "Qwen2.5-VL", "small.round2", "v1.0_b"])
def test_plain_names_are_accepted(tree: dict[str, Any], tmp_path: Path, name: str) -> None:
    assert load_config(written(tree, tmp_path), {"students.0.name": name}).students[0].name == name


def test_an_arm_that_is_there_twice_is_refused(tree: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^students\.0\.arms = .*: has an arm twice"):
        load_config(written(tree, tmp_path), {"students.0.arms": ["parity", "parity"]})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("students.-1.name", "there is no students.-1. The list students has 1 entry, and students.0 is the first."),
        ("students.3.name", "there is no students.3."),
        ("students.-1", "there is no students.-1."),
        ("students.name", "students is a list, and the number of an entry is missing. Write --students.0.name."),
        (
            "students.small.level.seed",
            "students is a list, and the number of an entry is missing. Write --students.0.level.seed.",
        ),
        ("run_dir.name", "run_dir is not a mapping."),
    ],
)
def test_an_entry_that_a_list_does_not_have_is_refused(
    tree: dict[str, Any], tmp_path: Path, name: str, message: str
) -> None:
    tree["students"][0]["name"] = "small"
    with pytest.raises(ConfigError, match=re.escape(f"--{name} = 5: {message}")):
        load_config(written(tree, tmp_path), {name: 5})


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("limit", "source.limit or evaluate.benchmarks.0.limit"),
        ("temperature", "annotate.sampling.temperature"),
        ("max_pixel", "teacher.max_pixels"),
        ("learning_rat", "students.0.level.learning_rate"),
        ("source.limits", "source.limit or limits"),
        ("teacher.num_replica", "teacher.num_replicas"),
        ("students.0.level.num_replicas", "teacher.num_replicas or students.0.num_replicas"),
        ("object_stor", "object_store"),
    ],
)
def test_a_misspelled_or_misplaced_setting_is_found(
    tree: dict[str, Any], tmp_path: Path, name: str, meant: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{name} = 5: is not a setting. Did you mean {meant}")):
        load_config(written(tree, tmp_path), {name: 5})


@pytest.mark.parametrize("key", ["source", "teacher", "students", "run_dir"])
def test_a_misspelled_branch_is_named_before_the_branch_that_is_missing(
    tree: dict[str, Any], tmp_path: Path, key: str
) -> None:
    wrong = key.replace("d", "", 1) if "d" in key else key[:2] + key[3:]
    tree[wrong] = tree.pop(key)
    with pytest.raises(ConfigError, match=rf"^{wrong} = .*: is not a setting\. Did you mean {key}\?"):
        load_config(written(tree, tmp_path))
    only = {"run_dir": "x", wrong: tree[wrong]}
    with pytest.raises(ConfigError, match=rf"^{wrong} = .*: is not a setting\. Did you mean {key}\?"):
        load_evaluation(written(only, tmp_path))


def test_every_limit_of_a_setting_has_a_plain_message() -> None:
    """A setting with a limit of a new kind needs its words in `config/problems.py`."""
    limits = {type(limit).__name__ for _, field in all_settings(RunConfig) for limit in field.metadata}
    assert limits <= {"Ge", "Gt", "Le", "Lt", "MinLen", "AfterValidator", "BeforeValidator"}


@pytest.mark.parametrize(
    ("override", "value", "field"),
    [
        ("identify.matcher", {"kind": "numeric", "tolerance": -1}, "identify.matcher.tolerance"),
        ("identify.matcher", {"kind": "anls", "limit": 1}, "identify.matcher.limit"),
        (
            "identify.matcher",
            {"kind": "any_of", "of": ["exact", {"kind": "any_of", "of": [{"kind": "anls", "threshold": 2}]}]},
            "identify.matcher.of.1.of.0.threshold",
        ),
        ("students.0.level.method", {"kind": "lora", "rank": 0}, "students.0.level.method.rank"),
        ("teacher.engine", {"kind": "scripted", "scripted": 1}, "teacher.engine.scripted"),
        ("teacher.engine", {"kind": "vllm", "dtype": "int8"}, "teacher.engine.dtype"),
        ("students.0.level.full", {}, "students.0.level.full"),
        ("lora", {}, "lora"),
        ("evaluate", {"benchmarks": [{"path": "q", "columns": {"vllm": [1]}}]}, "evaluate.benchmarks.0.columns.vllm"),
        ("students.0.labels", {"path": "q", "name": "vllm", "limit": 0}, "students.0.labels.limit"),
    ],
)
def test_a_field_is_named_as_in_the_file(
    tree: dict[str, Any], tmp_path: Path, override: str, value: dict[str, Any], field: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(written(tree, tmp_path), {override: yaml.safe_dump(value)})
    assert caught.value.field == field


def test_further_errors_are_named_as_in_the_file(tree: dict[str, Any], tmp_path: Path) -> None:
    tree["teacher"]["num_replicas"] = 0
    tree["identify"] = {"matcher": {"kind": "numeric", "tolerance": -1}}
    with pytest.raises(ConfigError, match=r"1 more: identify\.matcher\.tolerance\)"):
        load_config(written(tree, tmp_path))


@pytest.mark.parametrize(
    ("override", "value", "suggestion"),
    [
        ("techer", {}, "Did you mean teacher?"),
        ("learning_rate", 1e-4, "Did you mean students.0.level.learning_rate?"),
        ("teacher.num_replica", 2, "Did you mean teacher.num_replicas or teacher.max_num_replicas?"),
        ("teacher.engine", {"max_model_length": 64}, "Did you mean teacher.engine.max_model_len?"),
        ("students.0.level.method", {"kind": "lora", "rnk": 8}, "Did you mean students.0.level.method.rank?"),
        ("teacher.engine", {"kind": "vlm"}, "Did you mean vllm?"),
        ("identify.matcher", "exct", "Did you mean exact?"),
        ("students", {"model": "s"}, "is not a list. Begin each item with `- `."),
        ("source.extensions", "jpg", "is not a list. Write [jpg]."),
        ("teacher", "owner/name", "is not a mapping of settings. Write its settings below it, such as teacher.model."),
        ("students.0.level.method", "lora", "below it, such as students.0.level.method.kind."),
        ("zzz", 1, "is not a setting. `mpa-ray --help-all` lists all settings."),
    ],
)
def test_a_wrong_name_comes_with_a_similar_one(
    tree: dict[str, Any], tmp_path: Path, override: str, value: object, suggestion: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(written(tree, tmp_path), {override: value})
    assert suggestion in str(caught.value)


@pytest.mark.parametrize("url", ["http://me:hunter2@host:9000", "me:hunter2@host", "http://me:hun/ter2@host"])
def test_a_password_in_an_endpoint_is_refused_and_not_shown(tree: dict[str, Any], tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match=r"object_store\.endpoint_url = '.*\*\*\*@host") as caught:
        load_config(written(tree, tmp_path), {"object_store.endpoint_url": url})
    assert "ter2" not in str(caught.value)


def test_a_password_within_another_value_is_not_shown(tree: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"http://\*\*\*@host") as caught:
        load_config(written(tree, tmp_path), {"object_store": [{"endpoint_url": "http://me:hunter2@host:9000"}]})
    assert "hunter2" not in str(caught.value)


def test_an_error_in_yaml_takes_one_line(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("run_dir: x\nsource:\n\tpath: y\n")
    with pytest.raises(ConfigError, match=r"is not YAML \(line 3, column 1: a tab where only") as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


def test_a_missing_setting_is_named(tree: dict[str, Any], tmp_path: Path) -> None:
    del tree["teacher"]["model"]
    with pytest.raises(ConfigError, match=r"teacher\.model.*is required"):
        load_config(written(tree, tmp_path))


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", ""])
def test_a_file_that_is_not_a_configuration_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="--config"):
        load_config(str(path))


def checked(tree: dict[str, Any]) -> None:
    check_run(RunConfig.model_validate(tree))


def test_preflight_passes_a_correct_configuration(tree: dict[str, Any]) -> None:
    checked(tree)


def test_preflight_names_a_missing_model(tree: dict[str, Any]) -> None:
    tree["teacher"] = {"model": "./no/such/model"}
    with pytest.raises(ConfigError, match=r"teacher\.model = './no/such/model': is not a folder"):
        checked(tree)


@pytest.mark.parametrize("model", ["./student", "../student", "a--b/c", "~/student"])
def test_preflight_names_a_missing_path(tree: dict[str, Any], model: str) -> None:
    tree["teacher"] = {"model": model}
    with pytest.raises(ConfigError, match=r"teacher\.model"):
        checked(tree)


def test_a_value_that_is_not_yaml_stays_text(tree: dict[str, Any], tmp_path: Path) -> None:
    assert load_config(written(tree, tmp_path), {"source.path": "*/images"}).source.path == "*/images"


def test_an_existing_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "student").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve_path("student") == str(tmp_path / "student")
    assert resolve_path("owner/name") == "owner/name"


def test_preflight_names_a_student_without_processor(tree: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(STUDENT, tmp_path / "bare", ignore=shutil.ignore_patterns("*processor*"))
    tree["students"] = [{"model": str(tmp_path / "bare")}]
    with pytest.raises(ConfigError, match=r"students\.0\.model.*has no processor"):
        checked(tree)


CONTRADICTING_MODEL = {"model": str(STUDENT), "min_pixels": 9, "max_pixels": 8}


@pytest.mark.parametrize(
    ("further", "field"),
    [
        ({"teacher": CONTRADICTING_MODEL}, "teacher.min_pixels"),
        ({"students": [CONTRADICTING_MODEL]}, "students.0.min_pixels"),
        (
            {"evaluate": {"benchmarks": [{"path": __file__}], "models": [{"name": "other", **CONTRADICTING_MODEL}]}},
            "evaluate.models.0.min_pixels",
        ),
    ],
)
def test_preflight_names_pixel_limits_that_contradict(
    tree: dict[str, Any], further: dict[str, Any], field: str
) -> None:
    with pytest.raises(ConfigError, match=r"9: is more than \S+\.max_pixels, which is 8\.") as caught:
        checked(tree | further)
    assert caught.value.field == field


def test_preflight_refuses_arguments_for_a_processor_that_training_would_not_use(tree: dict[str, Any]) -> None:
    engine = {"kind": "vllm", "engine_args": {"mm_processor_kwargs": {"max_pixels": 9}}}
    model = "bundled:demo/models/student"
    checked({**tree, "teacher": {**tree["teacher"], "model": model, "engine": engine}})
    student = {"name": "small", "model": model, "engine": engine}
    with pytest.raises(ConfigError, match=r"not those of the training.*Set min_pixels and max_pixels") as caught:
        checked({**tree, "students": [student]})
    assert caught.value.field == "students.0.engine.engine_args.mm_processor_kwargs"


def test_preflight_names_an_unknown_task(tree: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"task = 'vqa'.*chart_qa, demo_world, .*or give a file"):
        checked({**tree, "task": "vqa"})


def test_preflight_names_a_similar_task(tree: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"task = 'textvqa'.*Did you mean text_vqa"):
        checked({**tree, "task": "textvqa"})


def test_preflight_refuses_a_prompt_whose_replies_cannot_be_parsed(tree: dict[str, Any], tmp_path: Path) -> None:
    task = tmp_path / "own.yaml"
    prompts = {"annotation_prompt": "Ask something and answer it.", "answer_prompt": "{question}"}
    task.write_text(yaml.safe_dump({"name": "own", **prompts}))
    tree["task"] = str(task)
    with pytest.raises(ConfigError, match=r"task = '.*own\.yaml': its annotation_prompt has no \{format\}"):
        checked(tree)
    checked({**tree, "annotate": {"reply": "json"}})


def test_preflight_names_a_similar_model(tree: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "qwen-2b").mkdir()
    for model, similar in (
        ("bundled:demo/models/teachr", "Did you mean bundled:demo/models/teacher"),
        (f"{tmp_path}/qwen2b", f"Did you mean {tmp_path}/qwen-2b?"),
    ):
        with pytest.raises(ConfigError) as caught:
            checked({**tree, "teacher": {"model": model}})
        assert similar in str(caught.value)


def test_preflight_names_a_missing_engine(tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpa_ray.phases.preflight.find_spec", lambda package: None if package == "vllm" else package)
    tree["teacher"] = {"model": str(STUDENT)}
    with pytest.raises(ConfigError, match=r"teacher\.engine\.kind = 'vllm': needs the package vllm.*mpa-ray setup-cpu"):
        checked(tree)
    # The job's own machine need not have the engine of a cluster.
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    checked(tree)


def test_preflight_names_a_source_without_images(tree: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    with pytest.raises(ConfigError, match=r"source\.path.*holds no images"):
        checked({**tree, "source": {"path": str(tmp_path / "empty")}})


def test_preflight_names_a_missing_source(tree: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"source\.path = '/no/such'.*does not exist"):
        checked({**tree, "source": {"path": "/no/such"}})


def test_preflight_names_unknown_kinds(tree: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"source\.kind = 'zip': is not a kind of source.*images"):
        checked({**tree, "source": {**tree["source"], "kind": "zip"}})
    with pytest.raises(ConfigError, match=r"evaluate\.benchmarks\.0\.kind = 'vqa': is not a kind of benchmark.*vqav2"):
        checked({**tree, "evaluate": {"benchmarks": [{"path": "/no/such.jsonl", "kind": "vqa"}]}})


def test_preflight_names_missing_questions(tree: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"evaluate\.benchmarks\.0\.path = '/no/such.jsonl': cannot be read"):
        checked({**tree, "evaluate": {"benchmarks": [{"path": "/no/such.jsonl"}]}})
    with pytest.raises(ConfigError, match=r"evaluate\.benchmarks\.0\.metric = 'accuracy': is not a metric.*anls"):
        checked({**tree, "evaluate": {"benchmarks": [{"path": "/no/such.jsonl", "metric": "accuracy"}]}})


@pytest.mark.parametrize(
    ("level", "problem"),
    [
        ({"method": {"kind": "lora", "quantize": True}}, r"level\.method\.quantize = True: needs a GPU"),
        (
            {"method": {"kind": "lora", "quantize": True}, "gpus_per_worker": 1, "parallel": "fsdp"},
            "cannot be combined",
        ),
        ({"accelerator_type": "L4"}, r"level\.accelerator_type = 'L4': needs a GPU"),
        (
            {"replay_from": {"path": "/none.jsonl"}},
            r"replay_from = '/none\.jsonl': is not used, because students\.0\.level\.replay_share is 0",
        ),
        ({"replay_from": {"path": "/none.jsonl"}, "replay_share": 0.3}, r"level\.replay_from\.path = '/none\.jsonl'"),
        ({"holdout": {"questions": {"path": "/none.jsonl"}}}, r"level\.holdout\.questions\.path = '/none\.jsonl'"),
        (
            {"report_to": ["wandb"]},
            r"report_to = 'wandb': needs the package wandb, .* Run pip install wandb",
        ),
    ],
)
def test_preflight_names_training_settings_with_unmet_needs(
    level: dict[str, Any], problem: str, tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpa_ray.phases.preflight.find_spec", lambda package: None if package == "wandb" else package)
    tree["students"][0]["level"] = level
    with pytest.raises(ConfigError, match=problem):
        checked(tree)


def test_an_arm_needs_its_labels(tree: dict[str, Any]) -> None:
    tree["students"][0]["arms"] = ["parity", "labels"]
    with pytest.raises(ConfigError, match=r"students\.0\.labels = None: is not set, but the arm `labels` trains on it"):
        checked(tree)
    tree["students"][0]["labels"] = {"path": "/none.jsonl"}
    with pytest.raises(ConfigError, match=r"students\.0\.labels\.path = '/none\.jsonl': cannot be read"):
        checked(tree)


def test_a_run_that_only_evaluates_needs_neither_source_nor_students(tree: dict[str, Any], tmp_path: Path) -> None:
    alone = {"run_dir": "r", "evaluate": {"benchmarks": [{"path": "q.jsonl"}], "models": [{"name": "a", "model": "m"}]}}
    assert type(load_evaluation(written(alone, tmp_path))) is EvaluationRunConfig
    assert type(load_evaluation(written(tree, tmp_path))) is RunConfig
    with pytest.raises(ConfigError, match=r"teacher = None: is required"):
        load_evaluation(written({**alone, "source": {"path": "x"}}, tmp_path))


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ({"num_replicas": 4, "max_num_replicas": 2}, "max_num_replicas 2 is less than num_replicas 4"),
        ({"gpus_per_replica": 1.5}, "neither whole nor a fraction"),
        ({"accelerator_type": "H100"}, "needs gpus_per_replica"),
        ({"gpus_per_replica": 1, "engine": {"tensor_parallel_size": 2}}, "less than tensor_parallel_size 2"),
    ],
)
def test_resources_of_a_pool_fit_together(model: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        ModelConfig(model="x", **model)


def test_a_pool_may_grow() -> None:
    assert ModelConfig(model="x", num_replicas=2).most_replicas == 2
    assert ModelConfig(model="x", num_replicas=2, max_num_replicas=5).most_replicas == 5


@pytest.mark.parametrize(
    ("further", "problem"),
    [
        ({"name": "small.round2.before"}, "is already the name of another model"),
        ({"name": "SMALL.before"}, "is already the name of another model"),
        (
            {"name": "other", "compared_to": "small.round4.after"},
            "compared_to = .*is not the name of a model of this evaluation",
        ),
        ({"name": "other", "compared_to": "small.round3.after"}, None),
    ],
)
def test_names_of_measured_models_differ(further: dict[str, str], problem: str | None, tree: dict[str, Any]) -> None:
    models = [{"model": "one", **further}]
    tree["evaluate"] = {"benchmarks": [{"name": "own", "path": "q.jsonl"}], "models": models}
    tree["students"] = [{"name": "small", "model": "one", "rounds": 3}]
    config = RunConfig.model_validate(tree)
    if problem is None:
        check_names(config)
    else:
        with pytest.raises(ConfigError, match=problem):
            check_names(config)

"""Words are taken as typed where a setting is text; overriding one setting changes no other."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from mpa_ray.config import AnyOfMatch, RunConfig, load_config, load_object_store
from mpa_ray.config.settings import misspelled_uri
from mpa_ray.errors import ConfigError
from mpa_ray.storage.open import open_storage
from mpa_ray.tasks.task import load_task
from tests.conftest import scripted_tree


@pytest.fixture
def file(images: Path, tmp_path: Path) -> Path:
    return written(scripted_tree(images, tmp_path / "run"), tmp_path)


def written(tree: dict[str, Any] | str, tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree), encoding="utf-8")
    return path


TEXTS = [
    "out/my run #1",
    "no",
    "12:30",
    "a: b",
    "1e3",
    "0x10",
    "2024-01-01",
    "2024-13-45",
    "[x",
    "'q'",
    "- x",
    "*x",
    "true",
]


@pytest.mark.parametrize(
    "text", [*TEXTS, "null", "=", "{a: b}", "[1, 2]", "@x", "a\tb", " x ", "%x", "&a", "!x", "\\n"]
)
def test_a_text_of_the_command_line_is_taken_as_typed(file: Path, text: str) -> None:
    config = load_config(file, {"run_dir": text, "source.path": text, "source.image_column": text, "task": text})
    assert (config.run_dir, config.source.path, config.source.image_column, config.task) == (text,) * 4


@pytest.mark.parametrize("text", ["no", "12:30", "1_000", "1.10", "2024-01-01", "2024-13-45", "0x10", "on", "=", "~x"])
def test_a_text_of_a_file_is_taken_as_typed(images: Path, tmp_path: Path, text: str) -> None:
    lines = yaml.safe_dump(scripted_tree(images, tmp_path / "run")).replace("demo_world", text)
    config = load_config(
        written(f"{lines}\nevaluate: {{benchmarks: [{{path: x, columns: {{id: {text}}}}}]}}", tmp_path)
    )
    assert config.task == text
    assert config.evaluate is not None
    assert config.evaluate.benchmarks[0].columns == {"id": text}


@pytest.mark.parametrize(
    ("setting", "text", "value"),
    [
        ("source.limit", "1_000", 1000),
        ("source.limit", "null", None),
        ("source.skip_duplicates", "no", False),
        ("source.skip_duplicates", "true", True),
        ("source.fraction", "5e-1", 0.5),
        ("source.extensions", "[no, 12:30, jpg]", ("no", "12:30", "jpg")),
        ("source.extensions", "[]", ()),
        ("source.id_column", "null", None),
        ("source.id_column", "", None),
        ("source.id_column", "no", "no"),
    ],
)
def test_other_settings_are_read_as_yaml(file: Path, setting: str, text: str, value: object) -> None:
    branch, _, name = setting.partition(".")
    assert getattr(getattr(load_config(file, {setting: text}), branch), name) == value


@pytest.mark.parametrize("text", ["12:30", "2024-01-01", "five", "[1]"])
def test_a_number_is_not_guessed(file: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"source\.limit = "):
        load_config(file, {"source.limit": text})


def test_arguments_of_an_engine_keep_their_types(images: Path, tmp_path: Path) -> None:
    arguments = "{enforce_eager: yes, max_loras: 4, hf_overrides: {a: 1.5, b: 'no', c: 12:30}, x: null}"
    tree = scripted_tree(images, tmp_path) | {"teacher": {"model": "x"}}
    config = load_config(
        written(tree, tmp_path),
        {
            "teacher.engine.engine_args": arguments,
            "teacher.engine.engine_args.seed": "7",
            "teacher.engine.dtype": "auto",
        },
    )
    assert config.teacher.engine.model_dump()["engine_args"] == {
        "enforce_eager": True,
        "max_loras": 4,
        "hf_overrides": {"a": 1.5, "b": "no", "c": "12:30"},
        "x": None,
        "seed": 7,
    }


def test_a_branch_and_then_one_of_its_settings(file: Path) -> None:
    overrides = {"teacher.engine": "{kind: scripted, wrong_rate: 0.1}", "teacher.engine.latency_s": "2"}
    engine = load_config(file, overrides).teacher.engine
    assert engine.model_dump(exclude_defaults=True) == {"kind": "scripted", "wrong_rate": 0.1, "latency_s": 2.0}


def test_a_setting_below_an_empty_branch(file: Path) -> None:
    with file.open("a") as lines:
        lines.write("annotate:\n")
    assert load_config(file, {"annotate.num_questions": "2"}).annotate.num_questions == 2


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 500, "nested too deeply"),
        ("run_dir: 2024-13-45x\nrun_dir: y", "the key 'run_dir' occurs twice"),
        ("source: {path: a, path: b}", "the key 'path' occurs twice"),
        ("source: &a [*a]", "its aliases stand for more than 100,000 values"),
        ("? [a, b]\n: c", "is not YAML"),
    ],
)
def test_a_file_with_a_trap_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        load_config(written(text, tmp_path))


def test_a_deep_value_of_the_command_line_is_refused(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"source\.extensions"):
        load_config(file, {"source.extensions": "[" * 500})


def test_settings_that_cannot_be_stored_are_refused(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"run_dir = 'caf.*e9': is not UTF-8"):
        load_config(file, {"run_dir": "caf\udce9"})
    with pytest.raises(ConfigError, match=r"source\.metadata\.0 = .*d83d.*: is not UTF-8"):
        load_config(file, {"source.metadata": ["\ud83d"]})


@pytest.mark.usefixtures("file")
def test_the_home_folder_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = load_config("~/config.yaml", {"run_dir": "~/x", "source.path": "~", "teacher.model": "~/m"})
    assert (config.run_dir, config.source.path, config.teacher.model) == (
        f"{tmp_path}/x",
        str(tmp_path),
        f"{tmp_path}/m",
    )
    assert open_storage("~/x").root == f"{tmp_path}/x"


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("s3:/b/x", "s3://b/x"),
        ("s3:b/x", "s3://b/x"),
        ("s3:///b/x", "s3://b/x"),
        ("S3://b/x", "s3://b/x"),
        ("gs:/b", "gs://b"),
        ("s3a://b/x", "s3://b/x"),
        ("gcs://bucket/x", "gs://bucket/x"),
        ("https:/h/x", "https://h/x"),
        ("file:/x", "file:///x"),
        ("s3://b/x", None),
        ("file:///x", None),
        ("bundled:demo/models/teacher", None),
        ("owner/name", None),
        ("/data/s3:/x", None),
        ("12:30/x", None),
        ("https://h/x", None),
    ],
)
def test_a_uri_with_too_few_slashes_is_refused(file: Path, text: str, right: str | None) -> None:
    assert misspelled_uri(text) == right
    if right is not None:
        for setting in ("run_dir", "source.path", "teacher.model", "students.0.labels.path"):
            with pytest.raises(ConfigError, match=rf"{setting} = '{text}': is a misspelled URI: write {right}\."):
                load_config(file, {setting: text})
        with pytest.raises(ConfigError, match=f"write {right}"):
            open_storage(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("az://container/x", "az:// is not supported: give a local path or an s3:// URI"),
        ("hdfs://host/x", "hdfs:// is not supported"),
        ("abfss://container/x", "abfss:// is not supported"),
        ("my-store://x", "my-store:// is not supported"),
        ("s3://", "names no bucket: write s3://BUCKET/PREFIX"),
        ("gs://", "names no bucket: write gs://BUCKET/PREFIX"),
        ("s3://my bucket/x", "'my bucket' cannot be the name of a bucket"),
        ("s3://b%20d/x", "'b%20d' cannot be the name of a bucket"),
        ("gs://Bucket/x", "'Bucket' cannot be the name of a bucket"),
    ],
)
def test_a_uri_that_no_store_can_have_is_refused(file: Path, text: str, problem: str) -> None:
    for setting in ("run_dir", "source.path", "teacher.model", "students.0.labels.path"):
        with pytest.raises(ConfigError, match=re.escape(f"{setting} = {text!r}: {problem}")):
            load_config(file, {setting: text})
    with pytest.raises(ConfigError, match=re.escape(f"run_dir = {text!r}: {problem}")):
        open_storage(text)


@pytest.mark.parametrize("text", ["s3://Old_Bucket.x/a", "s3://arn:aws:s3:us-east-1:123456789012:accesspoint/x/a"])
def test_unusual_names_of_buckets_are_accepted(file: Path, text: str) -> None:
    assert load_config(file, {"run_dir": text}).run_dir == text


def test_a_file_uri_is_the_path_that_it_names(file: Path) -> None:
    assert load_config(file, {"source.path": "file:///data/my%20images"}).source.path == "/data/my images"


def billion_laughs(base: int, levels: int) -> str:
    lines = ["a0: &a0 [" + ", ".join(["x"] * base) + "]"]
    lines += [f"a{n}: &a{n} [" + ", ".join([f"*a{n - 1}"] * base) + "]" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    "text",
    [
        billion_laughs(9, 6),
        billion_laughs(9, 9),
        "a0: &a0 {k: v}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 9)),
        "a: &a [*a]\n",
        "a: &a {b: *a}\n",
    ],
)
def test_aliases_that_stand_for_too_many_values_are_refused_at_once(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    started = time.monotonic()
    with pytest.raises(
        ConfigError, match=r"--config = .*: is not YAML \(its aliases stand for more than 100,000 values"
    ):
        load_config(path)
    with pytest.raises(ConfigError, match="its aliases stand for"):
        load_task(path)
    assert time.monotonic() - started < 2


def test_aliases_are_usable(file: Path) -> None:
    tree = yaml.safe_load(file.read_text())
    file.write_text(
        f"identify:\n  matcher:\n    kind: any_of\n    of: [&m {{kind: numeric}}, *m]\n{yaml.safe_dump(tree)}"
    )
    matcher = load_config(file).identify.matcher
    assert isinstance(matcher, AnyOfMatch)
    assert len(matcher.of) == 2


@pytest.mark.parametrize("rest", ["", "/*.png", "/below"])
def test_a_path_that_a_comment_cuts_is_refused(file: Path, tmp_path: Path, rest: str) -> None:
    (tmp_path / "my images #1").mkdir()
    tree = yaml.safe_load(file.read_text())
    tree["source"] = {"path": "PATH"}
    text = yaml.safe_dump(tree)
    file.write_text(text.replace("PATH", f"{tmp_path}/my images #1{rest}"))
    with pytest.raises(
        ConfigError, match=rf"^source\.path = '{tmp_path}/my images': does not exist, and '.*/my images #1'"
    ):
        load_config(file)
    file.write_text(text.replace("PATH", f'"{tmp_path}/my images #1{rest}"'))
    assert load_config(file).source.path == f"{tmp_path}/my images #1{rest}"
    # A comment is not a part of a path, even if the path does not exist.
    for path in (tmp_path, "/nowhere"):
        file.write_text(text.replace("PATH", f"{path}  # my images"))
        assert load_config(file).source.path == str(path)


def test_an_empty_path_is_refused(file: Path) -> None:
    with pytest.raises(ConfigError, match="run_dir = '': is empty"):
        load_config(file, {"run_dir": ""})
    with pytest.raises(ConfigError, match="run_dir = None"):
        load_config(file, {"run_dir": None})
    with pytest.raises(ConfigError, match="run_dir = '': is empty"):
        open_storage("")


def test_one_setting_of_a_branch_leaves_the_others_alone(file: Path) -> None:
    default = load_config(file).annotate.sampling
    sampling = load_config(file, {"annotate.sampling.seed": "1"}).annotate.sampling
    assert sampling == default.model_copy(update={"seed": 1})
    assert sampling.temperature == 0.7


def branches(settings: Any, path: str = "") -> Any:
    """Each branch of the tree that has a default, with a setting that may be written alone."""
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        items = value if isinstance(value, list) else [value]
        for index, item in enumerate(items):
            below = f"{path}{name}.{index}." if isinstance(value, list) else f"{path}{name}."
            if hasattr(type(item), "model_fields"):
                yield from ((f"{below}{own}", getattr(item, own)) for own in type(item).model_fields)
                yield from branches(item, below)


def test_no_setting_depends_on_the_presence_of_another(images: Path, tmp_path: Path) -> None:
    """Writing any setting with the value that it has by default changes nothing."""
    tree = scripted_tree(images, tmp_path / "run")
    tree["students"], tree["teacher"] = [{"model": "x"}], {"model": "x"}
    config = RunConfig.model_validate(tree)
    path = written(tree, tmp_path)
    settings = list(branches(config))
    assert len(settings) > 100
    for name, value in settings:
        if value is None or hasattr(type(value), "model_fields"):
            continue
        plain = list(value) if isinstance(value, tuple) else value
        assert load_config(path, {name: plain}) == config, name


def test_a_setting_of_the_method_alone_keeps_the_method(file: Path) -> None:
    assert load_config(file, {"students.0.level.method.rank": "8"}).students[0].level.method.kind == "lora"
    full = load_config(file, {"students.0.level.method": "{kind: full}"}).students[0].level.method
    assert full.kind == "full"


def test_options_of_an_object_store_are_taken_as_typed() -> None:
    store = load_object_store({"object_store.region": "no", "object_store.max_attempts": "3"})
    assert (store.region, store.max_attempts) == ("no", 3)


def test_a_task_file_is_taken_as_typed(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("name: on\nlanguage: no\nannotation_prompt: 'x {format}'\nanswer_prompt: '{question}'\n")
    task = load_task(path)
    assert (task.name, task.language) == ("on", "no")
    path.write_text('{name: x, answer_prompt: "\\ud83d {question}", annotation_prompt: "{format}"}')
    with pytest.raises(ConfigError, match="answer_prompt is not UTF-8"):
        load_task(path)
    path.write_text("[" * 500)
    with pytest.raises(ConfigError, match="nested too deeply"):
        load_task(path)

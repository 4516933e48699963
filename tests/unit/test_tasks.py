"""Tasks of the library, a user's own task, and errors in a task's file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mpa_ray.config import NumericMatch
from mpa_ray.errors import ConfigError
from mpa_ray.tasks.library import TASKS, find_task
from mpa_ray.tasks.task import PREAMBLE, load_task

OWN_TASK = {
    "name": "schilder",
    "language": "de",
    "annotation_prompt": "Schreibe eine Frage zum Bild.\n{format}",
    "answer_prompt": "{question}\nAntworte kurz.",
    "labels": {"question": ["Frage"], "answer": ["Antwort"]},
    "matcher": {"kind": "numeric", "tolerance": 0.1},
    "metric": "anls",
    "max_answer_words": 3,
}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({**OWN_TASK, **changes}, allow_unicode=True), encoding="utf-8")
    return path


def test_a_users_own_task_needs_no_code(tmp_path: Path) -> None:
    task = find_task(str(written(tmp_path)))
    assert task.annotation_prompt() == (
        f"{PREAMBLE}Schreibe eine Frage zum Bild.\nReply with two lines and nothing else:\n"
        "Frage: <the question>\nAntwort: <the answer>"
    )
    assert task.annotation_prompt(as_json=True).count("JSON") == 1
    assert task.answer_prompt(" Was {steht} da? ") == f"{PREAMBLE}Was {{steht}} da?\nAntworte kurz."
    assert (task.matcher, task.metric) == (NumericMatch(kind="numeric", tolerance=0.1), "anls")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer_prompt": "Answer."}, r"answer_prompt must have exactly one \{question\}"),
        ({"answer_prompt": "{question} {question}"}, r"answer_prompt must have exactly one \{question\}"),
        ({"answer_prompt": "{question} {image}"}, r"answer_prompt has \{image\}; it may only have \{question\}"),
        ({"annotation_prompt": "{format}{format}"}, r"annotation_prompt may have at most one \{format\}"),
        ({"annotation_prompt": "{question}"}, r"annotation_prompt has \{question\}"),
        ({"annotation_prompt": "open {"}, "annotation_prompt: .*write {{ and }} for braces"),
        ({"metric": "accuracy"}, "metric: 'accuracy' is not a metric; choose one of vqa_accuracy"),
        ({"matcher": "fuzzy"}, "matcher: has an unknown `kind`. Choose one of exact"),
        ({"matcher": {"kind": "numeric", "tolerance": -1}}, r"mine\.yaml': matcher\.tolerance: "),
        ({"matcher": {"kind": "any_of", "of": [{"kind": "anls", "threshold": 2}]}}, r"': matcher\.of\.0\.threshold: "),
        ({"labels": {"question": []}}, "labels.question: "),
        ({"prompt": "x"}, "prompt: "),
        ({"answer_promt": "x"}, r"answer_promt: is not a setting\. Did you mean answer_prompt\?"),
        ({"max_answer_word": 3}, r"Did you mean max_answer_words\?"),
        ({"labels": {"quesion": ["Q"]}}, r"labels\.quesion: is not a setting\. Did you mean labels\.question\?"),
        ({"teacher_knows_format": 3}, "is neither true nor false"),
        ({"name": "a b"}, "name: "),
        ({"version": 0}, "version: "),
    ],
)
def test_a_wrong_field_of_a_file_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_task(written(tmp_path, **changes))


def test_a_misspelled_field_is_named_before_the_field_that_is_missing(tmp_path: Path) -> None:
    file = written(tmp_path)
    file.write_text(file.read_text(encoding="utf-8").replace("answer_prompt", "answer_promt"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"answer_promt: is not a setting\. Did you mean answer_prompt\?"):
        load_task(file)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("name: x\n\tversion: 1\n", "line 2, column 1: a tab where only spaces are allowed"),
        ("name: [x\n", "line 2, column 1: "),
        ("name: x\nname: y\n", "line 2, column 1: the key 'name' occurs twice"),
    ],
)
def test_an_error_in_yaml_takes_one_line(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_task(tmp_path / "mine.yaml")
    assert f"is not YAML ({problem}" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("prompt", "asks"),
    [
        ("Schreibe eine Frage zum Bild.\n{format}", True),
        ("Schreibe zwei Zeilen:\nFrage: <die Frage>\nAntwort: <die Antwort>", True),
        ('Write "Question: ..." and then "Answer: ..."', True),
        ("Reply in JSON.", True),
        ("Write one question about this image and its short answer.", False),
        ("Write one question: short. Then the answer: short.", False),
        ("Schreibe eine Frage und die Antwort.", False),
        ("Frage: was siehst du?", False),
    ],
)
def test_a_prompt_asks_for_a_format_or_not(tmp_path: Path, prompt: str, asks: bool) -> None:
    assert load_task(written(tmp_path, annotation_prompt=prompt)).asks_for_format == asks
    assert load_task(written(tmp_path, annotation_prompt=prompt, teacher_knows_format=True)).asks_for_format


def test_every_task_of_the_library_asks_for_its_format() -> None:
    assert all(task.asks_for_format for task in TASKS.values())


def test_a_file_that_is_not_a_task_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- 1")
    for name, message in (
        (str(tmp_path / "list.yaml"), "the file: "),
        ("no.yaml", "cannot be read"),
        ("vqa", "Choose one"),
    ):
        with pytest.raises(ConfigError, match=message):
            find_task(name)


def test_the_library_has_the_tasks_of_the_paper_and_of_the_bundled_world() -> None:
    assert {name: task.metric for name, task in TASKS.items()} == {
        "text_vqa": "textvqa_m4c",
        "scene_text_vqa": "anls",
        "chart_qa": "relaxed_accuracy",
        "knowledge_vqa": "vqa_accuracy",
        "demo_world": "exact_match",
    }
    assert TASKS["text_vqa"].annotation_prompt() == TASKS["scene_text_vqa"].annotation_prompt()


def test_the_remedy_names_the_folder_of_the_tasks(tmp_path: Path) -> None:
    """In earlier versions, it named a folder of the repository, which users of the wheel do not have."""
    (tmp_path / "task.yaml").write_text("name: mine\n")
    with pytest.raises(ConfigError, match=r"is required\. Start from a task in (.*)\.$") as caught:
        find_task(str(tmp_path / "task.yaml"))
    folder = str(caught.value).rpartition(" in ")[2].removesuffix(".")
    assert (Path(folder) / "text_vqa.yaml").is_file()

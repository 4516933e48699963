"""Tasks as data: the ones that ship, one of a user's own, and what is wrong with a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mpa_ray.config import NumericMatch
from mpa_ray.errors import ConfigError
from mpa_ray.tasks.library import TASKS, find_task
from mpa_ray.tasks.task import PREAMBLE, load_task

MINE = {
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
    path.write_text(yaml.safe_dump({**MINE, **changes}, allow_unicode=True), encoding="utf-8")
    return path


def test_a_task_of_ones_own_needs_no_code(tmp_path: Path) -> None:
    task = find_task(str(written(tmp_path)))
    assert task.annotation_prompt() == (
        f"{PREAMBLE}Schreibe eine Frage zum Bild.\nReply with two lines and nothing else:\n"
        "Frage: <the question>\nAntwort: <the answer>"
    )
    assert task.annotation_prompt(as_json=True).count("JSON") == 1
    assert task.answer_prompt(" Was {steht} da? ") == f"{PREAMBLE}Was {{steht}} da?\nAntworte kurz."
    assert (task.matcher, task.metric) == (NumericMatch(kind="numeric", tolerance=0.1), "anls")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"answer_prompt": "Answer."}, r"answer_prompt needs \{question\} once"),
        ({"answer_prompt": "{question} {question}"}, r"answer_prompt needs \{question\} once"),
        ({"answer_prompt": "{question} {image}"}, r"answer_prompt has \{image\}; it may have \{question\} alone"),
        ({"annotation_prompt": "{format}{format}"}, r"annotation_prompt needs \{format\} at most once"),
        ({"annotation_prompt": "{question}"}, r"annotation_prompt has \{question\}"),
        ({"annotation_prompt": "open {"}, "annotation_prompt: .*write {{ and }} for braces"),
        ({"metric": "accuracy"}, "metric: 'accuracy' is not a metric; choose one of vqa_accuracy"),
        ({"matcher": "fuzzy"}, "matcher: .*'fuzzy'"),
        ({"matcher": {"kind": "numeric", "tolerance": -1}}, r"mine\.yaml': matcher\.tolerance: "),
        ({"matcher": {"kind": "any_of", "of": [{"kind": "anls", "threshold": 2}]}}, r"': matcher\.of\.0\.threshold: "),
        ({"labels": {"question": []}}, "labels.question: "),
        ({"prompt": "x"}, "prompt: "),
        ({"name": "a b"}, "name: "),
        ({"version": 0}, "version: "),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_task(written(tmp_path, **changes))


def test_a_file_that_is_no_task(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- 1")
    for name, told in (
        (str(tmp_path / "list.yaml"), "the file: "),
        ("no.yaml", "cannot be read"),
        ("vqa", "Choose one"),
    ):
        with pytest.raises(ConfigError, match=told):
            find_task(name)


def test_the_shipped_tasks_are_those_of_the_paper_and_the_bundled_world() -> None:
    assert {name: task.metric for name, task in TASKS.items()} == {
        "text_vqa": "textvqa_m4c",
        "scene_text_vqa": "anls",
        "chart_qa": "relaxed_accuracy",
        "knowledge_vqa": "vqa_accuracy",
        "demo_world": "exact_match",
    }
    assert TASKS["text_vqa"].annotation_prompt() == TASKS["scene_text_vqa"].annotation_prompt()

"""Answers that were written as a printed list are read as a list, or refused; answers in brackets stay answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpa_ray.config import BenchmarkConfig, ObjectStoreConfig
from mpa_ray.corpus.places.places import Places
from mpa_ray.errors import ConfigError
from mpa_ray.evaluation.benchmarks import read_benchmark
from mpa_ray.evaluation.benchmarks.printed_list import parse_printed_list


def answers(folder: Path, value: Any) -> list[str]:
    row = {"question_id": "1", "image": "a.png", "question": "?", "answers": value}
    (folder / "q.jsonl").write_text(json.dumps(row))
    spec = BenchmarkConfig(path=str(folder / "q.jsonl"))
    return [answer for question in read_benchmark(spec, Places(ObjectStoreConfig())) for answer in question.answers]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("['red', 'dark red']", ["red", "dark red"]),
        ('["red", "it\'s"]', ["red", "it's"]),
        (" ['a'] ", ["a"]),
        ("['a', 'b',\n 'c']", ["a", "b", "c"]),
        ('["a", "\\u00e9"]', ["a", "é"]),
        ("[{'answer': 'yes', 'answer_id': 1}, {'answer': 'no', 'answer_id': 2}]", ["yes", "no"]),
        ('[{"answer": "yes", "sure": true}]', ["yes"]),
        ("red", ["red"]),
        ("[unclear]", ["[unclear]"]),
        ("[red] and [blue]", ["[red] and [blue]"]),
        ("(1, 2)", ["(1, 2)"]),
        (["[1, 2]"], ["[1, 2]"]),
        (["red", "blue"], ["red", "blue"]),
        ("it's ['a']", ["it's ['a']"]),
    ],
)
def test_answers_as_text(value: Any, expected: list[str], tmp_path: Path) -> None:
    """In earlier versions, every model got 0 for `['red', 'dark red']`, which counted as one answer."""
    assert answers(tmp_path, value) == expected


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("['red' 'dark red']", "looks like a printed array"),
        ("['red'\n 'blue']", "looks like a printed array"),
        ("array(['red', 'blue'], dtype=object)", "looks like a printed list"),
        ("['red', nan]", "looks like a printed list"),
        ("['red', 'dark", None),
        ("[1990, 1991]", "may be a printed list or an answer"),
        ("[]", "may be a printed list or an answer"),
        ("['a', 1]", "may be a printed list or an answer"),
        ("['it's']", "looks like a printed list"),
    ],
)
def test_lists_that_cannot_be_read_are_refused(value: str, problem: str | None, tmp_path: Path) -> None:
    if problem is None:
        assert answers(tmp_path, value) == [value]
        return
    with pytest.raises(
        ConfigError, match=rf"line 1: 'answers' is the text .*{problem}.*Give a list of texts"
    ) as caught:
        answers(tmp_path, value)
    assert json.dumps([value])[:60] in str(caught.value)


@given(st.lists(st.text(), min_size=1))
def test_a_printed_list_is_read_back(values: list[str]) -> None:
    assert parse_printed_list(repr(values)) == values


@given(st.text())
def test_no_text_raises_another_error(text: str) -> None:
    for form in (text, f"[{text}]", f"['{text}']"):
        try:
            parse_printed_list(form)
        except ValueError as error:
            assert "which" in str(error)  # noqa: PT017


def test_an_unknown_escape_gives_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    assert parse_printed_list(r"['\Xi', 'b']") == [r"\Xi", "b"]
    assert not recwarn.list

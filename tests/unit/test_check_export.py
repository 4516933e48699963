"""When the answers of an engine and of transformers to the questions of an export differ too much."""

from __future__ import annotations

import pytest

from mpa_ray.errors import RunError
from mpa_ray.phases.check_export import compare_answers
from mpa_ray.records import Prediction
from mpa_ray.run.export_check import CheckedAnswer

CLEAR, NEAR_TIE = 4.0, 0.1


def checked(margins: list[float | None]) -> list[CheckedAnswer]:
    return [
        CheckedAnswer(f"{n}#0", f"{n}", f"{n}.png", f"What is in place {n}?", "a cup", margin)
        for n, margin in enumerate(margins)
    ]


def predicted(rows: list[CheckedAnswer], replies: list[str | None]) -> list[Prediction]:
    return [
        Prediction(
            row.annotation_id, row.image_id, row.uri, row.question, [row.answer], "all", "kept", prediction=reply
        )
        for row, reply in zip(rows, replies, strict=True)
    ]


def compared(margins: list[float | None], replies: list[str | None]) -> str | None:
    rows = checked(margins)
    return compare_answers("students/s/parity/merged", "vllm", rows, predicted(rows, replies))


def test_equal_answers_need_no_line() -> None:
    assert compared([CLEAR, NEAR_TIE, None], ["a cup", " a cup\n", "a cup"]) is None


def test_an_export_whose_clear_answers_differ_is_refused() -> None:
    with pytest.raises(
        RunError, match=r"merged answers differently in vllm and in transformers: 'What is in place 0\?'"
    ):
        compared([CLEAR, CLEAR, None, NEAR_TIE], ["a key", None, "a cap", "a cup"])


def test_a_few_different_answers_are_reported() -> None:
    line = compared([CLEAR, CLEAR, CLEAR, CLEAR], ["a key", "a cup", "a cup", "a lid"])
    assert line is not None
    assert "2 of 4 answers differ between vllm and transformers, 0 of them where" in line
    assert "'What is in place 0?': 'a key', not 'a cup'" in line


def test_a_sound_student_with_near_ties_is_not_refused() -> None:
    """A weak student may have two tokens that are about equally likely in every answer."""
    line = compared([NEAR_TIE] * 4, ["a key", "a cap", "a lid", "a pen"])
    assert line is not None
    assert "4 of 4 answers differ between vllm and transformers, 4 of them where" in line


def test_a_clear_difference_is_shown_before_near_ties() -> None:
    line = compared([NEAR_TIE] * 7 + [CLEAR], ["a key"] * 7 + ["a lid"])
    assert line is not None
    assert "8 of 8" in line
    assert line.endswith("'What is in place 7?': 'a lid', not 'a cup'")

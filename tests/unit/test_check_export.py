"""When the answers of an engine and of transformers to the questions of an export differ too much."""

from __future__ import annotations

import pytest

from mpa_ray.errors import RunError
from mpa_ray.phases.check_export import compare_answers
from mpa_ray.records import Prediction
from mpa_ray.run.export_check import CheckedAnswer, NearTie, differs_clearly, near_ties

CLEAR: tuple[NearTie, ...] = ()
AT_THE_NOUN = (NearTie(1, 5),)
"""A near-tie at the last word of `a cup`."""
AT_THE_ARTICLE = (NearTie(0, 1),)


def checked(ties: list[tuple[NearTie, ...]]) -> list[CheckedAnswer]:
    return [
        CheckedAnswer(f"{n}#0", f"{n}", f"{n}.png", f"What is in place {n}?", "a cup", spans)
        for n, spans in enumerate(ties)
    ]


def predicted(rows: list[CheckedAnswer], replies: list[str | None]) -> list[Prediction]:
    return [
        Prediction(
            row.annotation_id, row.image_id, row.uri, row.question, [row.answer], "all", "kept", prediction=reply
        )
        for row, reply in zip(rows, replies, strict=True)
    ]


def compared(ties: list[tuple[NearTie, ...]], replies: list[str | None]) -> str | None:
    rows = checked(ties)
    return compare_answers("students/s/parity/merged", "vllm", rows, predicted(rows, replies))


def test_equal_answers_need_no_line() -> None:
    assert compared([CLEAR, AT_THE_NOUN, CLEAR], ["a cup", " a cup\n", "a cup"]) is None


def test_an_export_whose_clear_answers_differ_is_refused() -> None:
    with pytest.raises(
        RunError, match=r"merged answers differently in vllm and in transformers: 'What is in place 0\?'"
    ):
        compared([CLEAR, CLEAR, CLEAR, AT_THE_NOUN], ["a key", None, "a cap", "a cup"])


def test_a_near_tie_elsewhere_in_the_answer_is_no_excuse() -> None:
    """In earlier versions, one near-tie anywhere in a long answer was enough."""
    with pytest.raises(RunError, match="merged answers differently"):
        compared([AT_THE_ARTICLE] * 4, ["a key", "a cap", "a lid", "a pen"])


def test_a_few_different_answers_are_reported() -> None:
    line = compared([CLEAR, CLEAR, CLEAR, CLEAR], ["a key", "a cup", "a cup", "a lid"])
    assert line is not None
    assert "2 of 4 answers differ between vllm and transformers, 0 of them where" in line
    assert "'What is in place 0?': 'a key', not 'a cup'" in line


def test_a_sound_student_with_near_ties_is_not_refused() -> None:
    """A weak student may have two tokens that are about equally likely in every answer."""
    line = compared([AT_THE_NOUN] * 4, ["a key", "a cap", "a lid", "a pen"])
    assert line is not None
    assert "4 of 4 answers differ between vllm and transformers, 4 of them where" in line


def test_a_clear_difference_is_shown_before_near_ties() -> None:
    line = compared([AT_THE_NOUN] * 7 + [CLEAR], ["a key"] * 7 + ["a lid"])
    assert line is not None
    assert "8 of 8" in line
    assert line.endswith("'What is in place 7?': 'a lid', not 'a cup'")


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ("a red cup", False),
        ("a gray cup", False),
        ("a red one", False),
        ("a green cup", False),
        ("a green cap", True),
        ("the green cup", True),
    ],
)
def test_only_the_first_difference_counts(other: str, expected: bool) -> None:
    near_tie_at_the_colour = (NearTie(1, 7),)
    assert differs_clearly("a green cup", near_tie_at_the_colour, other) is expected


def spans_of(tokens: list[str], margins: list[float], answer: str) -> tuple[NearTie, ...]:
    return near_ties(margins, answer, lambda num_tokens: "".join(tokens[:num_tokens]))


def test_a_near_tie_is_the_place_of_its_token_in_the_answer() -> None:
    # The last token ends the reply and has no text.
    tokens, margins = ["a", " green", " cup", ""], [4.0, 0.1, 3.0, 0.2]
    assert spans_of(tokens, margins, "a green cup") == (NearTie(1, 7), NearTie(11, 11))
    assert differs_clearly("a green cup", spans_of(tokens, margins, "a green cup"), "a green cup.") is False
    assert spans_of(tokens, [4.0, float("inf"), float("nan"), 0.5], "a green cup") == ()


def test_a_near_tie_before_the_answer_may_change_all_of_it() -> None:
    tokens = ["<think>", "red", "</think>", "a", " cup"]
    assert spans_of(tokens, [4.0, 0.1, 4.0, 4.0, 4.0], "a cup") == (NearTie(0, 5),)
    assert spans_of(tokens, [4.0, 4.0, 4.0, 4.0, 0.1], "a cup") == (NearTie(1, 5),)
    assert spans_of(tokens, [4.0, 0.1, 4.0, 4.0, 4.0], "a cut answer") == (NearTie(0, 12),)

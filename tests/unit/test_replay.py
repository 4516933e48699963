"""The pairs that the student already answers: which are mixed into training, and which measure forgetting."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from mpa_ray.config import LevelConfig
from mpa_ray.leveling.replay import select_known_pairs, shortfall
from mpa_ray.metrics.answer_types import answer_type
from mpa_ray.records import State, Verdict


def verdict(number: int, answer: str = "2", *, known: bool = True) -> Verdict:
    state, reason = (State.DROPPED, "student_correct") if known else (State.KEPT, None)
    return Verdict(f"{number}#0", f"{number}", "/i", state.value, reason, question="?", answer=answer)


def types_of(rows: list[Verdict]) -> Counter[str]:
    return Counter(answer_type(row.answer or "") for row in rows if row.state == State.KEPT)


def selected(rows: list[Verdict], level: LevelConfig) -> dict[str, list[str]]:
    """Annotation ids by role."""
    selection = select_known_pairs(types_of(rows), rows, level)
    names: dict[str, list[str]] = {"trained": [], "retained": []}
    for row in rows:
        role = selection.role(row)
        if role is not None:
            names[role].append(row.annotation_id)
    return names


def test_replayed_pairs_are_known_ones_and_do_not_depend_on_order() -> None:
    rows = [verdict(number, known=number % 2 == 0) for number in range(40)]
    level = LevelConfig(replay_share=0.4, retained_samples=0)
    chosen = selected(rows, level)
    assert len(chosen["trained"]) == 8
    assert set(chosen["trained"]) <= {row.annotation_id for row in rows if row.reason == "student_correct"}
    shuffled = random.Random(0).sample(rows, len(rows))
    assert set(selected(shuffled, level)["trained"]) == set(chosen["trained"])
    assert selected(rows, level.model_copy(update={"seed": 1})) != chosen
    assert len(selected(rows, level.model_copy(update={"replay_share": 5.0}))["trained"]) == 20


def test_retained_pairs_are_not_trained_on_and_at_most_a_tenth_of_the_known() -> None:
    rows = [verdict(number) for number in range(200)] + [verdict(number, known=False) for number in range(200, 300)]
    chosen = selected(rows, LevelConfig(replay_share=9.0))
    assert (len(chosen["trained"]), len(chosen["retained"])) == (180, 20)
    assert not set(chosen["trained"]) & set(chosen["retained"])
    assert len(selected(rows, LevelConfig(retained_samples=7))["retained"]) == 7
    assert selected(rows, LevelConfig(retained_samples=0)) == {"trained": [], "retained": []}


def test_without_known_pairs_nothing_is_selected() -> None:
    rows = [verdict(number, known=False) for number in range(9)]
    assert selected(rows, LevelConfig(replay_share=1.0, balance=True)) == {"trained": [], "retained": []}
    assert selected([], LevelConfig(replay_share=1.0, balance=True)) == {"trained": [], "retained": []}


@pytest.mark.parametrize(
    ("annotated", "parity", "lacking"),
    [
        ({"number": 50, "colour": 50}, {"number": 10}, {"colour": 5}),
        ({"number": 50, "colour": 50}, {"number": 5, "colour": 5}, {}),
        ({"number": 90, "colour": 10}, {"colour": 20}, {"number": 18}),
        ({"number": 1}, {}, {}),
        ({}, {}, {}),
    ],
)
def test_the_shortfall_is_counted_by_answer_type(
    annotated: dict[str, int], parity: dict[str, int], lacking: dict[str, int]
) -> None:
    assert shortfall(annotated, parity) == lacking


def balanced_case() -> list[Verdict]:
    """20 parity pairs about numbers; the student knows 30 colours, 10 words and 40 numbers."""
    rows = [verdict(number, known=False) for number in range(20)]
    answers = ["red"] * 30 + ["dog"] * 10 + ["2"] * 40
    return rows + [verdict(100 + number, answer) for number, answer in enumerate(answers)]


def test_balance_brings_d_pi_to_the_shares_of_d_pa_with_known_pairs() -> None:
    rows = balanced_case()
    answers = {row.annotation_id: row.answer or "" for row in rows}
    level = LevelConfig(balance=True)
    chosen = selected(rows, level)
    # Of 100 pairs 30 are colours and 10 words: in a set of 20 that is 6 and 2.
    assert Counter(answer_type(answers[name]) for name in chosen["trained"]) == {"colour": 6, "single_word": 2}
    assert set(selected(rows[::-1], level)["trained"]) == set(chosen["trained"])
    assert selected(rows, level.model_copy(update={"seed": 1})) != chosen


def test_no_pair_is_both_balancing_and_replayed() -> None:
    chosen = selected(balanced_case(), LevelConfig(balance=True, replay_share=10, retained_samples=0))
    assert len(chosen["trained"]) == len(set(chosen["trained"])) == 80

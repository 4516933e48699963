"""Another matcher on stored verdicts, and the pairs that training takes beside D_PI."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpa_ray.config import LevelConfig
from mpa_ray.engine.protocol import Reply
from mpa_ray.matching import MATCHERS
from mpa_ray.metrics.answer_types import answer_type
from mpa_ray.records import Annotation, ParitySample, State, Verdict
from mpa_ray.stages.identify import WorthAsking
from mpa_ray.stages.judge import judge, parity_samples
from mpa_ray.stages.rejudge import Changes, rejudge
from mpa_ray.stages.top_up import further_samples, shortfall

PAIR = Annotation("a#0", "a", "/a", "kept", question="how many?", answer="2", second_answer="2")
EXACT = MATCHERS["exact"]
ANSWERS = st.sampled_from(["2", "two", "Two!", "the two", "3", ""])
NAMES = st.sampled_from(sorted(MATCHERS))


def reply(text: str) -> Reply:
    return Reply(text, "stop", 1, 0, 1, 0, None, 0.0)


def verdict(second: str, student: str | None, number: int = 0, answer: str = "2") -> Verdict:
    row = replace(PAIR, annotation_id=f"{number}#0", answer=answer, second_answer=second)
    return judge(row, None if student is None else reply(student), EXACT)


@given(second=ANSWERS, student=ANSWERS, first=NAMES, then=NAMES)
def test_with_every_answer_stored_rejudging_is_judging(second: str, student: str, first: str, then: str) -> None:
    row = replace(PAIR, second_answer=second)
    stored = judge(row, reply(student), MATCHERS[first])
    assert rejudge(stored, MATCHERS[then]) == judge(row, reply(student), MATCHERS[then])


@given(second=ANSWERS, student=ANSWERS, first=NAMES, then=NAMES)
def test_where_the_student_was_not_asked_that_is_said(second: str, student: str, first: str, then: str) -> None:
    row = replace(PAIR, second_answer=second)
    asked = WorthAsking(MATCHERS[first])(row)
    stored = judge(row, reply(student) if asked else None, MATCHERS[first])
    again = rejudge(stored, MATCHERS[then])
    if asked or not MATCHERS[then]("2", second):
        assert (again.state, again.reason) == (
            judge(row, reply(student), MATCHERS[then]).state, judge(row, reply(student), MATCHERS[then]).reason,
        )  # fmt: skip
    else:
        assert (again.state, again.reason, again.student_agrees) == ("dropped", "student_not_asked", None)


def test_what_was_not_judged_stays_as_it_is() -> None:
    broken = judge(Annotation("b#0", "b", "/b", State.FAILED.value, reason="empty_file"), None, EXACT)
    assert rejudge(broken, MATCHERS["containment"]) == broken


def test_changes_count_every_move() -> None:
    rows = [verdict("2", "3"), verdict("2", "two"), verdict("two", None), verdict("5", None), verdict("2", "2")]
    changes = Changes()
    after = list(changes.counted(rows, MATCHERS["vqa_normalized"]))
    record = changes.record()
    assert record["cells_before"] == {
        "teacher_yes_student_no": 2, "teacher_no_student_not_asked": 2, "teacher_yes_student_yes": 1,
    }  # fmt: skip
    assert record["cells_after"] == {
        "teacher_yes_student_no": 1, "teacher_yes_student_yes": 2, "teacher_yes_student_not_asked": 1,
        "teacher_no_student_not_asked": 1,
    }  # fmt: skip
    assert record["parity_samples"] == {"before": 2, "after": 1, "gained": 0, "lost": 1}
    assert record["num_not_asked"] == 1
    assert sum(move["verdicts"] for move in record["moves"]) == len(rows)
    assert [sample.student_answer for sample in parity_samples(after)] == ["3"]
    told = changes.table("small.vqa_normalized")
    assert "on 1 pairs the teacher agrees with itself by this matcher alone" in told
    assert "(0 gained, 1 lost)" in told


def parity_of(rows: list[Verdict]) -> list[ParitySample]:
    return list(parity_samples(rows))


def test_replayed_pairs_are_known_ones_and_do_not_depend_on_order() -> None:
    rows = [verdict("2", "3" if number % 2 else "2", number) for number in range(40)]
    known = {row.annotation_id for row in rows if row.reason == "student_correct"}
    parity = parity_of(rows)[:16]
    level = LevelConfig(replay_share=0.5)
    chosen = further_samples(parity, lambda: rows, level)
    assert len(known) == 20
    assert len({sample.annotation_id for sample in chosen}) == 8
    assert {sample.annotation_id for sample in chosen} <= known
    assert chosen == further_samples(parity, lambda: list(reversed(rows)), level)
    assert chosen != further_samples(parity, lambda: rows, LevelConfig(replay_share=0.5, seed=1))
    assert len(further_samples(parity, lambda: rows, LevelConfig(replay_share=5))) == 20


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
def test_shortfall(annotated: dict[str, int], parity: dict[str, int], lacking: dict[str, int]) -> None:
    assert shortfall(annotated, parity) == lacking


def balanced_case() -> list[Verdict]:
    """20 parity pairs about numbers; the student knows 30 colours, 10 words and 40 numbers."""
    rows = [verdict("2", "3", number) for number in range(20)]
    answers = ["red"] * 30 + ["dog"] * 10 + ["2"] * 40
    return rows + [verdict(answer, answer, 100 + number, answer) for number, answer in enumerate(answers)]


def test_balance_brings_d_pi_to_the_shares_of_d_pa_with_known_pairs() -> None:
    rows = balanced_case()
    parity = parity_of(rows)
    level = LevelConfig(balance=True)
    added = further_samples(parity, lambda: rows, level)
    # Of 100 pairs 30 are colours and 10 words: in a set of 20 that is 6 and 2.
    assert Counter(answer_type(sample.answer) for sample in added) == {"colour": 6, "single_word": 2}
    assert len({sample.annotation_id for sample in added}) == 8
    assert added == further_samples(parity, lambda: list(reversed(rows)), level)
    assert added != further_samples(parity, lambda: rows, LevelConfig(balance=True, seed=1))


def test_no_pair_is_both_balancing_and_replayed() -> None:
    rows = balanced_case()
    added = further_samples(parity_of(rows), lambda: rows, LevelConfig(balance=True, replay_share=10))
    assert len(added) == len({sample.annotation_id for sample in added}) == 80


def test_by_default_nothing_is_added() -> None:
    rows = balanced_case()
    assert further_samples(parity_of(rows), lambda: rows, LevelConfig()) == []

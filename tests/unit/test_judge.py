"""The parity rule: its truth table, and the same table over generated annotations."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpa_ray.engine.protocol import Reply
from mpa_ray.matching import MATCHERS, Matcher
from mpa_ray.records import Annotation, State
from mpa_ray.stages.identify import WorthAsking
from mpa_ray.stages.judge import judge, parity_samples

EXACT = MATCHERS["exact"]
PAIR = Annotation("a#0", "a", "/a", State.KEPT.value, question="What?", answer="red", second_answer="red")


def reply(text: str) -> Reply:
    return Reply(text, "stop", 10, 0, 1, 5, -0.1, 0.0)


@pytest.mark.parametrize(
    ("second", "student", "state", "reason"),
    [
        ("red", "blue", "kept", None),
        ("red", "red", "dropped", "student_correct"),
        ("Red.", "RED", "dropped", "student_correct"),
        ("blue", None, "dropped", "teacher_inconsistent"),
        ("blue", "red", "dropped", "teacher_inconsistent"),
        ("blue", "blue", "dropped", "teacher_inconsistent"),
    ],
)
def test_the_verdict_is_that_of_the_truth_table(
    second: str, student: str | None, state: str, reason: str | None
) -> None:
    verdict = judge(replace(PAIR, second_answer=second), reply(student) if student else None, EXACT)
    assert (verdict.state, verdict.reason) == (state, reason)


def test_a_row_that_was_not_annotated_keeps_its_state_and_reason() -> None:
    broken = Annotation("b#0", "b", "/b", State.FAILED.value, reason="empty_file", detail="0 bytes", attempts=2)
    verdict = judge(broken, None, EXACT)
    assert (verdict.state, verdict.reason, verdict.detail, verdict.attempts) == ("failed", "empty_file", "0 bytes", 2)


def test_a_consistent_pair_needs_the_student() -> None:
    with pytest.raises(ValueError, match="needs the student's reply"):
        judge(PAIR, None, EXACT)


answers = st.sampled_from(["red", "Red.", "blue", "5", ""])
annotated = st.builds(replace, st.just(PAIR), answer=answers, second_answer=answers)
not_annotated = st.builds(
    replace,
    st.just(PAIR),
    state=st.sampled_from(["dropped", "failed"]),
    reason=st.sampled_from(["reply_truncated", "request_failed", "student_correct"]),
    answer=st.none() | answers,
    second_answer=st.none() | answers,
)


def expected_outcome(row: Annotation, student: str, matches: Matcher) -> tuple[str, str | None]:
    """The truth table, in full and without the code of `judge`."""
    if row.state != "kept":
        return row.state, row.reason
    assert row.answer is not None
    assert row.second_answer is not None
    return {
        (True, True): ("dropped", "student_correct"),
        (True, False): ("kept", None),
        (False, True): ("dropped", "teacher_inconsistent"),
        (False, False): ("dropped", "teacher_inconsistent"),
    }[matches(row.answer, row.second_answer), matches(row.answer, student)]


@given(annotated | not_annotated, answers, st.sampled_from(sorted(MATCHERS)), st.booleans())
def test_every_row_has_the_outcome_of_the_truth_table(
    row: Annotation, student: str, matcher: str, where_teacher_disagrees: bool
) -> None:
    matches = MATCHERS[matcher]
    asks_student = WorthAsking(matches, where_teacher_disagrees)(row)
    verdict = judge(row, reply(student) if asks_student else None, matches)
    expected = expected_outcome(row, student, matches)
    assert (verdict.state, verdict.reason) == expected
    assert verdict.student_answer == (student if asks_student else None)
    assert [s.annotation_id for s in parity_samples([verdict])] == (
        [row.annotation_id] if expected[0] == "kept" else []
    )

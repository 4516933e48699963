"""The parity rule: a truth table, and properties over any annotations."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpa_ray.engine.protocol import Reply
from mpa_ray.matching import MATCHERS
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
def test_truth_table(second: str, student: str | None, state: str, reason: str | None) -> None:
    verdict = judge(replace(PAIR, second_answer=second), reply(student) if student else None, EXACT)
    assert (verdict.state, verdict.reason) == (state, reason)


def test_what_the_teacher_could_not_annotate_keeps_its_reason() -> None:
    broken = Annotation("b#0", "b", "/b", State.FAILED.value, reason="empty_file", detail="0 bytes", attempts=2)
    verdict = judge(broken, None, EXACT)
    assert (verdict.state, verdict.reason, verdict.detail, verdict.attempts) == ("failed", "empty_file", "0 bytes", 2)


def test_a_consistent_pair_needs_the_student() -> None:
    with pytest.raises(ValueError, match="the student must be asked"):
        judge(PAIR, None, EXACT)


answers = st.sampled_from(["red", "Red.", "blue", "5", ""])
annotations = st.builds(
    replace,
    st.just(PAIR),
    state=st.sampled_from(["kept", "dropped", "failed"]),
    answer=answers,
    second_answer=answers,
)


@given(annotations, answers, st.sampled_from(sorted(MATCHERS)))
def test_every_row_has_one_verdict_and_kept_is_the_definition(row: Annotation, student: str, matcher: str) -> None:
    matches = MATCHERS[matcher]
    asked = WorthAsking(matches)(row)
    verdict = judge(row, reply(student) if asked else None, matches)
    assert verdict.state in set(State)
    assert (verdict.reason is None) == (verdict.state == "kept" or (row.state != "kept" and row.reason is None))
    kept = (
        row.state == "kept"
        and matches(row.answer or "", row.second_answer or "")
        and not matches(row.answer or "", student)
    )
    assert (verdict.state == "kept") == (kept or (row.state == "kept" and kept))
    assert [s.annotation_id for s in parity_samples([verdict])] == ([row.annotation_id] if kept else [])

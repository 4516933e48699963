"""Another matcher applied to stored verdicts."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from mpa_ray.engine.protocol import Reply
from mpa_ray.matching import MATCHERS
from mpa_ray.records import Annotation, State, Verdict
from mpa_ray.stages.identify import WorthAsking
from mpa_ray.stages.judge import judge, parity_samples
from mpa_ray.stages.rejudge import Changes, rejudge

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
def test_rejudging_equals_judging_if_every_answer_is_stored(second: str, student: str, first: str, then: str) -> None:
    row = replace(PAIR, second_answer=second)
    stored = judge(row, reply(student), MATCHERS[first])
    assert rejudge(stored, MATCHERS[then]) == judge(row, reply(student), MATCHERS[then])


@given(second=ANSWERS, student=ANSWERS, first=NAMES, then=NAMES)
def test_a_pair_that_needs_a_student_who_was_not_asked_is_dropped_as_such(
    second: str, student: str, first: str, then: str
) -> None:
    row = replace(PAIR, second_answer=second)
    asks_student = WorthAsking(MATCHERS[first])(row)
    stored = judge(row, reply(student) if asks_student else None, MATCHERS[first])
    again = rejudge(stored, MATCHERS[then])
    if asks_student or not MATCHERS[then]("2", second):
        assert (again.state, again.reason) == (
            judge(row, reply(student), MATCHERS[then]).state,
            judge(row, reply(student), MATCHERS[then]).reason,
        )
    else:
        assert (again.state, again.reason, again.student_agrees) == ("dropped", "student_not_asked", None)


def test_a_row_that_was_not_judged_stays_unchanged() -> None:
    broken = judge(Annotation("b#0", "b", "/b", State.FAILED.value, reason="empty_file"), None, EXACT)
    assert rejudge(broken, MATCHERS["containment"]) == broken


def test_every_move_is_counted() -> None:
    rows = [verdict("2", "3"), verdict("2", "two"), verdict("two", None), verdict("5", None), verdict("2", "2")]
    changes = Changes()
    after = list(changes.counted(rows, MATCHERS["vqa_normalized"]))
    record = changes.to_json()
    assert record["cells_before"] == {
        "teacher_yes_student_no": 2,
        "teacher_no_student_not_asked": 2,
        "teacher_yes_student_yes": 1,
    }
    assert record["cells_after"] == {
        "teacher_yes_student_no": 1,
        "teacher_yes_student_yes": 2,
        "teacher_yes_student_not_asked": 1,
        "teacher_no_student_not_asked": 1,
    }
    assert record["parity_samples"] == {"before": 2, "after": 1, "gained": 0, "lost": 1}
    assert record["num_not_asked"] == 1
    assert sum(changes.moves.values()) == len(rows)
    assert [sample.student_answer for sample in parity_samples(after)] == ["3"]
    table = changes.table("small.vqa_normalized")
    assert "for 1 pair, the teacher's answers agree according to this matcher but not" in table
    assert "(0 gained, 1 lost)" in table

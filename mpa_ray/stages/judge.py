"""The parity rule: keep a pair if the teacher agrees with itself and the student disagrees. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from mpa_ray.engine.protocol import Reply
from mpa_ray.matching import Matcher
from mpa_ray.records import Annotation, ParitySample, Reason, State, Verdict


def teacher_agrees(annotation: Annotation, matches: Matcher) -> bool | None:
    """Whether the teacher's second answer agrees with its first; None if there are not two answers."""
    if annotation.state != State.KEPT or annotation.answer is None or annotation.second_answer is None:
        return None
    return matches(annotation.answer, annotation.second_answer)


def judge(annotation: Annotation, student: Reply | None, matches: Matcher) -> Verdict:
    """Return the verdict on one annotation.

    | teacher agrees with itself | student agrees | verdict                              |
    |----------------------------|----------------|--------------------------------------|
    | yes                        | no             | kept                                 |
    | yes                        | yes            | dropped: student_correct             |
    | no                         | any            | dropped: teacher_inconsistent        |
    | not annotated              | -              | the annotation's own state and reason |

    The annotation's answer is the reference in both comparisons (arXiv 2509.16633, section on the Parity Identifier).

    Raises:
        ValueError: the teacher agrees with itself, but there is no reply of the student.
    """
    agrees = teacher_agrees(annotation, matches)
    reference = annotation.answer
    student_agrees = matches(reference, student.answer) if student is not None and reference is not None else None
    match agrees, student_agrees:
        case None, _:
            return _verdict(annotation, annotation.state, annotation.reason, detail=annotation.detail)
        case False, _:
            state, reason = State.DROPPED, Reason.TEACHER_INCONSISTENT
        case True, True:
            state, reason = State.DROPPED, Reason.STUDENT_CORRECT
        case True, False:
            return _verdict(annotation, State.KEPT, None, student, agrees, student_agrees)
        case _:
            raise ValueError(
                f"{annotation.annotation_id}: the teacher agrees with itself, so a verdict needs the student's reply"
            )
    return _verdict(annotation, state, reason, student, agrees, student_agrees)


def not_answered(annotation: Annotation, state: State, reason: str, detail: str | None = None) -> Verdict:
    """The verdict on an annotation that the student could not answer."""
    return _verdict(annotation, state, reason, detail=detail)


def answered_without_answer(annotation: Annotation, student: Reply) -> Verdict:
    """The verdict on an annotation to which the student's reply is all reasoning."""
    verdict = not_answered(annotation, State.DROPPED, Reason.REASONING_TRUNCATED)
    return replace(verdict, finish_reason=student.finish_reason, num_prompt_tokens=student.num_prompt_tokens)


def parity_samples(verdicts: Iterable[Verdict]) -> Iterator[ParitySample]:
    """D_PI: the kept verdicts as samples."""
    return (v.sample() for v in verdicts if v.state == State.KEPT)


def _verdict(
    annotation: Annotation,
    state: str,
    reason: str | None,
    student: Reply | None = None,
    agrees: bool | None = None,
    student_agrees: bool | None = None,
    detail: str | None = None,
) -> Verdict:
    return Verdict(
        annotation_id=annotation.annotation_id,
        image_id=annotation.image_id,
        uri=annotation.uri,
        state=str(state),
        reason=None if reason is None else str(reason),
        detail=detail,
        attempts=annotation.attempts,
        metadata=annotation.metadata,
        question=annotation.question,
        answer=annotation.answer,
        second_answer=annotation.second_answer,
        student_answer=student.answer if student else None,
        teacher_agrees=agrees,
        student_agrees=student_agrees,
        finish_reason=student.finish_reason if student else None,
        mean_logprob=student.mean_logprob if student else None,
        num_prompt_tokens=student.num_prompt_tokens if student else 0,
        content_sha256=annotation.content_sha256,
    )

"""Several pairs about one image: the student is asked where the verdict depends on it, and rows keep their order."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from mpa_ray.config import AnswerConfig, SamplingConfig
from mpa_ray.corpus.decode import ImageProblem
from mpa_ray.engine.protocol import JsonSchema, Reply, RequestRefused, SeenImage
from mpa_ray.matching import MATCHERS
from mpa_ray.records import Annotation, LabelledQuestion, Reason, State
from mpa_ray.stages.identify import Identify, WorthAsking
from mpa_ray.stages.predict import Predict
from mpa_ray.stages.shard import ImageWork
from mpa_ray.tasks.library import TASKS

TASK = TASKS["text_vqa"]


class Counting:
    """Answers with the number in the question; tells how many prompts were in it together."""

    max_images_in_flight = 8

    def __init__(self) -> None:
        self.num_now = 0
        self.together: list[int] = []

    async def look(self, image_id: str, content: bytes) -> SeenImage | ImageProblem:
        return SeenImage(image_id, f"{len(content)}")

    async def generate(
        self, image: SeenImage, text: str, sampling: SamplingConfig, schema: JsonSchema | None = None
    ) -> Reply:
        assert (image.image_id, sampling.temperature, schema) == ("a", 0, None)
        number = text.split("number ")[1].split("?")[0]
        if number == "13":
            raise RequestRefused(Reason.PROMPT_TOO_LONG, "scripted")
        self.num_now += 1
        self.together.append(self.num_now)
        await asyncio.sleep(0.001)
        self.num_now -= 1
        return Reply(number, "stop", 10, 0, 1, 5, None, 0.0)

    def close(self) -> None: ...


def pair(number: int, answer: str, second: str) -> Annotation:
    kept = State.KEPT.value
    return Annotation(f"a#{number}", "a", "/a", kept, question=f"number {number}?", answer=answer, second_answer=second)


def test_only_pairs_that_need_it_are_asked_the_first_alone_and_verdicts_keep_their_order() -> None:
    student = Counting()
    failed = replace(pair(3, "", ""), state=State.FAILED.value, reason="request_failed", question=None)
    rows = (pair(0, "0", "x"), pair(1, "1", "1"), pair(2, "9", "9"), failed, pair(13, "9", "9"), pair(4, "4", "4"))
    stage = Identify(student, TASK, AnswerConfig(), WorthAsking(MATCHERS["exact"]))
    verdicts = asyncio.run(stage.visit(ImageWork("a", "/a", rows, b"image")))
    assert [(v.annotation_id, v.state, v.reason) for v in verdicts] == [
        ("a#0", "dropped", "teacher_inconsistent"),
        ("a#1", "dropped", "student_correct"),
        ("a#2", "kept", None),
        ("a#3", "failed", "request_failed"),
        ("a#13", "dropped", "prompt_too_long"),
        ("a#4", "dropped", "student_correct"),
    ]
    assert student.together == [1, 1, 2]


def test_labelled_questions_on_an_image_keep_their_order() -> None:
    model = Counting()
    rows = tuple(LabelledQuestion(f"q{n}", "a", "/a", f"number {n}?", ["1"], "x") for n in (5, 13, 7))
    found = asyncio.run(Predict(model, TASK, AnswerConfig()).visit(ImageWork("a", "/a", rows, b"image")))
    assert [(p.question_id, p.prediction, p.reason) for p in found] == [
        ("q5", "5", None), ("q13", None, "prompt_too_long: scripted"), ("q7", "7", None),
    ]  # fmt: skip

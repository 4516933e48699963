"""Several pairs about one image: the student answers only those that need it, and rows keep their order."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from functools import partial
from pathlib import Path

from mpa_ray.config import AnswerConfig
from mpa_ray.engine.protocol import EncodedImage, Reply, Request, RequestRefused
from mpa_ray.imaging.decode import ImageProblem
from mpa_ray.matching import MATCHERS
from mpa_ray.records import Annotation, LabelledQuestion, OfModel, Reason, State
from mpa_ray.run.joined_datasets import DatasetsOfModels
from mpa_ray.run.run import Run
from mpa_ray.stages.identify import Identify, WorthAsking
from mpa_ray.stages.image_work import ImageWork, failed_images
from mpa_ray.stages.multi_model import build_multi_model
from mpa_ray.stages.predict import Predict
from mpa_ray.tasks.library import TASKS

TASK = TASKS["text_vqa"]


class CountingModel:
    """Answers with the number in the question, and counts calls and concurrent requests."""

    max_images_in_flight = 8

    def __init__(self) -> None:
        self.num_in_flight = 0
        self.concurrency: list[int] = []
        self.adapters: list[str | None] = []
        self.num_encoded = 0

    async def encode_image(self, image_id: str, content: bytes) -> EncodedImage | ImageProblem:
        self.num_encoded += 1
        return EncodedImage(image_id, f"{len(content)}")

    async def generate(self, image: EncodedImage, request: Request) -> Reply:
        assert (image.image_id, request.sampling.temperature, request.schema) == ("a", 0, None)
        self.adapters.append(request.adapter)
        number = request.text.split("number ")[1].split("?")[0]
        if number == "13":
            raise RequestRefused(Reason.PROMPT_TOO_LONG, "scripted")
        self.num_in_flight += 1
        self.concurrency.append(self.num_in_flight)
        await asyncio.sleep(0.001)
        self.num_in_flight -= 1
        return Reply(number if request.adapter != "wrong" else "7", "stop", 10, 0, 1, 5, None, 0.0)

    def close(self) -> None: ...


def pair(number: int, answer: str, second: str) -> Annotation:
    kept = State.KEPT.value
    return Annotation(f"a#{number}", "a", "/a", kept, question=f"number {number}?", answer=answer, second_answer=second)


def test_only_pairs_that_need_it_are_asked_first_one_alone_and_verdicts_keep_their_order() -> None:
    student = CountingModel()
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
    assert student.concurrency == [1, 1, 2]


def test_labelled_questions_on_an_image_keep_their_order() -> None:
    model = CountingModel()
    rows = tuple(LabelledQuestion(f"q{n}", "a", "/a", f"number {n}?", ["1"], "x") for n in (5, 13, 7))
    predictions = asyncio.run(Predict(model, TASK, AnswerConfig()).visit(ImageWork("a", "/a", rows, b"image")))
    assert [(p.question_id, p.prediction, p.reason) for p in predictions] == [
        ("q5", "5", None),
        ("q13", None, "prompt_too_long"),
        ("q7", "7", None),
    ]


def test_models_of_one_engine_share_the_encoded_image(tmp_path: Path) -> None:
    engine = CountingModel()
    make_stage = partial(Identify, task=TASK, answer=AnswerConfig(), worth_asking=WorthAsking(MATCHERS["exact"]))
    stage = build_multi_model(make_stage, {"small": None, "wrong": object()}, engine)
    rows = asyncio.run(stage.visit(ImageWork("a", "/a", (pair(1, "1", "1"), pair(2, "2", "other")), b"file")))
    assert engine.num_encoded == 1
    assert engine.adapters == [None, "wrong"]
    assert [(row.model, row.row.annotation_id, row.row.state) for row in rows] == [
        ("small", "a#1", State.DROPPED),
        ("small", "a#2", State.DROPPED),
        ("wrong", "a#1", State.KEPT),
        ("wrong", "a#2", State.DROPPED),
    ]
    assert [(row.image_id, row.state, row.reason) for row in rows[::3]] == [
        ("a", State.DROPPED, Reason.STUDENT_CORRECT),
        ("a", State.DROPPED, Reason.TEACHER_INCONSISTENT),
    ]

    run = Run.open(str(tmp_path))
    both = DatasetsOfModels({name: run.verdicts(name) for name in ("small", "wrong")})
    assert both.commit("000000", rows)
    assert [v.state for v in run.verdicts("wrong").read("000000")] == [State.KEPT, State.DROPPED]
    assert not both.commit("000000", rows[:2])
    assert both.read("000000") == rows


def test_failures_of_models_of_one_engine_are_counted_by_image() -> None:
    def row(model: str, image: str, state: State) -> OfModel[Annotation]:
        return OfModel(model, Annotation(f"{image}#0", image, f"/{image}", state, "request_failed"))

    failed, kept = State.FAILED, State.KEPT
    rows = [row("one", "a", failed), row("two", "a", kept), row("one", "b", failed), row("two", "b", failed)]
    assert failed_images(rows) == {"request_failed": 2}
    assert failed_images(sorted(rows, key=lambda row: row.model)) == {"request_failed": 2}


def test_an_image_that_cannot_be_read_fails_for_every_model() -> None:
    engine = CountingModel()
    make_stage = partial(Identify, task=TASK, answer=AnswerConfig(), worth_asking=WorthAsking(MATCHERS["exact"]))
    stage = build_multi_model(make_stage, {"small": None, "other": object()}, engine)
    problem = ImageProblem(Reason.UNREADABLE, "gone")
    rows = asyncio.run(stage.visit(ImageWork("a", "/a", (pair(1, "1", "1"),), problem)))
    assert [(row.model, row.state, row.reason) for row in rows] == [
        ("small", State.FAILED, Reason.UNREADABLE),
        ("other", State.FAILED, Reason.UNREADABLE),
    ]
    assert engine.adapters == []


def test_an_image_that_changed_since_the_teacher_saw_it_is_not_asked_about() -> None:
    seen = replace(pair(1, "9", "9"), content_sha256=hashlib.sha256(b"file").hexdigest())
    rows = (seen, replace(pair(2, "9", "x"), content_sha256=seen.content_sha256))
    student = CountingModel()
    stage = Identify(student, TASK, AnswerConfig(), WorthAsking(MATCHERS["exact"]))
    changed = asyncio.run(stage.visit(ImageWork("a", "/a", rows, b"another file")))
    assert student.num_encoded == 0
    assert [(v.state, v.reason) for v in changed] == [("failed", "image_changed"), ("dropped", "teacher_inconsistent")]
    same = asyncio.run(stage.visit(ImageWork("a", "/a", rows, b"file")))
    assert [(v.state, v.reason) for v in same] == [("kept", None), ("dropped", "teacher_inconsistent")]
    assert {v.content_sha256 for v in changed + same} == {seen.content_sha256}
    assert same[0].sample().content_sha256 == seen.content_sha256


def test_an_image_that_changed_fails_for_every_model_of_an_engine() -> None:
    engine = CountingModel()
    make_stage = partial(Identify, task=TASK, answer=AnswerConfig(), worth_asking=WorthAsking(MATCHERS["exact"]))
    stage = build_multi_model(make_stage, {"small": None, "other": object()}, engine)
    row = replace(pair(1, "1", "1"), content_sha256="0" * 64)
    rows = asyncio.run(stage.visit(ImageWork("a", "/a", (row,), b"file")))
    assert [(row.model, row.reason) for row in rows] == [("small", "image_changed"), ("other", "image_changed")]
    assert engine.num_encoded == 0

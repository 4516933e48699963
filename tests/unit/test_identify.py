"""Several pairs about one image: the student is asked where the verdict depends on it, and rows keep their order."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from pathlib import Path

from mpa_ray.config import AnswerConfig
from mpa_ray.engine.protocol import EncodedImage, Reply, Request, RequestRefused
from mpa_ray.imaging.decode import ImageProblem
from mpa_ray.matching import MATCHERS
from mpa_ray.records import Annotation, LabelledQuestion, OfModel, Reason, State
from mpa_ray.run.dataset import DatasetsOfModels
from mpa_ray.run.run import Run
from mpa_ray.stages.identify import Identify, WorthAsking
from mpa_ray.stages.image_work import ImageWork, failed_images
from mpa_ray.stages.multi_model import build_multi_model
from mpa_ray.stages.predict import Predict
from mpa_ray.tasks.library import TASKS

TASK = TASKS["text_vqa"]


class Counting:
    """Answers with the number in the question; tells how many prompts were in it together."""

    max_images_in_flight = 8

    def __init__(self) -> None:
        self.num_now = 0
        self.together: list[int] = []
        self.asked: list[str | None] = []
        self.num_looks = 0

    async def encode_image(self, image_id: str, content: bytes) -> EncodedImage | ImageProblem:
        self.num_looks += 1
        return EncodedImage(image_id, f"{len(content)}")

    async def generate(self, image: EncodedImage, request: Request) -> Reply:
        assert (image.image_id, request.sampling.temperature, request.schema) == ("a", 0, None)
        self.asked.append(request.adapter)
        number = request.text.split("number ")[1].split("?")[0]
        if number == "13":
            raise RequestRefused(Reason.PROMPT_TOO_LONG, "scripted")
        self.num_now += 1
        self.together.append(self.num_now)
        await asyncio.sleep(0.001)
        self.num_now -= 1
        return Reply(number if request.adapter != "astray" else "7", "stop", 10, 0, 1, 5, None, 0.0)

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
        ("q5", "5", None),
        ("q13", None, "prompt_too_long: scripted"),
        ("q7", "7", None),
    ]


def test_models_of_one_engine_are_asked_about_an_image_that_is_looked_at_once(tmp_path: Path) -> None:
    engine = Counting()
    make_stage = partial(Identify, task=TASK, answer=AnswerConfig(), worth_asking=WorthAsking(MATCHERS["exact"]))
    stage = build_multi_model(make_stage, {"small": None, "astray": object()}, engine)
    rows = asyncio.run(stage.visit(ImageWork("a", "/a", (pair(1, "1", "1"), pair(2, "2", "other")), b"file")))
    assert engine.num_looks == 1
    assert engine.asked == [None, "astray"]
    assert [(found.model, found.row.annotation_id, found.row.state) for found in rows] == [
        ("small", "a#1", State.DROPPED),
        ("small", "a#2", State.DROPPED),
        ("astray", "a#1", State.KEPT),
        ("astray", "a#2", State.DROPPED),
    ]
    assert [(found.image_id, found.state, found.reason) for found in rows[::3]] == [
        ("a", State.DROPPED, Reason.STUDENT_CORRECT),
        ("a", State.DROPPED, Reason.TEACHER_INCONSISTENT),
    ]

    run = Run.open(str(tmp_path))
    both = DatasetsOfModels({name: run.verdicts(name) for name in ("small", "astray")})
    assert both.commit("000000", rows)
    assert [v.state for v in run.verdicts("astray").read("000000")] == [State.KEPT, State.DROPPED]
    assert not both.commit("000000", rows[:2])
    assert both.read("000000") == rows


def test_failures_of_models_that_are_asked_together_are_counted_by_images() -> None:
    def row(model: str, image: str, state: State) -> OfModel[Annotation]:
        return OfModel(model, Annotation(f"{image}#0", image, f"/{image}", state, "request_failed"))

    fails, kept = State.FAILED, State.KEPT
    rows = [row("one", "a", fails), row("two", "a", kept), row("one", "b", fails), row("two", "b", fails)]
    assert failed_images(rows) == {"request_failed": 2}
    assert failed_images(sorted(rows, key=lambda found: found.model)) == {"request_failed": 2}


def test_what_cannot_be_seen_fails_for_every_model() -> None:
    engine = Counting()
    make_stage = partial(Identify, task=TASK, answer=AnswerConfig(), worth_asking=WorthAsking(MATCHERS["exact"]))
    stage = build_multi_model(make_stage, {"small": None, "other": object()}, engine)
    problem = ImageProblem(Reason.UNREADABLE, "gone")
    rows = asyncio.run(stage.visit(ImageWork("a", "/a", (pair(1, "1", "1"),), problem)))
    assert [(found.model, found.state, found.reason) for found in rows] == [
        ("small", State.FAILED, Reason.UNREADABLE),
        ("other", State.FAILED, Reason.UNREADABLE),
    ]
    assert engine.asked == []

"""Predictions: every question gets a row with a state, and a code where there is no answer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from mpa_ray.config import AnswerConfig
from mpa_ray.engine.protocol import EncodedImage, Reply, Request, RequestRefused
from mpa_ray.imaging.decode import ImageProblem
from mpa_ray.records import LabelledQuestion, OfModel, Prediction, Reason, State
from mpa_ray.stages.image_work import ImageWork, failed_images, outcomes
from mpa_ray.stages.predict import Predict
from mpa_ray.tasks.library import TASKS


class Replying:
    """Gives each question its prepared reply, or refuses it."""

    max_images_in_flight = 8

    def __init__(self, replies: Mapping[str, Reply | RequestRefused]) -> None:
        self.replies = replies

    async def encode_image(self, image_id: str, content: bytes) -> EncodedImage | ImageProblem:
        assert content == b"image"
        return EncodedImage(image_id, "image")

    async def generate(self, image: EncodedImage, request: Request) -> Reply:
        assert (image.key, request.sampling.temperature, request.schema, request.adapter) == ("image", 0, None, None)
        reply = next(reply for question, reply in self.replies.items() if question in request.text)
        if isinstance(reply, RequestRefused):
            raise reply
        return reply

    def close(self) -> None: ...


def reply(text: str, finish_reason: str = "stop") -> Reply:
    return Reply(text, finish_reason, 10, 0, 1, 5, None, 0.0)


def questions(*texts: str, image_id: str = "a") -> tuple[LabelledQuestion, ...]:
    return tuple(LabelledQuestion(f"{image_id}-{text}", image_id, f"/{image_id}", text, ["1"], "x") for text in texts)


def predictions(
    content: bytes | ImageProblem, replies: Mapping[str, Reply | RequestRefused], image_id: str = "a"
) -> list[Prediction]:
    stage = Predict(Replying(replies), TASKS["text_vqa"], AnswerConfig())
    work = ImageWork(image_id, f"/{image_id}", questions(*(replies or {"Why?": None}), image_id=image_id), content)
    return asyncio.run(stage.visit(work))


def test_every_outcome_of_a_question_is_a_row() -> None:
    rows = predictions(
        b"image",
        {
            "How many?": reply("1"),
            "Which?": reply("a very long", "length"),
            "Where?": RequestRefused(Reason.PROMPT_TOO_LONG, "600 tokens, more than 512"),
            "When?": RequestRefused(Reason.REQUEST_FAILED, "timed out"),
        },
    )
    assert [(row.state, row.reason, row.detail, row.prediction, row.finish_reason) for row in rows] == [
        ("kept", None, None, "1", "stop"),
        ("kept", None, None, "a very long", "length"),
        ("dropped", "prompt_too_long", "600 tokens, more than 512", None, None),
        ("failed", "request_failed", "timed out", None, None),
    ]


@pytest.mark.parametrize(
    ("reason", "state"), [(Reason.NOT_AN_IMAGE, State.FAILED), (Reason.PROMPT_TOO_LONG, State.DROPPED)]
)
def test_an_image_without_content_ends_as_in_the_other_passes(reason: Reason, state: State) -> None:
    (row,) = predictions(ImageProblem(reason, "as its reader says"), {})
    assert (row.state, row.reason, row.detail, row.prediction) == (state, reason, "as its reader says", None)


def test_failed_predictions_count_as_failed_and_by_their_codes() -> None:
    rows = [
        *predictions(ImageProblem(Reason.NOT_AN_IMAGE, "cannot identify image file"), {}, "a"),
        *predictions(b"image", {"How many?": RequestRefused(Reason.REQUEST_FAILED, "timed out")}, "b"),
        *predictions(b"image", {"How many?": reply("1")}, "c"),
    ]
    expected = {("failed", "not_an_image"): 1, ("failed", "request_failed"): 1, ("kept", ""): 1}
    assert outcomes(rows) == expected
    assert failed_images(rows) == {"not_an_image": 1, "request_failed": 1}
    assert outcomes([OfModel("small", row) for row in rows]) == expected


def test_reasoning_is_no_part_of_a_prediction() -> None:
    rows = predictions(
        b"image",
        {
            "How many?": reply("<think>2 or 1?</think>\n\n1"),
            "Which?": reply("It is the left one.</think><|begin_of_box|>left<|end_of_box|>"),
            "Where?": reply("<think>I see", "length"),
            "When?": reply(" at 10:10\n"),
        },
    )
    assert [(row.state, row.reason, row.prediction, row.finish_reason) for row in rows] == [
        ("kept", None, "1", "stop"),
        ("kept", None, "left", "stop"),
        ("dropped", "reasoning_truncated", None, "length"),
        ("kept", None, " at 10:10\n", "stop"),
    ]

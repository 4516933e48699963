"""Annotation with a scripted engine."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
from typing import Literal

import pytest
from PIL import Image

from mpa_ray.config import AnnotateConfig, AnswerConfig, SamplingConfig, ScriptedEngineConfig
from mpa_ray.engine.protocol import Reply
from mpa_ray.engine.scripted import ScriptedEngine
from mpa_ray.records import Annotation, ImageRef
from mpa_ray.stages.annotate import Annotate, most_frequent
from mpa_ray.stages.image_work import ImageWork, failed_images
from mpa_ray.tasks.library import TASKS


def visited(
    num_questions: int,
    num_different: int,
    seed: int = 0,
    content: bytes | None = None,
    reply: Literal["free", "json"] = "free",
    num_second_answers: int = 1,
) -> list[Annotation]:
    """One image's rows from a teacher that has `num_different` questions to choose from."""
    engine = ScriptedEngine(ScriptedEngineConfig(kind="scripted", num_questions=num_different), (3136, 12544), 8)
    config = AnnotateConfig(
        sampling=SamplingConfig(temperature=1.0, seed=seed),
        num_questions=num_questions,
        num_second_answers=num_second_answers,
        reply=reply,
    )
    if content is None:
        buffer = io.BytesIO()
        Image.new("RGB", (60, 60), "teal").save(buffer, "PNG")
        content = buffer.getvalue()
    work = ImageWork("a.png", "/a.png", (ImageRef("a.png", "/a.png"),), content)
    return asyncio.run(Annotate(engine, TASKS["text_vqa"], config, AnswerConfig()).visit(work))


@pytest.mark.parametrize("num_questions", [1, 2, 5])
def test_an_image_has_a_row_for_each_question(num_questions: int) -> None:
    rows = visited(num_questions, num_different=10**6)
    assert [row.annotation_id for row in rows] == [f"a.png#{n}" for n in range(num_questions)]
    assert {(row.state, row.second_answer) for row in rows} == {("kept", rows[0].answer)}
    assert len({row.question for row in rows}) == num_questions


def test_a_repeated_question_is_dropped() -> None:
    rows = visited(4, num_different=1)
    assert [(row.state, row.reason) for row in rows] == [("kept", None)] + 3 * [("dropped", "repeated_question")]
    assert [row.second_answer is None for row in rows] == [False, True, True, True]


def test_the_seed_determines_the_questions() -> None:
    def questions(seed: int) -> list[str | None]:
        return [row.question for row in visited(3, num_different=10**6, seed=seed)]

    assert questions(1) == questions(1) != questions(2)


def test_replies_in_json_give_the_same_pairs() -> None:
    free = visited(2, num_different=10**6)
    in_json = visited(2, num_different=10**6, reply="json")
    assert [(row.question, row.answer) for row in in_json] == [(row.question, row.answer) for row in free]
    assert [set(json.loads(row.reply or "")) for row in in_json] == 2 * [{"question", "answer"}]


def test_a_prompt_asks_for_only_one_format() -> None:
    for task in TASKS.values():
        assert "JSON" in task.annotation_prompt(as_json=True)
        assert "two lines" not in task.annotation_prompt(as_json=True)
        assert "JSON" not in task.annotation_prompt()


def test_an_image_that_cannot_be_decoded_has_one_row() -> None:
    rows = visited(4, num_different=4, content=b"no image")
    assert [(row.annotation_id, row.state, row.reason) for row in rows] == [("a.png#0", "failed", "not_an_image")]


def test_several_greedy_questions_are_refused() -> None:
    with pytest.raises(ValueError, match="temperature"):
        AnnotateConfig(sampling=SamplingConfig(), num_questions=2)


def test_an_image_counts_as_failed_only_if_all_its_rows_failed() -> None:
    def row(image: str, number: int, state: str, reason: str | None = None) -> Annotation:
        return Annotation(f"{image}#{number}", image, f"/{image}", state, reason)

    rows = [
        row("a", 0, "failed", "request_failed"),
        row("a", 1, "kept"),
        row("b", 0, "failed", "request_failed"),
        row("b", 1, "failed", "request_failed"),
        row("c", 0, "failed", "unreadable"),
        row("d", 0, "dropped", "no_question"),
    ]
    assert failed_images(rows) == {"request_failed": 1, "unreadable": 1}


def test_the_most_frequent_second_answer_wins() -> None:
    def reply(text: str, finish_reason: str = "stop") -> Reply:
        return Reply(text, finish_reason, 10, 8, 1, 5, -0.1, 0.0)

    def vote(*replies: Reply) -> tuple[str, float]:
        winner, share = most_frequent(replies)
        return winner.text, share

    assert vote(reply("red")) == ("red", 1.0)
    assert vote(reply("blue"), reply("red"), reply("Red."), reply("red")) == ("red", 0.75)
    assert vote(reply("blue"), reply("red")) == ("blue", 0.5)
    assert vote(reply("red", "length"), reply("red", "length"), reply("blue")) == ("blue", 1 / 3)
    assert vote(reply("a very long", "length")) == ("a very long", 0.0)


def test_each_of_several_second_answers_has_its_own_seed() -> None:
    (row,) = visited(1, num_different=10**6, num_second_answers=5)
    assert (row.state, row.second_answer, row.second_answer_share) == ("kept", row.answer, 1.0)
    (once,) = visited(1, num_different=10**6)
    assert row.num_second_prompt_tokens == 5 * once.num_second_prompt_tokens
    assert row.question == once.question


def test_several_greedy_second_answers_are_refused() -> None:
    with pytest.raises(ValueError, match="num_second_answers: more than 1 needs"):
        AnnotateConfig(sampling=SamplingConfig(), num_second_answers=3)


def test_the_file_that_the_teacher_saw_is_recorded_also_without_a_search_for_duplicates() -> None:
    (row,) = visited(1, num_different=1, content=b"no image")
    assert row.content_sha256 == hashlib.sha256(b"no image").hexdigest()

"""Samples whose question contains a special token of the student are left out of training and counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from mpa_ray.config import HoldoutConfig, LevelConfig, ModelConfig, ObjectStoreConfig, resolve_path
from mpa_ray.leveling.arms import SampleSources
from mpa_ray.leveling.batching import TrainingRow
from mpa_ray.leveling.collator import AnswerCollator
from mpa_ray.leveling.epoch_plan import plan_epoch
from mpa_ray.leveling.prompts import PromptCheck
from mpa_ray.models.chat_template import SpecialTokenInText, load_processor, render
from mpa_ray.records import ParitySample, Verdict
from mpa_ray.run.run import Run
from mpa_ray.tasks.library import TASKS

MODEL = "bundled:demo/models/student"
TASK = TASKS["demo_world"]
SPECIAL = ("<|im_end|>", "<|image_pad|>", "<|vision_start|>", "<|endoftext|>")
CHECK = PromptCheck(ModelConfig(model=MODEL), ObjectStoreConfig(), TASK)


def labelled(num: int, prefix: str = "own") -> list[ParitySample]:
    """Labelled questions; every fifth contains a special token, and each answer spells one."""
    return [
        ParitySample(
            f"{prefix}{n:03}",
            f"{n}",
            f"/{n}",
            f"What does {SPECIAL[n // 5 % len(SPECIAL)]} mean?" if n % 5 == 0 else "Is 1 < 2 | 3 > 2?",
            "<|im_end|>",
            student_answer="",
        )
        for n in range(num)
    ]


def parity(num: int) -> list[ParitySample]:
    return [ParitySample(f"p{n:03}", f"{n}", f"/{n}", "?", "a", "b", num_prompt_tokens=20) for n in range(num)]


def test_an_arm_a_replay_and_a_holdout_of_labelled_questions_leave_special_tokens_out(tmp_path: Path) -> None:
    run = Run.open(str(tmp_path))
    sources = SampleSources(
        lambda: parity(40),
        list,
        labels=lambda: labelled(50),
        replayed=lambda: labelled(20, "replayed"),
        held_out=lambda: labelled(10, "held"),
    )
    level = LevelConfig(batch_size=4, replay_share=0.5, holdout=HoldoutConfig(max_samples=10))
    labels = plan_epoch(run, "students/s/labels", sources, level, "labels", CHECK)
    assert (labels.counts.num_samples, labels.counts.num_held_out, labels.counts.num_with_special_token) == (40, 8, 12)
    own = plan_epoch(run, "students/s/parity", sources, level, "parity", CHECK)
    assert (own.counts.num_samples, own.counts.num_held_out, own.counts.num_with_special_token) == (56, 8, 6)
    content = tmp_path / "image.png"
    Image.new("RGB", (56, 56)).save(content)
    collator = AnswerCollator(load_processor(resolve_path(MODEL)), TASK, 3136, 12544)
    for plan in (labels, own):
        for rows in (*plan.steps(0, plan.num_steps), plan.held_out):
            assert collator(rows, [content.read_bytes()] * len(rows))


def test_an_arm_of_pairs_that_the_student_never_answered_leaves_special_tokens_out(tmp_path: Path) -> None:
    """The teacher may have written a token that is special only for the student, and then contradicted itself."""
    verdict = Verdict("a", "a", "/a", "dropped", "teacher_inconsistent", question="?", answer="a", teacher_agrees=False)
    verdicts = [verdict, replace(verdict, annotation_id="b", question="Where is <|im_start|>?")]
    sources = SampleSources(list, lambda: verdicts)
    plan = plan_epoch(Run.open(str(tmp_path)), "students/s/all", sources, LevelConfig(), "all", CHECK)
    assert (plan.counts.num_samples, plan.counts.num_with_special_token) == (1, 1)


def test_questions_that_the_student_answered_need_no_processor() -> None:
    check = PromptCheck(ModelConfig(model="no/such-model"), ObjectStoreConfig(), TASK)
    assert all(map(check, parity(3)))


@pytest.mark.parametrize("token", SPECIAL)
def test_a_question_with_a_special_token_would_end_a_training(token: str) -> None:
    sample = ParitySample("a", "a", "/a", f"What is {token}?", "x", "")
    collator = AnswerCollator(load_processor(resolve_path(MODEL)), TASK, 3136, 12544)
    with pytest.raises(SpecialTokenInText):
        collator([TrainingRow(sample, 1)], [b""])
    assert not CHECK(sample)
    assert not CHECK(replace(sample, question=token))


@pytest.mark.parametrize("name", ["image_token", "video_token"])
def test_placeholders_are_special_even_if_the_tokenizer_does_not_mark_them(name: str) -> None:
    processor = load_processor(resolve_path(MODEL))
    setattr(processor, name, "[PLACE]")
    with pytest.raises(SpecialTokenInText, match=r"\[PLACE\]"):
        render(processor, "What is [PLACE]?")

"""Models that reason before they answer: no pass, no prompt and no limit counts their reasoning as an answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from mpa_ray.cli import main
from mpa_ray.config import LimitsConfig, ModelConfig, ObjectStoreConfig, RunConfig, resolve_path
from mpa_ray.engine.protocol import Reply
from mpa_ray.errors import ConfigError, RunError
from mpa_ray.leveling.batching import TrainingRow
from mpa_ray.leveling.collator import AnswerCollator
from mpa_ray.leveling.prompts import PromptCheck
from mpa_ray.models.chat_template import (
    DEFAULT_REASONING_TOKENS,
    check_arguments,
    closing_tag,
    load_processor,
    render,
    turn_of,
)
from mpa_ray.models.reply_format import ReplyFormat
from mpa_ray.phases.annotate import index_and_annotate
from mpa_ray.phases.context import RunContext
from mpa_ray.phases.identify import identify
from mpa_ray.phases.preflight import check_model
from mpa_ray.pipeline.pass_spec import ShardDone
from mpa_ray.pipeline.reply_guard import ReplyGuard
from mpa_ray.records import Annotation, OfModel, ParitySample, Verdict
from mpa_ray.report.card_usage import usage
from mpa_ray.run.fingerprint import annotation_fingerprint, level_fingerprint, prediction_fingerprint
from mpa_ray.run.run import Run
from mpa_ray.stages.annotate import most_frequent
from mpa_ray.stages.image_work import unparsed_replies
from mpa_ray.tasks.library import TASKS
from tests.conftest import scripted_tree
from tests.local_stream import without_ray

MODEL = "bundled:demo/models/student"
TASK = TASKS["demo_world"]
SWITCH = (
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}"
)
NO_THINKING = {"enable_thinking": False}


@pytest.fixture(scope="module")
def plain() -> Any:
    return load_processor(resolve_path(MODEL))


def thinking(processor: Any, opening: str = SWITCH, history: str = "") -> Any:
    """A copy of a processor whose template adds a text to the beginning of a reply."""
    processor = deepcopy(processor)
    prompt = "{% if add_generation_prompt %}<|im_start|>assistant\n"
    assert prompt in processor.chat_template
    template = processor.chat_template.replace(prompt, prompt + opening)
    if history:
        content = "{% elif part['type'] == 'text' %}"
        template = template.replace(
            content, content + "{% if message['role'] == 'assistant' %}" + history + "{% endif %}"
        )
    processor.chat_template = processor.tokenizer.chat_template = template
    return processor


# --- passes ----------------------------------------------------------------------------------------------------------


def identified(tree: dict[str, Any], patch: pytest.MonkeyPatch) -> tuple[list[Annotation], list[Verdict]]:
    without_ray(patch)
    tree["source"]["limit"] = 16
    context = RunContext.open(RunConfig.model_validate(tree))
    index_and_annotate(context)
    identify(context)
    run = context.run
    shards = run.manifest().shards
    return list(run.annotations.rows(shards)), list(run.verdicts("small").rows(shards))


@pytest.mark.parametrize(("teacher", "student"), [("tagged", "none"), ("tagged", "opened"), ("opened", "tagged")])
def test_pairs_of_a_teacher_that_reasons_are_those_of_one_that_does_not(
    teacher: str, student: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = {"inconsistent_rate": 0.1}
    tree = scripted_tree(images, tmp_path / "plain", **rates)
    plain_rows, plain_verdicts = identified(tree, monkeypatch)
    tree = scripted_tree(images, tmp_path / "reasons", **rates, reasoning_form=teacher)
    tree["students"][0]["engine"]["reasoning_form"] = student
    rows, verdicts = identified(tree, monkeypatch)
    assert [(r.question, r.answer, r.second_answer) for r in rows] == [
        (r.question, r.answer, r.second_answer) for r in plain_rows
    ]
    assert [(v.state, v.reason, v.student_answer) for v in verdicts] == [
        (v.state, v.reason, v.student_answer) for v in plain_verdicts
    ]
    assert Counter(v.teacher_agrees for v in verdicts)[True] > 8
    assert all("</think>" in (row.reply or "") for row in rows)


def test_replies_that_are_all_reasoning_have_a_reason_in_every_pass(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, verdicts = identified(scripted_tree(images, tmp_path / "run", reasoning_form="endless"), monkeypatch)
    assert {(row.state, row.reason, row.question) for row in rows} == {("dropped", "reasoning_truncated", None)}
    assert {(v.state, v.reason) for v in verdicts} == {("dropped", "reasoning_truncated")}
    tree = scripted_tree(images, tmp_path / "student")
    tree["students"][0]["engine"]["reasoning_form"] = "endless"
    rows, verdicts = identified(tree, monkeypatch)
    assert {row.state for row in rows} == {"kept"}
    assert {(v.state, v.reason, v.student_answer, v.finish_reason) for v in verdicts} == {
        ("dropped", "reasoning_truncated", None, "length")
    }


def reply(text: str, finish_reason: str = "stop") -> Reply:
    return Reply(text, finish_reason, 10, 0, 1, 5, None, 0.0)


def test_second_answers_are_counted_without_their_reasoning() -> None:
    replies = [reply("<think>a"), reply("<think>b</think>red"), reply("blue"), reply("c</think>\\boxed{red}")]
    most, share = most_frequent(replies)
    assert (most.answer, share) == ("red", 0.5)
    assert most_frequent([reply("<think>a")])[0].is_all_reasoning


# --- prompts ---------------------------------------------------------------------------------------------------------


def test_arguments_reach_the_prompt(plain: Any) -> None:
    processor = thinking(plain)
    assert render(processor, "Hm?").endswith("assistant\n<think>\n")
    assert render(processor, "Hm?", NO_THINKING).endswith("assistant\n<think>\n\n</think>\n\n")


def test_arguments_that_the_template_does_not_use_are_refused(plain: Any) -> None:
    check_arguments(thinking(plain), NO_THINKING, "teacher.chat_template_args")
    with pytest.raises(
        ConfigError, match=r"^teacher\.chat_template_args\.enable_thinkin = False: .*Did you mean enable"
    ):
        check_arguments(thinking(plain), {"enable_thinkin": False}, "teacher.chat_template_args")
    with pytest.raises(ConfigError, match=r"is not used by the chat template\. It uses no variables\. Remove"):
        check_arguments(plain, NO_THINKING, "teacher.chat_template_args")
    generation = thinking(plain, "{% generation %}" + SWITCH + "{%- endgeneration -%}")
    check_arguments(generation, NO_THINKING, "teacher.chat_template_args")


@pytest.mark.parametrize("field", ["teacher", "students.0"])
def test_preflight_names_an_argument_that_the_template_does_not_use(field: str) -> None:
    config = ModelConfig(model=MODEL, chat_template_args=NO_THINKING)
    with pytest.raises(ConfigError, match=rf"^{field}\.chat_template_args\.enable_thinking = False: is not used"):
        check_model(config, field, ObjectStoreConfig())


def test_arguments_of_mpa_ray_are_refused(tmp_path: Path, images: Path) -> None:
    tree = scripted_tree(images, tmp_path / "run")
    tree["teacher"]["chat_template_args"] = {"add_generation_prompt": False}
    with pytest.raises(ValueError, match="add_generation_prompt is set by mpa_ray itself"):
        RunConfig.model_validate(tree)


@pytest.mark.parametrize(
    "change", [{"chat_template_args": NO_THINKING}, {"max_reasoning_tokens": 0}], ids=["arguments", "limit"]
)
def test_arguments_and_limits_are_in_every_fingerprint(change: dict[str, object], images: Path, tmp_path: Path) -> None:
    tree = scripted_tree(images, tmp_path / "run")
    before = RunConfig.model_validate(tree)
    tree["teacher"].update(change)
    tree["students"][0].update(change)
    after = RunConfig.model_validate(tree)

    def labelled(*_: object) -> Any:
        raise AssertionError

    assert annotation_fingerprint(before, TASK) != annotation_fingerprint(after, TASK)
    small, same = before.students[0], after.students[0]
    old = level_fingerprint(before, TASK, small, "parity", labelled)
    assert old != level_fingerprint(before, TASK, same, "parity", labelled)
    assert prediction_fingerprint(before, TASK, small) != prediction_fingerprint(before, TASK, same)


@pytest.mark.parametrize("history", ["", "<think>\n\n</think>\n\n"], ids=["not in the history", "in the history"])
def test_a_student_learns_to_close_the_reasoning_that_its_template_opens(
    history: str, plain: Any, tmp_path: Path
) -> None:
    processor = thinking(plain, history=history)
    turn = turn_of(processor)
    assert turn.before.split() == ["</think>"]
    assert turn_of(processor, NO_THINKING).before == ""
    file = tmp_path / "a.png"
    Image.new("RGB", (56, 56)).save(file)
    row = TrainingRow(ParitySample("a", "a", "/a", "Hm?", "red", ""), 1)
    for arguments, expected in ((None, "</think>\n\nred<|im_end|>"), (NO_THINKING, "red<|im_end|>")):
        collator = AnswerCollator(processor, TASK, 3136, 12544, chat_template_args=arguments)
        batch = collator([row], [file.read_bytes()])
        ids, labels = batch["input_ids"][0], batch["labels"][0]
        assert processor.tokenizer.decode(ids[labels != -100]).strip() == expected
        prompt = processor.tokenizer.decode(ids[labels == -100])
        assert prompt.endswith(render(processor, TASK.answer_prompt("Hm?"), arguments)[-40:])


def test_the_check_of_questions_and_the_card_use_the_arguments(plain: Any, tmp_path: Path) -> None:
    thinking(plain).save_pretrained(tmp_path)
    student = ModelConfig(model=str(tmp_path), chat_template_args=NO_THINKING)
    check = PromptCheck(student, ObjectStoreConfig(), TASK)
    assert check(ParitySample("a", "a", "/a", "Hm?", "red", ""))
    tree = scripted_tree(tmp_path, tmp_path / "run")
    tree["students"][0]["chat_template_args"] = NO_THINKING
    card = usage(RunConfig.model_validate(tree).students[0], TASK, 8, processor_scales=True)
    assert "tokenize=False, **{'enable_thinking': False})" in card
    assert "skip_special_tokens=True)\n" in card
    assert "max_new_tokens=8," in card
    small = RunConfig.model_validate(tree).students[0]
    card = usage(small, TASK, 8, processor_scales=True, closing_tag=closing_tag(thinking(plain), {}))
    assert 'skip_special_tokens=True).rpartition("</think>")[2].strip()' in card
    assert 'output.outputs[0].text.rpartition("</think>")[2].strip() for' in card
    assert closing_tag(thinking(plain), NO_THINKING) == closing_tag(plain, {}) == ""
    tree["students"][0]["chat_template_args"] = {}
    assert "tokenize=False)" in usage(RunConfig.model_validate(tree).students[0], TASK, 8, processor_scales=True)


# --- limits ----------------------------------------------------------------------------------------------------------


def format_of(processor: Any, arguments: Mapping[str, Any] | None = None, limit: int | None = None) -> ReplyFormat:
    return ReplyFormat.of(processor, arguments or {}, limit)


def test_reasoning_has_room_of_its_own_only_if_a_model_may_reason(plain: Any) -> None:
    assert format_of(plain).max_tokens(32) == 32
    assert format_of(plain, limit=100).max_tokens(32) == 132
    opened = format_of(thinking(plain))
    assert (opened.opening, opened.max_tokens(32)) == ("<think>", 32 + DEFAULT_REASONING_TOKENS)
    assert opened.max_tokens(32, may_reason=False) == 32
    closed = format_of(thinking(plain), NO_THINKING)
    assert (closed.opening, closed.max_tokens(32)) == ("", 32)
    hybrid = format_of(thinking(plain, "{% if enable_thinking is false %}<think></think>{% endif %}"))
    assert (hybrid.opening, hybrid.max_tokens(32)) == ("", 32 + DEFAULT_REASONING_TOKENS)
    assert format_of(thinking(plain), limit=0).max_tokens(32) == 32


def test_the_limit_counts_the_answer_alone(plain: Any) -> None:
    opened = format_of(thinking(plain))
    text, finish = opened.read("One two three four five.</think>\n\nred", "stop", 4)
    assert (Reply(text, finish, 0, 0, 0, 0, None, 0.0).answer, finish) == ("red", "stop")
    text, finish = opened.read("Hm.</think>" + "one two three four five six", "stop", 3)
    answer = Reply(text, finish, 0, 0, 0, 0, None, 0.0).answer
    assert finish == "length"
    assert len(plain.tokenizer(answer)["input_ids"]) == 3
    assert "one two three four five six".startswith(answer)
    text, finish = opened.read("One two three", "length", 3)
    assert Reply(text, finish, 0, 0, 0, 0, None, 0.0).is_all_reasoning
    assert opened.read('{"question": "a"}', "stop", 3, may_reason=False) == ('{"question": "a"}', "stop")
    assert format_of(plain).read(" red", "stop", 1) == (" red", "stop")


def test_tags_that_are_special_tokens_stay_in_the_text(plain: Any) -> None:
    processor = thinking(plain, "<|START_THINKING|>")
    processor.tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>"]}
    )
    special = format_of(processor)
    assert not special.skips_special_tokens
    assert format_of(plain).skips_special_tokens
    text, _ = special.read("hm<|END_THINKING|><|START_RESPONSE|>red<|im_end|>", "stop", 8)
    assert text == "<|START_THINKING|>hm<|END_THINKING|>red"


# --- replies that cannot be parsed -----------------------------------------------------------------------------------


def shard(num_images: int, **unparsed: int) -> ShardDone:
    return ShardDone("s", num_images, num_replies=num_images, unparsed=Counter(unparsed))


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        ("no_question", "annotate.reply to json"),
        ("no_answer", "task's labels"),
        ("reasoning_truncated", "max_reasoning_tokens"),
        ("reply_truncated", r"annotate.sampling.max_new_tokens"),
        ("answer_too_long", "max_answer_words"),
        ("refusal", "another teacher"),
        ("empty_reply", "chat template"),
    ],
)
def test_a_pass_of_unparsable_replies_ends_with_what_to_change(reason: str, remedy: str) -> None:
    guard = ReplyGuard(LimitsConfig(min_images=20), "annotate:teacher")
    guard.count(shard(19, **{reason: 19}))
    with pytest.raises(RunError, match=remedy) as error:
        guard.count(shard(1))
    assert str(error.value).startswith("annotate:teacher: 19 of 20 replies cannot be parsed, more than limits.max_")
    assert f"({reason}: 19)" in str(error.value)
    assert "the same command would fail again" in str(error.value)


def test_a_pass_continues_at_the_limit() -> None:
    guard = ReplyGuard(LimitsConfig(min_images=10), "annotate:teacher")
    for _ in range(3):
        guard.count(shard(10, no_question=8))
    guard = ReplyGuard(LimitsConfig(min_images=1, max_unparsed_rate=1), "annotate:teacher")
    guard.count(shard(10, no_question=10))


def test_rows_without_a_reply_in_this_pass_do_not_count() -> None:
    answered = Verdict("a", "a", "/a", "kept", finish_reason="stop")
    earlier = Verdict("b", "b", "/b", "dropped", "reasoning_truncated")
    own = Verdict("c", "c", "/c", "dropped", "reasoning_truncated", finish_reason="length")
    assert unparsed_replies([answered, earlier, own]) == (2, Counter(reasoning_truncated=1))
    assert unparsed_replies([]) == (0, Counter())
    models = [OfModel("x", answered), OfModel("y", own), OfModel("y", earlier)]
    assert unparsed_replies(models) == (1, Counter(reasoning_truncated=1))


@pytest.mark.parametrize("phase", ["annotate", "identify"])
def test_a_command_ends_with_code_1_and_the_remedy(
    phase: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_ray(monkeypatch)
    tree = scripted_tree(images, tmp_path / "run")
    engine = tree["teacher"]["engine"] if phase == "annotate" else tree["students"][0]["engine"]
    engine["reasoning_form"] = "endless"
    tree["limits"] = {"min_images": 16}
    tree["source"]["limit"] = 24
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump(tree))
    assert main(["index", "--config", str(config)]) == 0
    if phase == "identify":
        assert main(["annotate", "--config", str(config)]) == 0
    assert main([phase, "--config", str(config)]) == 1
    error = capsys.readouterr().err
    assert "16 of 16 replies cannot be parsed" in error
    assert "max_reasoning_tokens" in error
    assert "Fix the cause" not in error
    run = Run.open(str(tmp_path / "run"))
    dataset = run.annotations if phase == "annotate" else run.verdicts("small")
    assert len(dataset.missing(run.manifest().shards)) == 1

"""Replies as models of many families write them: reasoning, marks, markup, invisible characters and leaked turns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.hostile_replies import measure
from mpa_ray.records import ParitySample
from mpa_ray.run.parity_export import export_parity
from mpa_ray.run.run import Run
from mpa_ray.tasks.library import TASKS
from mpa_ray.tasks.parser import QuestionAnswer, ReplyError, parse_reply
from mpa_ray.tasks.plain_text import num_words, without_placeholders
from mpa_ray.tasks.reasoning import closing_of, final_answer, opened_reasoning

BUS = "What colour is the bus?"
PAIR = f"Question: {BUS}\nAnswer: red"
DRAFT = "Perhaps: Question: no? Answer: no"
REASONING = {
    "Qwen3": f"<think>\n{DRAFT}\n</think>\n\n{{}}",
    "opened by the template": f"{DRAFT}\n</think>\n\n{{}}",
    "empty": "<think>\n\n</think>\n\n{}",
    "two": f"<think>{DRAFT}</think><think>{DRAFT}</think>{{}}",
    "between": f"Let me see. <think>{DRAFT}</think>{{}}",
    "behind": f"{{}}\n<think>{DRAFT}",
    "Kimi-VL": f"◁think▷{DRAFT}◁/think▷\n{{}}",
    "Magistral": f"[THINK]{DRAFT}[/THINK]{{}}",
    "Command A": f"<|START_THINKING|>{DRAFT}<|END_THINKING|>{{}}",
    "Sky-T1": f"<|begin_of_thought|>{DRAFT}<|end_of_thought|>\n{{}}",
    "Gemma 4": f"<|channel>thought\n{DRAFT}<channel|>{{}}",
    "Gemma 4 without reasoning": "thought\n{}",
    "MedGemma": f"<unused94>thought\n{DRAFT}<unused95>{{}}",
    "gpt-oss": f"<|channel|>analysis<|message|>{DRAFT}<|end|><|start|>assistant<|channel|>final<|message|>{{}}",
    "Granite": f"Here is my thought process: {DRAFT}\nHere is my response: {{}}",
    "LLaVA-CoT": f"<SUMMARY>{DRAFT}</SUMMARY>\n<CAPTION>A bus.</CAPTION>\n<REASONING>{DRAFT}</REASONING>\n{{}}",
    "Seed-OSS": f"<seed:think>{DRAFT}</seed:think>{{}}",
    "MiniMax": f"<mm:think>{DRAFT}</mm:think>{{}}",
    "capitals": f"<THINKING>{DRAFT}</THINKING>{{}}",
    "reasoning": f"<reasoning>{DRAFT}</reasoning>\n{{}}",
}
MARKS = {
    "GLM-4.5V": "<|begin_of_box|>red<|end_of_box|>",
    "box in a sentence": "The bus is <|begin_of_box|>red<|end_of_box|>.",
    "answer tags": "<answer>red</answer>",
    "answer tags on lines": "<answer>\nred\n</answer>",
    "LaTeX": "\\boxed{red}",
    "LaTeX in a sentence": "The answer is $\\boxed{\\text{red}}$.",
    "both": "<answer>\\boxed{red}</answer>",
    "LLaVA-CoT": "<CONCLUSION> red </CONCLUSION>",
    "Sky-T1": "<|begin_of_solution|>red<|end_of_solution|>",
    "cut off": "<answer>red",
}


@pytest.mark.parametrize("form", REASONING.values(), ids=REASONING.keys())
def test_reasoning_is_taken_off_pairs_and_answers(form: str) -> None:
    assert parse_reply(form.format(PAIR)) == [QuestionAnswer(BUS, "red")]
    assert final_answer(form.format("red")) == "red"


@pytest.mark.parametrize("answer", MARKS.values(), ids=MARKS.keys())
def test_the_marks_of_an_answer_are_taken_off(answer: str) -> None:
    assert final_answer(answer) == "red"
    assert final_answer(f"<think>\\boxed{{no}}</think>{answer}") == "red"
    assert parse_reply(f"Question: {BUS}\nAnswer: {answer}") == [QuestionAnswer(BUS, "red")]


@pytest.mark.parametrize(
    "answer", ["", " red", "red\n", "a <b> c", "{3, 4}", "\\frac{1}{2}", "[think big]", "\\boxed{}"]
)
def test_an_answer_without_reasoning_and_marks_is_unchanged(answer: str) -> None:
    assert final_answer(answer) == answer


@pytest.mark.parametrize("reply", ["<think>The bus is", "<think>red</think>", "The bus</think> \n", "◁think▷red"])
def test_a_reply_that_is_all_reasoning_has_no_answer(reply: str) -> None:
    assert final_answer(reply) is None
    assert parse_reply(reply) == ReplyError.REASONING_TRUNCATED


def test_braces_in_a_box_are_matched() -> None:
    assert final_answer("so \\boxed{\\frac{1}{2}} it is") == "\\frac{1}{2}"
    assert final_answer("\\boxed{1} or \\boxed{2}") == "2"


@pytest.mark.parametrize(
    ("prompt", "opening", "closing"),
    [
        ("<|im_start|>assistant\n<think>\n", "<think>", "</think>"),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", "", None),
        ("<|im_start|>assistant\n", "", None),
        ("Explain <think> to me.<|im_end|>\n<|im_start|>assistant\n", "", None),
        ("◁think▷", "◁think▷", "◁/think▷"),
        ("[THINK]", "[THINK]", "[/think]"),
        ("<|START_THINKING|>", "<|START_THINKING|>", "<|END_THINKING|>"),
        ("<unused94>", "<unused94>", "<unused95>"),
    ],
)
def test_a_prompt_that_opens_reasoning_is_recognised(prompt: str, opening: str, closing: str | None) -> None:
    assert opened_reasoning(prompt) == opening
    if closing is not None:
        assert closing_of(opening).lower() == closing.lower()


FORMS = {
    "underscores": f"__Question:__ {BUS}\n__Answer:__ red",
    "underscores around lines": f"__Question: {BUS}__\n__Answer: red__",
    "single underscores": f"_Question:_ {BUS}\n_Answer:_ _red_",
    "bold underscores": f"**__Question__**: {BUS}\n**__Answer__**: __red__",
    "struck": f"Question: {BUS}\nAnswer: ~~red~~",
    "highlighted": f"==Question:== {BUS}\n==Answer:== ==red==",
    "inner bold": "Question: What **colour** is the **bus**?\nAnswer: **red**",
    "emoji": f"❓ Question: {BUS}\n✅ Answer: red",
    "emoji, bold": f"📝 **Question:** {BUS}\n💡 **Answer:** red",
    "keycaps": f"1️⃣ Question: {BUS}\n2️⃣ Answer: red",
    "arrows": f"→ Question: {BUS}\n→ Answer: red",
    "line breaks of HTML": f"Question: {BUS}<br/>\nAnswer: red<br/>",
    "line breaks of HTML only": f"Question: {BUS}<br>Answer: red<br>",
    "bold HTML": f"<b>Question:</b> {BUS}<br><strong>Answer:</strong> red",
    "paragraphs": f"<p>Question: {BUS}</p><p>Answer: <em>red</em></p>",
    "list of HTML": f"<ul><li><b>Question:</b> {BUS}</li><li><b>Answer:</b> red</li></ul>",
    "unclosed list": f"<ul>\n<li>Question: {BUS}\n<li>Answer: red\n</ul>",
    "headings of HTML": f"<h3>Question</h3>\n<p>{BUS}</p>\n<h3>Answer</h3>\n<p>red</p>",
    "attributes": f'<div class="qa"><span style="color:red">Question:</span> {BUS}</div>\n<div>Answer: red</div>',
    "entities": f"Question:&nbsp;{BUS}&#10;Answer: red",
    "entities in JSON": f"{{&quot;question&quot;: &quot;{BUS}&quot;, &quot;answer&quot;: &quot;red&quot;}}",
    "byte order mark": f"\ufeffQuestion: {BUS}\n\ufeffAnswer: red",
    "zero-width spaces": f"\u200bQuestion\u200b: {BUS}\u200b\n\u200bAnswer:\u2060 red\u200b",
    "direction marks": f"\u200eQuestion: {BUS}\u200f\n\u202aAnswer:\u202c \u2066red\u2069",
    "narrow spaces": f"Question\u202f: {BUS}\nAnswer\u202f:\u202fred\u2009",
    "line separators": f"Question: {BUS}\u2028Answer: red\u2029",
    "carriage returns": f"Question: {BUS}\rAnswer: red\r",
    "leaked user": f"{PAIR}\nUser: And the car?",
    "leaked human": f"{PAIR}\n\nHuman: And the car?\nAssistant: Blue.",
    "leaked heading": f"{PAIR}\n### Instruction:\nDescribe the car.",
    "leaked tokens": f"{PAIR}<|im_end|>\n<|im_start|>user\nAnd the car?<|im_end|>",
    "leaked tokens of Llama": f"{PAIR}</s><s>[INST] And the car? [/INST]",
    "leaked tokens of Gemma": f"{PAIR}<end_of_turn>\n<start_of_turn>user\nAnd the car?",
    "leaked tokens of SmolVLM": f"{PAIR}<end_of_utterance>\nUser: And the car?",
    "leaked role without tokens": f"{PAIR}\nuser\nAnd the car?",
    "leaked header": f"<|im_start|>assistant\n{PAIR}<|im_end|>",
    "dots": f"Q. {BUS}\nA. red",
    "numbered dots": f"Q1. {BUS}\nA1. red",
    "parentheses": f"Q) {BUS}\nA) red",
    "short words": f"Ques: {BUS}\nAns: red",
    "bold dots": f"**Q.** {BUS}\n**A.** red",
    "table": f"| Question | Answer |\n|---|---|\n| {BUS} | red |",
    "table, bold": f"Here:\n\n| # | **Question** | **Answer** |\n|:-:|:--|--:|\n| 1 | {BUS} | **red** |\n\nDone.",
    "table of rows": f"| **Question** | {BUS} |\n|---|---|\n| **Answer** | red |",
    "table of HTML": f"<table><tr><th>Question</th><th>Answer</th></tr><tr><td>{BUS}</td><td>red</td></tr></table>",
    "placeholder": f"Question: <image>\n{BUS}\nAnswer: red",
    "placeholder of Qwen": f"<|vision_start|><|image_pad|><|vision_end|>Question: {BUS}\nAnswer: red",
    "placeholder in JSON": f'{{"question": "<image> {BUS}", "answer": "red<image>"}}',
    "placeholder with a number": f"Question: {BUS} <image_1>\nAnswer: red",
    "image of Markdown": f"![bus](bus.png)\nQuestion: {BUS}\nAnswer: red",
    "box around the answer": f"Question: {BUS}\nAnswer: $\\boxed{{\\text{{red}}}}$",
    "pair in answer tags": f"<answer>Question: {BUS}\nAnswer: red</answer>",
    "JSON in answer tags": f'<answer>{{"question": "{BUS}", "answer": "red"}}</answer>',
    "box around the pair": f"<|begin_of_box|>Question: {BUS}\nAnswer: red<|end_of_box|>",
    "invalid escape": f'{{"question": "{BUS}", "answer": "red", "note": "\\alpha"}}',
    "HTML in JSON": '{"question": "What <b>colour</b> is the bus?", "answer": "<i>red</i>"}',
}
OTHER_PAIRS = {
    "French": ("Question\u202f: Le bus ?\nRéponse\u202f: rouge", "Le bus ?", "rouge"),
    "LaTeX in JSON": (
        '{"question": "What is \\frac{1}{2} of four?", "answer": "2"}',
        "What is \\frac{1}{2} of four?",
        "2",
    ),
    "escaped LaTeX in JSON": ('{"question": "What is \\\\frac{1}{2}?", "answer": "2"}', "What is \\frac{1}{2}?", "2"),
    "commands": (
        '{"question": "\\nabla \\times \\beta \\rho \\theta \\neq \\alpha?", "answer": "\\sqrt{2}"}',
        "\\nabla \\times \\beta \\rho \\theta \\neq \\alpha?",
        "\\sqrt{2}",
    ),
    "line breaks in JSON": ('{"question": "One\\nor\\ttwo?", "answer": "one"}', "One\nor\ttwo?", "one"),
    "tags in the question": (
        "Question: Which is shown, <b> or <i>?\nAnswer: <b>",
        "Which is shown, <b> or <i>?",
        "<b>",
    ),
    "decoded entities": ("Question: R&amp;D or &lt;b&gt;?\nAnswer: R&amp;D", "R&D or <b>?", "R&D"),
    "URL with ampersands": ("Question: Which site?\nAnswer: a.org?x=1&copy=2", "Which site?", "a.org?x=1&copy=2"),
    "name of Python": ("Question: Which method?\nAnswer: __init__", "Which method?", "__init__"),
    "blank": ("Question: The sign says ____?\nAnswer: STOP", "The sign says ____?", "STOP"),
    "powers": ("Question: What is 2**3**2?\nAnswer: 512", "What is 2**3**2?", "512"),
    "options with dots": ("Question: Which?\nA. red\nB. blue\nAnswer: A", "Which?\nA. red\nB. blue", "A"),
    "pipe": ("Question: What is a | b?\nAnswer: a or b", "What is a | b?", "a or b"),
    "joiners": (
        "Question: \u0645\u06cc\u200c\u0631\u0648\u062f?\nAnswer: red",
        "\u0645\u06cc\u200c\u0631\u0648\u062f?",
        "red",
    ),
    "name with an initial": ("Q: Who wrote it?\nA: A. Smith", "Who wrote it?", "A. Smith"),
}


@pytest.mark.parametrize("reply", FORMS.values(), ids=FORMS.keys())
def test_decoration_is_removed(reply: str) -> None:
    assert parse_reply(reply) == [QuestionAnswer(BUS, "red")]


@pytest.mark.parametrize(("reply", "question", "answer"), OTHER_PAIRS.values(), ids=OTHER_PAIRS.keys())
def test_what_a_pair_is_about_is_kept(reply: str, question: str, answer: str) -> None:
    assert parse_reply(reply) == [QuestionAnswer(question, answer)]


def test_every_row_of_a_table_is_a_pair() -> None:
    table = "| Question | Answer |\n|---|---|\n| a? | b |\n| c? | d \\| e |\n"
    assert parse_reply(table) == [QuestionAnswer("a?", "b"), QuestionAnswer("c?", "d | e")]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("", 0),
        ("dark red", 2),
        ("北京市", 3),
        ("iPhone 手机", 3),
        ("iPhone手机", 3),
        ("สวัสดี", 4),
        ("ガラス", 3),
        ("か\u3099", 1),
        ("한국어 단어", 2),
        ("…", 1),
    ],
)
def test_words_are_characters_where_a_script_has_no_spaces(text: str, number: int) -> None:
    assert num_words(text) == number


def test_the_word_limit_counts_characters_of_chinese() -> None:
    reply = "问题：这是什么？\n答案：" + "红" * 21  # noqa: RUF001
    assert parse_reply(reply) == ReplyError.ANSWER_TOO_LONG
    assert parse_reply(reply, max_answer_words=21) == [QuestionAnswer("这是什么？", "红" * 21)]  # noqa: RUF001


@pytest.mark.parametrize("placeholder", ["<image>", "&lt;image&gt;", "<ima<image>ge>", "<|image_pad|>", "<image_2>"])
def test_a_pair_holds_no_placeholder(placeholder: str) -> None:
    question = f"Question: {placeholder} {BUS}\nAnswer: red {placeholder}"
    assert parse_reply(question) == [QuestionAnswer(BUS, "red")]
    assert parse_reply(f"Question: {BUS}\nAnswer: {placeholder}") == ReplyError.EMPTY_ANSWER


def test_deeply_nested_placeholders_are_removed_in_linear_time() -> None:
    assert "<image>" not in without_placeholders("<ima" * 5000 + "<image>" + "ge>" * 5000)


def test_an_exported_sample_has_exactly_one_placeholder(tmp_path: Path) -> None:
    """Pairs of earlier versions, and answers that a person wrote, may hold further ones."""
    sample = ParitySample("a", "a", "/a", "<image> What?", "red <image>", "")
    run = Run.open(str(tmp_path))
    export_parity(run, "parity/s", TASKS["demo_world"], [sample])
    (exported,) = json.loads((tmp_path / "parity/s/llava.json").read_text())
    human, model = (turn["value"] for turn in exported["conversations"])
    assert human.startswith("<image>\n")
    assert (human + model).count("<image>") == 1


@pytest.mark.parametrize("seed", range(2))
def test_hostile_replies_end_in_pairs_or_a_reason(seed: int) -> None:
    outcomes = measure(3000, seed)
    assert outcomes.outcomes.total() == outcomes.num_replies == 3000
    assert outcomes.num_parsed_back > 900
    assert {"pair", "no_question", "no_answer", "empty_reply", "reasoning_truncated"} <= set(outcomes.outcomes)
    assert set(outcomes.outcomes) <= {"pair", *map(str, ReplyError)}

"""The reply parser: the formats in which teachers answer."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpa_ray.tasks.parser import QuestionAnswer, ReplyError, parse_reply

BUS = "What colour is the bus?"
THINK = "<think>Question: no?\nAnswer: no</think>"
LABELLED = {
    "plain": f"Question: {BUS}\nAnswer: red",
    "one line": f"Question: {BUS} Answer: red",
    "lower case": f"question: {BUS}\nanswer: red",
    "upper case": f"QUESTION: {BUS}\nANSWER: red",
    "blank line between": f"Question: {BUS}\n\nAnswer: red",
    "bodies below the labels": f"Question:\n{BUS}\nAnswer:\nred",
    "windows line ends": f"Question: {BUS}\r\nAnswer: red\r\n",
    "space before the colon": f"Question : {BUS}\nAnswer : red",
    "no space behind the colon": f"Question:{BUS}\nAnswer:red",
    "bold labels, colon inside": f"**Question:** {BUS}\n**Answer:** red",
    "bold labels, colon outside": f"**Question**: {BUS}\n**Answer**: red",
    "bold labels on one line": f"**Question:** {BUS} **Answer:** red",
    "bold lines": f"**Question: {BUS}**\n**Answer: red**",
    "italic": f"*Question:* {BUS}\n*Answer:* *red*",
    "headings": f"## Question\n{BUS}\n\n## Answer\nred",
    "headings with colon": f"### Question:\n{BUS}\n\n### Answer:\nred",
    "bold headings": f"**Question**\n{BUS}\n\n**Answer**\nred",
    "bullets": f"- Question: {BUS}\n- Answer: red",
    "round bullets": f"• Question: {BUS}\n• Answer: red",
    "quoted block": f"> Question: {BUS}\n> Answer: red",
    "numbered labels": f"Question 1: {BUS}\nAnswer 1: red",
    "numbered with hash": f"Question #1: {BUS}\nAnswer #1: red",
    "numbered lines": f"1. Question: {BUS}\n   Answer: red",
    "numbered lines, bold": f"1. **Question:** {BUS}\n   **Answer:** red",
    "bracketed labels": f"[Question]: {BUS}\n[Answer]: red",
    "letters": f"Q: {BUS}\nA: red",
    "numbered letters": f"Q1: {BUS}\nA1: red",
    "letters on one line": f"Q: {BUS} A: red",
    "bold letters": f"**Q:** {BUS}\n**A:** red",
    "qualified labels": f"Generated Question: {BUS}\nFinal Answer: red",
    "note behind the label": f"Question (reading): {BUS}\nAnswer (single word): red",
    "preamble": f"Sure! Here is a question and its answer:\n\nQuestion: {BUS}\nAnswer: red",
    "preamble on the line": f"Sure! Question: {BUS} Answer: red",
    "title": f"**Question and Answer:**\n\nQuestion: {BUS}\nAnswer: red",
    "chatter behind": f"Question: {BUS}\nAnswer: red\n\nLet me know if you want another!",
    "explanation behind": f"Question: {BUS}\nAnswer: red\nExplanation: its paint is red.",
    "type between": f"Question: {BUS}\nType: lookup\nAnswer: red",
    "rule behind": f"Question: {BUS}\nAnswer: red\n---\nThat is all.",
    "reasoning": f"{THINK}\nQuestion: {BUS}\nAnswer: red",
    "reasoning opened in the prompt": f"A bus. Question: no? Answer: no</think>Question: {BUS}\nAnswer: red",
    "reasoning left open behind": f"Question: {BUS}\nAnswer: red\n<think>or",
    "code fence": f"```\nQuestion: {BUS}\nAnswer: red\n```",
    "quoted parts": f'Question: "{BUS}"\nAnswer: "red"',
    "typographic quotes": f"Question: “{BUS}”\nAnswer: “red”",
    "backticks": f"Question: `{BUS}`\nAnswer: `red`",
    "full-width colon": f"Question：{BUS}\nAnswer：red",  # noqa: RUF001
    "small colon": f"Question﹕{BUS}\nAnswer﹕red",
    "hyphens": f"Question - {BUS}\nAnswer - red",
    "long dashes": f"Question — {BUS}\nAnswer — red",
    "no question label": f"{BUS}\nAnswer: red",
    "no question label, preamble": f"Here is the question:\n{BUS}\nAnswer: red",
    "no question label, one line": f"{BUS} Answer: red",
    "no question label, numbered": f"1. {BUS}\n   Answer: red",
    "tags": f"<question>{BUS}</question>\n<answer>red</answer>",
    "German": f"Frage: {BUS}\nAntwort: red",
    "French": f"Question : {BUS}\nRéponse : red",
    "Spanish": f"Pregunta: {BUS}\nRespuesta: red",
    "Portuguese": f"Pergunta: {BUS}\nResposta: red",
    "Italian": f"Domanda: {BUS}\nRisposta: red",
    "Russian": f"Вопрос: {BUS}\nОтвет: red",  # noqa: RUF001
    "Chinese": f"问题：{BUS}\n答案：red",  # noqa: RUF001
    "Japanese": f"質問：{BUS}\n回答：red",  # noqa: RUF001
    "Korean": f"질문: {BUS}\n답변: red",
    "JSON": f'{{"question": "{BUS}", "answer": "red"}}',
    "JSON, capitals": f'{{"Question": "{BUS}", "ANSWER": "red"}}',
    "JSON list": f'[{{"question": "{BUS}", "answer": "red"}}]',
    "JSON in a fence": f'```json\n{{\n  "question": "{BUS}",\n  "answer": "red"\n}}\n```',
    "JSON behind a preamble": f'Here you go: {{"question": "{BUS}", "answer": "red"}} Enjoy!',
    "JSON, nested": f'{{"qa_pairs": [{{"q": "{BUS}", "a": "red"}}]}}',
    "JSON, answer in a list": f'{{"question": "{BUS}", "answer": ["red"]}}',
    "broken JSON": f'{{\n  "question": "{BUS}",\n  "answer": "red",\n}}',
    "Python dict": f"{{'question': '{BUS}', 'answer': 'red'}}",
    "Dutch": f"Vraag: {BUS}\nAntwoord: red",
    "Swedish": f"Fråga: {BUS}\nSvar: red",
    "Polish": f"Pytanie: {BUS}\nOdpowiedź: red",
    "Turkish": f"Soru: {BUS}\nCevap: red",
    "Vietnamese": f"Câu hỏi: {BUS}\nCâu trả lời: red",
    "Indonesian": f"Pertanyaan: {BUS}\nJawaban: red",
    "Greek": f"Ερώτηση: {BUS}\nΑπάντηση: red",  # noqa: RUF001
    "Hebrew": f"שאלה: {BUS}\nתשובה: red",  # noqa: RUF001
    "Arabic": f"السؤال: {BUS}\nالإجابة: red",  # noqa: RUF001
    "Hindi": f"प्रश्न: {BUS}\nउत्तर: red",
    "Thai": f"คำถาม: {BUS}\nคำตอบ: red",
    "Ukrainian": f"Питання: {BUS}\nВідповідь: red",  # noqa: RUF001
    "Finnish": f"Kysymys: {BUS}\nVastaus: red",
    "Czech": f"Otázka: {BUS}\nOdpověď: red",
    "Chinese, bold": f"**问题：** {BUS}\n**答案：** red",  # noqa: RUF001
    "Chinese letters": f"问：{BUS}\n答：red",  # noqa: RUF001
    "heading above": f"# Visual question\n\nQuestion: {BUS}\nAnswer: red",
    "nested bullets": f"* **Question:** {BUS}\n    * **Answer:** red",
    "lines of a quote": f"> **Question:** {BUS}\n>\n> **Answer:** red",
    "text fence": f"```text\nQuestion: {BUS}\nAnswer: red\n```",
    "bold answer": f"Question: {BUS}\nAnswer: **red**",
    "answer on its own line, bold": f"Question: {BUS}\nAnswer:\n\n**red**",
    "thinking aloud": f"Let me look at the picture. There is a bus.\n\nQuestion: {BUS}\nAnswer: red",
    "reasoning with capitals": f"<THINK>hm</THINK>\nQuestion: {BUS}\nAnswer: red",
    "thinking tag": f"<thinking>hm</thinking>Question: {BUS}\nAnswer: red",
    "reasoning label": f"Reasoning: the bus is large.\nQuestion: {BUS}\nAnswer: red",
    "confidence behind": f"Question: {BUS}\nAnswer: red\nConfidence: high",
    "tabs": f"Question:\t{BUS}\nAnswer:\tred",
    "spaces without a break": f"  Question:\u00a0{BUS}\n  Answer:\u00a0red",
    "many blank lines": f"\n\n\nQuestion: {BUS}\n\n\n\nAnswer: red\n\n\n",
    "QA labels in JSON": f'{{"Q": "{BUS}", "A": "red"}}',
    "JSON with more keys": f'{{"id": 1, "question": "{BUS}", "answer": "red", "type": "colour"}}',
    "JSON, answer first": f'{{"answer": "red", "question": "{BUS}"}}',
    "JSON, numbered keys": f'{{"question_1": "{BUS}", "answer_1": "red"}}',
    "JSON behind reasoning": f'{THINK}{{"question": "{BUS}", "answer": "red"}}',
    "JSON in an untagged fence": f'```\n{{"question": "{BUS}", "answer": "red"}}\n```\nDone.',
    "JSON within JSON": f'{{"result": {{"data": [{{"question": "{BUS}", "answer": "red"}}]}}}}',
    "JSON, other languages": f'{{"Frage": "{BUS}", "Antwort": "red"}}',
    "tags within text": f"Sure:\n<question>\n{BUS}\n</question>\n<answer>\nred\n</answer>\nDone.",
}
OTHER_PAIRS = {
    "imperative": ("Question: Name the animal.\nAnswer: cat", "Name the animal.", "cat"),
    "imperative on one line": ("Question: Name the animal Answer: cat", "Name the animal", "cat"),
    "two lines": ("Question: What is\nwritten here?\nAnswer: STOP", "What is\nwritten here?", "STOP"),
    "inner ?": ("Question: Is it red? Or blue?\nAnswer: red", "Is it red? Or blue?", "red"),
    "answer in the question": (
        "Question: Which is the right answer: A or B?\nAnswer: B",
        "Which is the right answer: A or B?",
        "B",
    ),
    "options": ("Question: Which?\nA: red\nB: blue\nAnswer: A", "Which?\nA: red\nB: blue", "A"),
    "time": ("Question: What time is it?\nAnswer: 10:10", "What time is it?", "10:10"),
    "decimal": ("Question: How much?\nAnswer: -3.5%", "How much?", "-3.5%"),
    "feet": ("Question: How tall?\nAnswer: 5'", "How tall?", "5'"),
    "inner quotes": (
        'Question: What does "A" mean in "B"?\nAnswer: "A" or "B"',
        'What does "A" mean in "B"?',
        '"A" or "B"',
    ),
    "Chinese sentence": ("问题：车是什么颜色？答案：红色", "车是什么颜色？", "红色"),  # noqa: RUF001
    "JSON number": ('{"question": "How much?", "answer": 3.50}', "How much?", "3.50"),
    "JSON truth": ('{"question": "Is it?", "answer": true}', "Is it?", "true"),
    "JSON escapes": ('{"question": "Caf\\u00e9?", "answer": "\\ud800x"}', "Café?", "x"),
    "URL": ("Question: Which site?\nAnswer: http://a.org/b?c=d", "Which site?", "http://a.org/b?c=d"),
    "currency": ("Question: How much?\nAnswer: $1,299.99", "How much?", "$1,299.99"),
    "list as an answer": ("Question: Which?\nAnswer: red, blue", "Which?", "red, blue"),
    "full sentence": ("Question: What?\nAnswer: It is a bus.", "What?", "It is a bus."),
    "colon in the question": ("Question: Sign: what does it say?\nAnswer: STOP", "Sign: what does it say?", "STOP"),
    "maths": ("Question: What is 2 + 2 * 3?\nAnswer: 8", "What is 2 + 2 * 3?", "8"),
    "negative": ("Question: How cold?\nAnswer: -5 °C", "How cold?", "-5 °C"),
    "ratio": ("Question: Which scale?\nAnswer: 1:100", "Which scale?", "1:100"),
    "date": ("Question: When?\nAnswer: 12/05/2020", "When?", "12/05/2020"),
    "JSON with a line break": ('{"question": "One\nor two?", "answer": "one"}', "One\nor two?", "one"),
    "words of a refusal": (
        "Question: What is the slogan?\nAnswer: I can't believe it's not butter",
        "What is the slogan?",
        "I can't believe it's not butter",
    ),
}
REASONS = {
    "nothing": ("", ReplyError.EMPTY_REPLY),
    "white space": (" \n\t", ReplyError.EMPTY_REPLY),
    "reasoning only": ("<think>Question: a?\nAnswer: b", ReplyError.REASONING_TRUNCATED),
    "caption": ("A red bus stands in the street.", ReplyError.NO_QUESTION),
    "answer only": ("Answer: red", ReplyError.NO_QUESTION),
    "answer behind a caption": ("A red bus.\nAnswer: red", ReplyError.NO_QUESTION),
    "question only": (f"Question: {BUS}", ReplyError.NO_ANSWER),
    "bare question": (BUS, ReplyError.NO_ANSWER),
    "bare lines": (f"{BUS}\nRed", ReplyError.NO_ANSWER),
    "options only": ("Question: Which?\nA: red\nB: blue", ReplyError.NO_ANSWER),
    "JSON without answer": (f'{{"question": "{BUS}"}}', ReplyError.NO_ANSWER),
    "JSON null": (f'{{"question": "{BUS}", "answer": null}}', ReplyError.EMPTY_ANSWER),
    "empty answer": (f"Question: {BUS}\nAnswer:", ReplyError.EMPTY_ANSWER),
    "empty bold answer": (f"**Question:** {BUS}\n**Answer:** ", ReplyError.EMPTY_ANSWER),
    "empty question": ("Question:\nAnswer: red", ReplyError.EMPTY_QUESTION),
    "echo of the format": ("Question: <the question>\nAnswer: <the answer>", ReplyError.EMPTY_QUESTION),
    "refusal": ("I'm sorry, but I can't help with that.", ReplyError.REFUSAL),
    "refusal of a model": ("As an AI, I do not see images. Is there a caption?", ReplyError.REFUSAL),
    "refusal as answer": (f"Question: {BUS}\nAnswer: I cannot determine it.", ReplyError.REFUSAL),
    "refusal in German": ("Es tut mir leid, das geht nicht.", ReplyError.REFUSAL),
    "refusal in French": ("Je suis désolé, je ne peux pas.", ReplyError.REFUSAL),
    "refusal in Chinese": ("抱歉，我无法回答。", ReplyError.REFUSAL),  # noqa: RUF001
    "refusal with an apology": ("I apologize, but I cannot view images.", ReplyError.REFUSAL),
    "cut off in the question": ("Question: What colour is the", ReplyError.NO_ANSWER),
    "cut off before the answer": (f"**Question:** {BUS}\n**Ans", ReplyError.NO_ANSWER),
    "JSON cut off": (f'{{"question": "{BUS}", "ans', ReplyError.NO_ANSWER),
    "dots": ("Question: ...\nAnswer: ...", ReplyError.EMPTY_QUESTION),
    "placeholder answer": (f"Question: {BUS}\nAnswer: <answer here>", ReplyError.EMPTY_ANSWER),
    "marks alone": ("Question: ?\nAnswer: red", ReplyError.EMPTY_QUESTION),
    "JSON of something else": ('{"caption": "A red bus."}', ReplyError.NO_QUESTION),
    "empty JSON": ("{}", ReplyError.NO_QUESTION),
    "long answer": (f"Question: {BUS}\nAnswer: " + "red " * 21, ReplyError.ANSWER_TOO_LONG),
}
SEVERAL = {
    "numbered": "Question 1: a?\nAnswer 1: b\n\nQuestion 2: c?\nAnswer 2: d",
    "without blank lines": "Q: a?\nA: b\nQ: c?\nA: d",
    "list": "1. **Question:** a?\n   **Answer:** b\n2. **Question:** c?\n   **Answer:** d",
    "one line": "Question: a? Answer: b Question: c? Answer: d",
    "no question labels": "1. a?\nAnswer: b\n2. c?\nAnswer: d",
    "JSON": '[{"question": "a?", "answer": "b"}, {"question": "c?", "answer": "d"}]',
    "JSON lines": '{"question": "a?", "answer": "b"}\n{"question": "c?", "answer": "d"}',
    "JSON object of lists": '{"pairs": [{"q": "a?", "a": "b"}, {"q": "c?", "a": "d"}]}',
    "headings": "## Question 1\na?\n\n## Answer 1\nb\n\n## Question 2\nc?\n\n## Answer 2\nd",
    "other words between": "Question: a?\nAnswer: b\nExplanation: x\nQuestion: c?\nAnswer: d",
    "tags": "<question>a?</question><answer>b</answer>\n<question>c?</question><answer>d</answer>",
    "a faulty one between": "Question: a?\nAnswer: b\nQuestion: x?\nQuestion: c?\nAnswer: d",
}


@pytest.mark.parametrize("reply", LABELLED.values(), ids=LABELLED.keys())
def test_a_pair_is_parsed_from_every_format(reply: str) -> None:
    assert parse_reply(reply) == [QuestionAnswer(BUS, "red")]


@pytest.mark.parametrize(("reply", "question", "answer"), OTHER_PAIRS.values(), ids=OTHER_PAIRS.keys())
def test_the_text_of_a_pair_is_unchanged(reply: str, question: str, answer: str) -> None:
    assert parse_reply(reply) == [QuestionAnswer(question, answer)]


@pytest.mark.parametrize(("reply", "reason"), REASONS.values(), ids=REASONS.keys())
def test_a_reply_without_a_pair_has_a_reason(reply: str, reason: ReplyError) -> None:
    assert parse_reply(reply) == reason


@pytest.mark.parametrize("reply", SEVERAL.values(), ids=SEVERAL.keys())
def test_several_pairs_are_parsed_in_their_order(reply: str) -> None:
    assert parse_reply(reply) == [QuestionAnswer("a?", "b"), QuestionAnswer("c?", "d")]


def test_the_word_limit_is_an_argument() -> None:
    reply = f"Question: {BUS}\nAnswer: dark red"
    assert parse_reply(reply, max_answer_words=1) == ReplyError.ANSWER_TOO_LONG
    assert parse_reply(reply, max_answer_words=2) == [QuestionAnswer(BUS, "dark red")]


HOSTILE = [
    " ",
    "\n",
    "*",
    '"',
    "[",
    "{",
    '{"',
    "?",
    "? ",
    "1.",
    "Q:",
    "A:\n",
    "Answer: ",
    "Question:",
    "<think>",
    "(",
    "</",
    "<b>",
    "<td>",
    "|",
    "| a | b |\n",
    "**x** ",
    "_",
    "<answer>",
    "\\boxed{",
    '{"a": "\\frac',
    "<|im_end|>",
    "&lt;",
]


@pytest.mark.parametrize("piece", HOSTILE)
def test_hostile_replies_take_linear_time(piece: str) -> None:
    reply = "Question: " + piece * 20_000 + "x"
    start_s = time.process_time()
    parse_reply(reply)
    assert time.process_time() - start_s < 2


FRAGMENTS = [
    "Question: ",
    "Answer: ",
    "Q: ",
    "A: ",
    "question",
    "answer",
    '"question":',
    '"answer":',
    "问题：",  # noqa: RUF001
    "red",
    "**",
    "\n",
    "\n\n",
    " ",
    "?",
    '"',
    "'",
    "{",
    "}",
    "[",
    "]",
    ",",
    "- ",
    "1. ",
    "```",
    "...",
    "\\",
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    "I'm sorry",
]
replies = st.one_of(st.text(), st.lists(st.sampled_from(FRAGMENTS), max_size=25).map("".join))


@given(replies)
def test_any_text_gives_complete_pairs_or_a_reason(reply: str) -> None:
    pairs = parse_reply(reply)
    if isinstance(pairs, ReplyError):
        return
    assert pairs
    for pair in pairs:
        assert pair.question.strip() == pair.question != ""
        assert pair.answer.strip() == pair.answer != ""


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text))


@given(replies.filter(lambda reply: "{" not in reply and "[" not in reply and "&" not in reply))
def test_text_is_never_invented(reply: str) -> None:
    pairs = parse_reply(reply)
    if not isinstance(pairs, ReplyError):
        letters = _letters(reply)
        assert all(_letters(pair.question) in letters and _letters(pair.answer) in letters for pair in pairs)


words = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8)
phrases = st.lists(words, min_size=1, max_size=6).map(" ".join)


@given(phrases, st.sampled_from(["?", "", "."]), phrases, st.sampled_from(["", ".", "%"]))
def test_a_written_pair_is_parsed_back(question: str, mark: str, answer: str, ending: str) -> None:
    pair = QuestionAnswer(question + mark, answer + ending)
    # In some scripts, every character counts as a word.
    assert parse_reply(f"Question: {pair.question}\nAnswer: {pair.answer}", max_answer_words=100) == [pair]

"""Parse question-answer pairs from a teacher's reply, in the many formats that teachers use.

Matching a pattern takes linear time: the repetitions in it are possessive or bounded, and no two repetitions can match
the same text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from mpa_ray.tasks.json_replies import json_text, json_values
from mpa_ray.tasks.labels import Patterns, find_labels, patterns_of
from mpa_ray.tasks.plain_text import (
    first_turn,
    is_tag,
    num_words,
    visible,
    with_decoded_entities,
    without_markup,
    without_placeholders,
)
from mpa_ray.tasks.reasoning import without_marks, without_reasoning


@dataclass(frozen=True)
class QuestionAnswer:
    """A pair as the teacher wrote it, without labels and markup."""

    question: str
    answer: str


class ReplyError(StrEnum):
    """Why a reply contains no pair."""

    EMPTY_REPLY = "empty_reply"
    REASONING_TRUNCATED = "reasoning_truncated"
    NO_QUESTION = "no_question"
    NO_ANSWER = "no_answer"
    EMPTY_QUESTION = "empty_question"
    EMPTY_ANSWER = "empty_answer"
    REFUSAL = "refusal"
    ANSWER_TOO_LONG = "answer_too_long"


def parse_reply(
    reply: str, max_answer_words: int = 20, question_labels: Sequence[str] = (), answer_labels: Sequence[str] = ()
) -> list[QuestionAnswer] | ReplyError:
    """Return the pairs of a reply in order, or the reason why it contains none. This function never raises an error.

    Questions and answers are parts of the reply, including inner line breaks. Only the decoration is removed:
    reasoning, Markdown, HTML, invisible characters, placeholders of images, and the marks around a final answer. JSON
    strings and HTML entities are decoded. If some pairs are faulty, the others are returned. If all pairs are faulty,
    the first fault is returned.

    Args:
        reply: The teacher's reply.
        max_answer_words: A longer answer is a fault. See `num_words`.
        question_labels: Words that mark a question, in addition to the built-in words of many languages.
        answer_labels: Words that mark an answer, in addition to the built-in words.
    """
    patterns = patterns_of(tuple(question_labels), tuple(answer_labels))
    text = without_reasoning(visible(reply))
    if text is None:
        return ReplyError.REASONING_TRUNCATED
    if not text.strip():
        return ReplyError.EMPTY_REPLY
    text = without_placeholders(text)
    cleaned = first_turn(text)
    checked = [_checked(draft, max_answer_words) for draft in _drafts(cleaned, patterns)]
    if pairs := [pair for pair in checked if isinstance(pair, QuestionAnswer)]:
        return pairs
    if without_markup(cleaned) != text and next(json_values(text), None) is None:
        # The markup may be what the pair is about, as in "Which tag is shown? Answer: <br>".
        literal = [
            _checked(draft, max_answer_words) for draft in _labelled_drafts(with_decoded_entities(text), patterns)
        ]
        if pairs := [pair for pair in literal if isinstance(pair, QuestionAnswer)]:
            return pairs
    if _REFUSAL.match(cleaned):
        return ReplyError.REFUSAL
    faults = [fault for fault in checked if isinstance(fault, ReplyError)]
    if faults:
        return faults[0]
    return ReplyError.NO_ANSWER if "?" in text or "？" in text else ReplyError.NO_QUESTION  # noqa: RUF001


def _drafts(text: str, patterns: Patterns) -> list[_Draft]:
    """The candidate pairs, as JSON, in a table or with labels; the first of these forms that gives any is used."""
    if drafts := list(_json_drafts(text, patterns)):
        return drafts
    plain = without_markup(text)
    if plain != text and (drafts := list(_json_drafts(plain, patterns))):
        return drafts
    return list(_table_drafts(plain, patterns)) or list(_labelled_drafts(plain, patterns))


def asks_for_pair(prompt: str, question_labels: Sequence[str] = (), answer_labels: Sequence[str] = ()) -> bool:
    """Whether a prompt shows a format that `parse_reply` reads: labels of a question and an answer, or JSON."""
    labels = find_labels(prompt, patterns_of(tuple(question_labels), tuple(answer_labels)))
    has_both = all(any(label.opens(part) for label in labels) for part in ("question", "answer"))
    return has_both or "json" in prompt.lower()


@dataclass(frozen=True)
class _Draft:
    """A candidate pair; a missing part is None."""

    question: str | None
    answer: str | None


def _checked(draft: _Draft, max_answer_words: int) -> QuestionAnswer | ReplyError:
    if draft.question is None:
        return ReplyError.NO_QUESTION
    if draft.answer is None:
        return ReplyError.NO_ANSWER
    question, answer = _undecorated(draft.question), _undecorated(without_marks(_undecorated(draft.answer)))
    # A placeholder may have been written with entities.
    question, answer = without_placeholders(question).strip(), without_placeholders(answer).strip()
    if not any(map(str.isalnum, question)) or _is_placeholder(question):
        return ReplyError.EMPTY_QUESTION
    if not answer or _is_placeholder(answer):
        return ReplyError.EMPTY_ANSWER
    if _REFUSAL.match(answer):
        return ReplyError.REFUSAL
    if num_words(answer) > max_answer_words:
        return ReplyError.ANSWER_TOO_LONG
    return QuestionAnswer(question, answer)


def _is_placeholder(text: str) -> bool:
    """Whether a text only stands for a question or an answer, such as `<the answer>`."""
    return _PLACEHOLDER.fullmatch(text) is not None and not is_tag(text)


_END_TAG = re.compile(r"</(?:question|answer)>", re.IGNORECASE)
_PARAGRAPH_END = re.compile(r"\n[ \t\r]*+(?:\n|```|---|\*\*\*|</)")
_PREAMBLE = re.compile(r"(?:sure|certainly|of course|okay|ok|here(?:['’]s| is| are))\b[^:\n?]{0,80}:", re.IGNORECASE)  # noqa: RUF001
_ITEM = re.compile(r"[ \t>#*•·-]*+(?:\(?\d{1,3}[.)][ \t]++)?+")
_PLACEHOLDER = re.compile(r"<[^<>]*+>|\.\.\.|…")
_CANNOT = r"(?:cannot|can not|can['’]?t|could not|am (?:unable|not able) to|['’]?m (?:unable|not able) to|won['’]?t)"  # noqa: RUF001
_REFUSAL = re.compile(
    rf"""\s*+ (?:(?:unfortunately|sorry)[,.]?[ ](?:but[ ])?)?
    (?: i(?:['’]m|[ ]am)[ ](?:so[ ]|very[ ])?sorry\b(?=[,.]|[ ](?:but|i)\b) | i[ ]apologi[sz]e\b | as[ ]an[ ]ai\b
      | i[ ]?{_CANNOT.replace(" ", "[ ]")}[ ](?:see|view|read|tell|determine|identify|answer|help|assist|comply|provide
          |create|generate|write|process|make|fulfil|access|recogni[sz]e|do)
      | es[ ]tut[ ]mir[ ]leid | je[ ]suis[ ]désolé | lo[ ]siento[,.] | 抱歉 | 对不起 | 很抱歉 | 申し訳 | 죄송 )""",  # noqa: RUF001
    re.IGNORECASE | re.VERBOSE,
)


def _labelled_drafts(text: str, patterns: Patterns) -> Iterator[_Draft]:
    labels = find_labels(text, patterns)
    floor, question = 0, None
    for index, label in enumerate(labels):
        following = labels[index + 1] if index + 1 < len(labels) else None
        body = text[label.end : following.start if following else len(text)]
        if label.opens("question"):
            if question is not None:
                yield _Draft(question, None)
            question = body
        elif label.opens("answer"):
            if question is None:
                question = _unlabelled_question(text[floor : label.start])
            is_next_unlabelled = following is not None and following.opens("answer")
            answer = body.strip().split("\n", 1)[0] if is_next_unlabelled else _first_paragraph(body)
            yield _Draft(question, answer)
            question, floor = None, label.end + body.find(answer) + len(answer)
    if question is not None:
        yield _Draft(question, None)


def _first_paragraph(body: str) -> str:
    stripped = body.strip()
    end = _PARAGRAPH_END.search(stripped)
    return stripped[: end.start()] if end else stripped


def _unlabelled_question(before: str) -> str | None:
    """The last line before an answer label, if it is a question."""
    line = before.strip().rsplit("\n", 1)[-1]
    preamble = _PREAMBLE.match(line)
    if preamble:
        line = line[preamble.end() :]
    item = _ITEM.match(line)
    question = _undecorated(line[item.end() :] if item else line)
    return question if question.endswith(("?", "？")) else None  # noqa: RUF001


_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "„": "“", "「": "」", "『": "』"}  # noqa: RUF001
_MAX_NESTED = 4
_EDGE = "*` \t\n\u200c\u200d"
_MARKS = ("__", "~~", "==", "_")
"""Marks of Markdown that enclose a text. Asterisks and backticks are removed even if they enclose nothing."""
_LEADING_MARK = re.compile(r"(?:__?|~~|==)(?=\s)")
_INNER_BOLD = re.compile(r"(?<![\w*])\*\*(?=[^\s*])([^*\n]{1,200}?)(?<!\s)\*\*(?![\w*])")
_PYTHON_NAME = re.compile(
    r"__(?:init|main|name|file|call|str|repr|len|all|doc|dict|class|new|del|enter|exit|iter|next)__"
)


def _undecorated(text: str) -> str:
    """Remove Markdown, white space and pairs of quotation marks around a text, and bold type within it."""
    end_tag = _END_TAG.search(text)
    text = _without_block_quote(text[: end_tag.start()] if end_tag else text).strip(_EDGE)
    leading = _LEADING_MARK.match(text)
    text = text[leading.end() :].strip(_EDGE) if leading else text
    for _ in range(_MAX_NESTED):
        inner = _unquoted(_unmarked(text)).strip(_EDGE)
        if inner == text:
            break
        text = inner
    return _INNER_BOLD.sub(r"\1", text).strip()


def _unmarked(text: str) -> str:
    if _PYTHON_NAME.fullmatch(text):
        return text
    for mark in _MARKS:
        inner = text.removeprefix(mark).removesuffix(mark)
        if len(text) - len(inner) == 2 * len(mark) and inner and inner[0] != mark[0] != inner[-1]:
            return inner
        # The mark may enclose the label, too.
        if text.endswith(mark) and text.count(mark[0]) == len(mark):
            return text.removesuffix(mark)
    return text


def _unquoted(text: str) -> str:
    # A comma or brace after the closing quotation mark comes from JSON that could not be decoded.
    quoted = text.rstrip(" \t\r\n,}]") if text[:1] in _QUOTES else text
    inner = quoted[1:-1]
    if len(quoted) < 2 or _QUOTES.get(quoted[0]) != quoted[-1] or quoted[0] in inner or quoted[-1] in inner:
        return text
    return inner


def _without_block_quote(text: str) -> str:
    """Remove lines at the end that contain only the marks of a Markdown block quote."""
    kept = text.rstrip("> \t\r\n")
    line_end = text.find("\n", len(kept))
    return text if line_end < 0 else text[:line_end]


def _json_drafts(text: str, patterns: Patterns) -> Iterator[_Draft]:
    for value in json_values(text):
        yield from _drafts_within(value, patterns)


def _drafts_within(value: object, patterns: Patterns) -> Iterator[_Draft]:
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting.extend(reversed(value))
        elif isinstance(value, dict):
            question = [json_text(value[key]) for key in value if patterns.question_key.fullmatch(key.strip())]
            answer = [json_text(value[key]) for key in value if patterns.answer_key.fullmatch(key.strip())]
            if question:
                answers: list[str] | list[None] = answer or [None] * len(question)
                yield from (_Draft(*map(_plain, pair)) for pair in zip(question, answers, strict=False))
            else:
                waiting.extend(reversed(value.values()))


def _plain(value: str | None) -> str | None:
    return None if value is None else without_markup(without_placeholders(visible(value)))


_CELL_BORDER = re.compile(r"(?<!\\)\|")
_CELL_EDGE = "*_~` \t"


def _table_drafts(text: str, patterns: Patterns) -> Iterator[_Draft]:
    """The pairs in Markdown tables, with a column of questions and one of answers, or with a row for each."""
    columns: tuple[int, int] | None = None
    question: str | None = None
    for line in text.split("\n"):
        cells = _cells(line)
        if len(cells) < 2:
            if line.strip():
                columns, question = None, None
        elif (header := _columns_of_pairs(cells, patterns)) is not None:
            columns = header
        elif columns is not None:
            if max(columns) < len(cells) and any(map(str.isalnum, "".join(cells))):
                yield _Draft(cells[columns[0]], cells[columns[1]])
        elif patterns.question_key.fullmatch(_key_of(cells[0])):
            question = cells[1]
        elif question is not None and patterns.answer_key.fullmatch(_key_of(cells[0])):
            yield _Draft(question, cells[1])
            question = None


def _cells(line: str) -> list[str]:
    if "|" not in line:
        return []
    cells = [cell.strip().replace("\\|", "|") for cell in _CELL_BORDER.split(line.strip())]
    return cells[1 if not cells[0] else 0 : -1 if not cells[-1] else None]


def _key_of(cell: str) -> str:
    return cell.strip(f"{_CELL_EDGE}:：")  # noqa: RUF001


def _columns_of_pairs(cells: Sequence[str], patterns: Patterns) -> tuple[int, int] | None:
    keys = [_key_of(cell) for cell in cells]
    questions = [index for index, key in enumerate(keys) if patterns.question_key.fullmatch(key)]
    answers = [index for index, key in enumerate(keys) if patterns.answer_key.fullmatch(key)]
    return (questions[0], answers[0]) if questions and answers else None

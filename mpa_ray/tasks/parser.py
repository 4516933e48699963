"""Parse question-answer pairs from a teacher's reply, in the many formats that teachers use.

Matching a pattern takes linear time: the repetitions in it are possessive or bounded, and no two repetitions can match
the same text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache


@dataclass(frozen=True)
class QuestionAnswer:
    """A pair as the teacher wrote it, without labels and markup."""

    question: str
    answer: str


class ReplyError(StrEnum):
    """Why a reply contains no pair."""

    EMPTY_REPLY = "empty_reply"
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

    Questions and answers are unchanged parts of the reply, including inner line breaks; only JSON strings are decoded.
    If some pairs are faulty, the others are returned. If all pairs are faulty, the first fault is returned.

    Args:
        reply: The teacher's reply.
        max_answer_words: A longer answer is a fault.
        question_labels: Words that mark a question, in addition to the built-in words of many languages.
        answer_labels: Words that mark an answer, in addition to the built-in words.
    """
    patterns = _patterns(tuple(question_labels), tuple(answer_labels))
    text = _without_reasoning(reply)
    if not text.strip():
        return ReplyError.EMPTY_REPLY
    drafts = list(_json_drafts(text, patterns)) or list(_labelled_drafts(text, patterns))
    checked = [_checked(draft, max_answer_words) for draft in drafts]
    pairs = [pair for pair in checked if isinstance(pair, QuestionAnswer)]
    if pairs:
        return pairs
    if _REFUSAL.match(text):
        return ReplyError.REFUSAL
    faults = [fault for fault in checked if isinstance(fault, ReplyError)]
    if faults:
        return faults[0]
    return ReplyError.NO_ANSWER if "?" in text or "？" in text else ReplyError.NO_QUESTION  # noqa: RUF001


def asks_for_pair(prompt: str, question_labels: Sequence[str] = (), answer_labels: Sequence[str] = ()) -> bool:
    """Whether a prompt shows a format that `parse_reply` reads: labels of a question and an answer, or JSON."""
    labels = _labels(prompt, _patterns(tuple(question_labels), tuple(answer_labels)))
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
    question, answer = _undecorated(draft.question), _undecorated(draft.answer)
    if not any(map(str.isalnum, question)) or _PLACEHOLDER.fullmatch(question):
        return ReplyError.EMPTY_QUESTION
    if not answer or _PLACEHOLDER.fullmatch(answer):
        return ReplyError.EMPTY_ANSWER
    if _REFUSAL.match(answer):
        return ReplyError.REFUSAL
    if len(answer.split()) > max_answer_words:
        return ReplyError.ANSWER_TOO_LONG
    return QuestionAnswer(question, answer)


# Label words of many languages. To support another language, add its words for "question" and "answer".
_QUESTION_WORDS = (
    "question|frage|pregunta|pergunta|domanda|vraag|fråga|spørgsmål|spørsmål|kysymys|pytanie|otázka|вопрос|питання|soru|"
    "câu hỏi|pertanyaan|ερώτηση|שאלה|السؤال|سؤال|प्रश्न|คำถาม|问题|問題|質問|问|問|질문"
)
_ANSWER_WORDS = (
    "answer|antwort|réponse|reponse|respuesta|resposta|risposta|antwoord|svar|vastaus|odpowiedź|odpověď|ответ|відповідь|"
    "cevap|yanıt|câu trả lời|jawaban|απάντηση|תשובה|الإجابة|إجابة|الجواب|उत्तर|คำตอบ|"  # noqa: RUF001
    "答案|回答|解答|答え|答|답변|정답|답"
)
_OTHER_WORDS = (
    "explanation|reasoning|rationale|reason|justification|note|confidence|type|category|difficulty|(?:qa )?pair|"
    "example|erklärung|begründung|hinweis|explication|remarque|explicación|nota|解释|说明|説明|理由"
)
_QUALIFIERS = "the|final|correct|short|concise|expected|possible|sample|example|generated|visual|my|your"

_SPACE = r"[ \t\u3000\xa0]"
_OPENING = r"[ \t\u3000\xa0>#*_\-–•·◦▪●\"'`“”‘’«「『{\[(【]"  # noqa: RUF001
_CLOSING = r"[*_\"'`“”‘’»」』\])】]"  # noqa: RUF001


@dataclass(frozen=True)
class _Patterns:
    """The patterns that recognise questions and answers, including those with a task's own labels."""

    label: re.Pattern[str]
    question_key: re.Pattern[str]
    answer_key: re.Pattern[str]


@cache
def _patterns(question_labels: tuple[str, ...], answer_labels: tuple[str, ...]) -> _Patterns:
    questions = "|".join([*map(re.escape, question_labels), _QUESTION_WORDS.replace(" ", "[ ]")])
    answers = "|".join([*map(re.escape, answer_labels), _ANSWER_WORDS.replace(" ", "[ ]")])
    label = re.compile(
        rf"""
        (?: ^ (?P<line_start>{_OPENING}*+ (?:\(?\d{{1,3}}[.):、]\)?+ {_OPENING}*+)?+)
          | (?<=[.?!。？！;；]) (?P<after_sentence>{_OPENING}*+)
          | (?<=\s) (?P<within>[*"'`“«]*+)
          | (?<=</question>) | (?<=</answer>)
        )
        (?: <(?P<question_tag>question)> | <(?P<answer_tag>answer)> | (?P<end_tag></(?:question|answer)>)
          | (?:(?:{_QUALIFIERS}){_SPACE}++){{0,3}}
            (?: (?P<question>{questions}) | (?P<answer>{answers})
              | (?P<other>{_OTHER_WORDS.replace(" ", "[ ]")}) | (?P<short_question>q) | (?P<short_answer>[ar]) )
            {_CLOSING}{{0,3}}+ {_SPACE}?+ (?:\(?(?:[#№]|no\.)?[ ]?\d{{1,3}}\)?[.]?)?+
            (?:{_SPACE}?\([^()\n:]{{1,40}}\))?+
            {_CLOSING}*+ {_SPACE}*+
            (?: (?P<colon>[:：﹕︰∶]) | (?P<dash>[-–—])(?=[ \t]) | (?P<heading>(?=\r?(?:\n|\Z))) )
        )
        """,  # noqa: RUF001
        re.IGNORECASE | re.MULTILINE | re.VERBOSE,
    )
    question_key = re.compile(rf"(?:{questions}|q)[ _]?\d{{0,3}}", re.IGNORECASE)
    return _Patterns(label, question_key, re.compile(rf"(?:{answers}|a)[ _]?\d{{0,3}}", re.IGNORECASE))


_END_TAG = re.compile(r"</(?:question|answer)>", re.IGNORECASE)
_OPTION_B = re.compile(r"^[ \t*(-]*+B[ \t]?[:.)]", re.MULTILINE)
_PARAGRAPH_END = re.compile(r"\n[ \t\r]*+(?:\n|```|---|\*\*\*|</)")
_PREAMBLE = re.compile(r"(?:sure|certainly|of course|okay|ok|here(?:['’]s| is| are))\b[^:\n?]{0,80}:", re.IGNORECASE)  # noqa: RUF001
_ITEM = re.compile(r"[ \t>#*•·-]*+(?:\(?\d{1,3}[.)][ \t]++)?+")
_PLACEHOLDER = re.compile(r"<[^<>]*+>|\.\.\.|…")
_REASONING_TAG = re.compile(r"<(?P<closing>/?)think(?:ing)?>", re.IGNORECASE)
_CANNOT = r"(?:cannot|can not|can['’]?t|could not|am (?:unable|not able) to|['’]?m (?:unable|not able) to|won['’]?t)"  # noqa: RUF001
_REFUSAL = re.compile(
    rf"""\s*+ (?:(?:unfortunately|sorry)[,.]?[ ](?:but[ ])?)?
    (?: i(?:['’]m|[ ]am)[ ](?:so[ ]|very[ ])?sorry\b(?=[,.]|[ ](?:but|i)\b) | i[ ]apologi[sz]e\b | as[ ]an[ ]ai\b
      | i[ ]?{_CANNOT.replace(" ", "[ ]")}[ ](?:see|view|read|tell|determine|identify|answer|help|assist|comply|provide
          |create|generate|write|process|make|fulfil|access|recogni[sz]e|do)
      | es[ ]tut[ ]mir[ ]leid | je[ ]suis[ ]désolé | lo[ ]siento[,.] | 抱歉 | 对不起 | 很抱歉 | 申し訳 | 죄송 )""",  # noqa: RUF001
    re.IGNORECASE | re.VERBOSE,
)


@dataclass(frozen=True)
class _Label:
    """The position of a label in the reply; `kind` is the name of its group in the label pattern."""

    kind: str
    start: int
    end: int

    def opens(self, part: str) -> bool:
        """Whether the named part, `question` or `answer`, follows the label."""
        return self.kind in (part, f"short_{part}", f"{part}_tag")


def _labelled_drafts(text: str, patterns: _Patterns) -> Iterator[_Draft]:
    labels = _labels(text, patterns)
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


def _labels(text: str, patterns: _Patterns) -> list[_Label]:
    matches = list(patterns.label.finditer(text))
    has_long_answer = any(match["answer"] or match["answer_tag"] for match in matches)
    has_options = _OPTION_B.search(text) is not None
    labels: list[_Label] = []
    for match in matches:
        kind = next(name for name in _KINDS if match[name])
        follows_short = bool(labels) and labels[-1].kind == "short_question"
        if kind == "short_answer" and (has_long_answer or has_options):
            continue
        if _is_label(match, kind, follows_short):
            labels.append(_Label(kind, match.start(), match.end()))
    return labels


_KINDS = ("question_tag", "answer_tag", "end_tag", "question", "answer", "other", "short_question", "short_answer")


def _is_label(match: re.Match[str], kind: str, follows_short: bool) -> bool:
    """Whether a match is a label, and not a word in a sentence such as "which is the right answer: A or B?"."""
    if kind.endswith("_tag"):
        return True
    at_line_start = match["line_start"] is not None
    is_short = kind.startswith("short_")
    if match["heading"] is not None:
        return at_line_start and not is_short and bool(set("#*") & set(match["line_start"]))
    if match["dash"]:
        return at_line_start and not is_short
    if at_line_start:
        return True
    if is_short:
        return match["after_sentence"] is not None and (kind == "short_question" or follows_short)
    if kind == "other":
        return False
    return match["after_sentence"] is not None or bool(match["within"]) or not match[kind][0].islower()


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
_MAX_NESTED_QUOTES = 4


def _undecorated(text: str) -> str:
    """Remove white space, asterisks, backticks and pairs of quotation marks around a text."""
    end_tag = _END_TAG.search(text)
    text = _without_block_quote(text[: end_tag.start()] if end_tag else text).strip("*` \t\r\n\u3000\xa0")
    for _ in range(_MAX_NESTED_QUOTES):
        # A comma or brace after the closing quotation mark comes from JSON that could not be decoded.
        quoted = text.rstrip(" \t\r\n,}]") if text[:1] in _QUOTES else text
        inner = quoted[1:-1]
        if len(quoted) < 2 or _QUOTES.get(quoted[0]) != quoted[-1] or quoted[0] in inner or quoted[-1] in inner:
            break
        text = inner.strip("*` \t\r\n\u3000\xa0")
    return text.strip()


def _without_block_quote(text: str) -> str:
    """Remove lines at the end that contain only the marks of a Markdown block quote."""
    kept = text.rstrip("> \t\r\n")
    line_end = text.find("\n", len(kept))
    return text if line_end < 0 else text[:line_end]


def _without_reasoning(reply: str) -> str:
    """Keep the text after the last `</think>` (whose start may be in the prompt) and before an unclosed `<think>`."""
    tags = list(_REASONING_TAG.finditer(reply))
    closings = [tag.end() for tag in tags if tag["closing"]]
    start = closings[-1] if closings else 0
    openings = [tag.start() for tag in tags if not tag["closing"] and tag.start() >= start]
    return reply[start : openings[0] if openings else len(reply)]


_JSON_START = re.compile(r"[{\[]\s*+[\"{]")
_MAX_JSON_STARTS = 16
"""How many possible starts of JSON are tried. The limit is needed, since each try may read to the end of the reply."""
_DECODER = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=str, strict=False)
"""Decodes numbers as text, so that the answer 3.50 does not become 3.5."""


def _json_drafts(text: str, patterns: _Patterns) -> Iterator[_Draft]:
    at = 0
    for _ in range(_MAX_JSON_STARTS):
        start = _JSON_START.search(text, at)
        if start is None:
            return
        try:
            value, at = _DECODER.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            at = start.start() + 1
        else:
            yield from _drafts_within(value, patterns)


def _drafts_within(value: object, patterns: _Patterns) -> Iterator[_Draft]:
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting.extend(reversed(value))
        elif isinstance(value, dict):
            question = [_json_text(value[key]) for key in value if patterns.question_key.fullmatch(key.strip())]
            answer = [_json_text(value[key]) for key in value if patterns.answer_key.fullmatch(key.strip())]
            if question:
                answers: list[str] | list[None] = answer or [None] * len(question)
                yield from (_Draft(*pair) for pair in zip(question, answers, strict=False))
            else:
                waiting.extend(reversed(value.values()))


def _json_text(value: object) -> str:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool):
        return str(value).lower()
    # A lone surrogate is legal in JSON but cannot be stored as UTF-8.
    return value.encode(errors="ignore").decode() if isinstance(value, str) else ""

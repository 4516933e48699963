"""Find the labels of questions and answers in a teacher's reply, in many languages.

Matching a pattern takes linear time: the repetitions in it are possessive or bounded, and no two repetitions can match
the same text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache

# Label words of many languages. To support another language, add its words for "question" and "answer".
_QUESTION_WORDS = (
    "question|ques|frage|pregunta|pergunta|domanda|vraag|fråga|spørgsmål|spørsmål|kysymys|pytanie|otázka|вопрос|питання|soru|"
    "câu hỏi|pertanyaan|ερώτηση|שאלה|السؤال|سؤال|प्रश्न|คำถาม|问题|問題|質問|问|問|질문"
)
_ANSWER_WORDS = (
    "answer|ans|antwort|réponse|reponse|respuesta|resposta|risposta|antwoord|svar|vastaus|odpowiedź|odpověď|ответ|відповідь|"
    "cevap|yanıt|câu trả lời|jawaban|απάντηση|תשובה|الإجابة|إجابة|الجواب|उत्तर|คำตอบ|"  # noqa: RUF001
    "答案|回答|解答|答え|答|답변|정답|답"
)
_OTHER_WORDS = (
    "explanation|reasoning|rationale|reason|justification|note|confidence|type|category|difficulty|(?:qa )?pair|"
    "example|user|human|assistant|instruction|erklärung|begründung|hinweis|explication|remarque|explicación|nota|解释|说明|"
    "説明|理由"
)
_QUALIFIERS = "the|final|correct|short|concise|expected|possible|sample|example|generated|visual|my|your"

_SPACE = r"[ \t]"
_SIGNS = "\u200c\u200d\u20e3\u2190-\u21ff\u2300-\u23ff\u2500-\u27bf\u2b00-\u2bff\ufe0f\U0001f000-\U0001faff"
"""Arrows, boxes, ticks and emoji, which some models write before labels; and joiners."""
_OPENING = rf"[ \t>#*_~=|\-–•·\"'`“”‘’«「『{{\[(【{_SIGNS}]"  # noqa: RUF001
_CLOSING = r"[*_~=\"'`“”‘’»」』\])】]"  # noqa: RUF001


@dataclass(frozen=True)
class Patterns:
    """The patterns that recognise questions and answers, including those with a task's own labels."""

    label: re.Pattern[str]
    question_key: re.Pattern[str]
    answer_key: re.Pattern[str]


@cache
def patterns_of(question_labels: tuple[str, ...], answer_labels: tuple[str, ...]) -> Patterns:
    questions = "|".join([*map(re.escape, question_labels), _QUESTION_WORDS.replace(" ", "[ ]")])
    answers = "|".join([*map(re.escape, answer_labels), _ANSWER_WORDS.replace(" ", "[ ]")])
    label = re.compile(
        rf"""
        (?: ^ (?P<line_start>{_OPENING}*+ (?:\(?\d{{1,3}}(?:[.):、]|\ufe0f?\u20e3)\)?+ {_OPENING}*+)?+)
          | (?<=[.?!。？！;；]) (?P<after_sentence>{_OPENING}*+)
          | (?<=\s) (?P<within>[*_~"'`“«]*+)
          | (?<=</question>) | (?<=</answer>) | (?<=<answer>) | (?<=<\|begin_of_box\|>)
        )
        (?: <(?P<question_tag>question)> | <(?P<answer_tag>answer)> | (?P<end_tag></(?:question|answer)>)
          | (?:(?:{_QUALIFIERS}){_SPACE}++){{0,3}}
            (?: (?P<question>{questions}) | (?P<answer>{answers})
              | (?P<other>{_OTHER_WORDS.replace(" ", "[ ]")}) | (?P<short_question>q) | (?P<short_answer>[ar]) )
            (?P<number>{_SPACE}?+\d{{1,3}})?+
            (?: (?P<dot>[.)]{_CLOSING}*+)(?=[ \t])
              | {_CLOSING}{{0,3}}+ {_SPACE}?+ (?:\(?(?:[#№]|no\.)?[ ]?\d{{1,3}}\)?[.]?)?+
                (?:{_SPACE}?\([^()\n:]{{1,40}}\))?+
                {_CLOSING}*+ {_SPACE}*+
                (?: (?P<colon>[:：﹕︰∶]) | (?P<dash>[-–—])(?=[ \t]) | (?P<heading>(?=\n|\Z)) )
            )
        )
        """,  # noqa: RUF001
        re.IGNORECASE | re.MULTILINE | re.VERBOSE,
    )
    question_key = re.compile(rf"(?:{questions}|q)[ _]?\d{{0,3}}", re.IGNORECASE)
    return Patterns(label, question_key, re.compile(rf"(?:{answers}|a)[ _]?\d{{0,3}}", re.IGNORECASE))


_OPTION_B = re.compile(r"^[ \t*(-]*+B[ \t]?[:.)]", re.MULTILINE)


@dataclass(frozen=True)
class Label:
    """The position of a label in the reply; `kind` is the name of its group in the label pattern."""

    kind: str
    start: int
    end: int

    def opens(self, part: str) -> bool:
        """Whether the named part, `question` or `answer`, follows the label."""
        return self.kind in (part, f"short_{part}", f"{part}_tag")


def find_labels(text: str, patterns: Patterns) -> list[Label]:
    matches = list(patterns.label.finditer(text))
    has_long_answer = any(match["answer"] or match["answer_tag"] for match in matches)
    has_options = _OPTION_B.search(text) is not None
    labels: list[Label] = []
    for match in matches:
        kind = next(name for name in _KINDS if match[name])
        follows_short = bool(labels) and labels[-1].kind == "short_question"
        if kind == "short_answer" and (has_long_answer or has_options):
            continue
        if not _is_label(match, kind, follows_short):
            continue
        label = Label(kind, match.start(), match.end())
        if labels and _only_introduces(labels[-1], label, text):
            label = replace(label, start=labels.pop().start)
        labels.append(label)
    return labels


def _only_introduces(label: Label, following: Label, text: str) -> bool:
    """Whether a label belongs to the next one, as in `Answer: <answer>` and `<answer>Question:`."""
    if text[label.end : following.start].strip():
        return False
    encloses_pair = label.kind == "answer_tag" and following.opens("question")
    return encloses_pair or any(label.opens(part) and following.opens(part) for part in ("question", "answer"))


_ABBREVIATIONS = ("ques", "ans")
"""Labels that are no headings, since they may also be the beginning of a longer word that was cut off."""
_KINDS = ("question_tag", "answer_tag", "end_tag", "question", "answer", "other", "short_question", "short_answer")


def _is_label(match: re.Match[str], kind: str, follows_short: bool) -> bool:
    """Whether a match is a label, and not a word in a sentence such as "which is the right answer: A or B?"."""
    if kind.endswith("_tag"):
        return True
    at_line_start = match["line_start"] is not None
    is_short = kind.startswith("short_")
    if match["heading"] is not None:
        is_word = not is_short and match[kind].lower() not in _ABBREVIATIONS
        return at_line_start and is_word and bool(set("#*") & set(match["line_start"]))
    if match["dash"]:
        return at_line_start and not is_short
    if match["dot"]:
        is_numbered = match["number"] is not None and kind in ("question", "answer")
        return at_line_start and (is_numbered or kind == "short_question" or (kind == "short_answer" and follows_short))
    if at_line_start:
        return True
    if is_short:
        return match["after_sentence"] is not None and (kind == "short_question" or follows_short)
    if kind == "other":
        return False
    return match["after_sentence"] is not None or bool(match["within"]) or not match[kind][0].islower()

"""Take reasoning, and the marks around a final answer, off a model's reply.

Matching the patterns takes linear time.
"""

from __future__ import annotations

import re

_NAMES = (
    "think|thinking|thought|thoughts|reasoning|reflection|analysis|scratchpad|inner_monologue|(?-i:SUMMARY|CAPTION)"
)
_PREFIX = r"(?:(?:mm|seed)[:]|ifm\||longcat_)?"
_SUFFIX = r"(?:_faster|_fast|:\w{1,20})?"

_TAG = re.compile(
    rf"""
    (?P<opening>
        <{_PREFIX}(?:{_NAMES}){_SUFFIX}>       # Qwen3, GLM-4.1V, MiMo-VL, LLaVA-CoT and many others
      | ◁think▷                                # Kimi-VL
      | \[think\]                              # Magistral
      | <\|START_THINKING\|>                   # Command A
      | <\|begin_of_thought\|>                 # Sky-T1
      | <\|open\|>[ ]?think[ ]?<\|sep\|>       # Kimi K3
      | <\|channel>                            # Gemma 4
      | <unused94>                             # MedGemma
      | <\|channel\|>(?:analysis|commentary)<\|message\|>
      | (?:^|(?<=\n))[ ]*+here(?:['’]s|[ ]is)[ ]my[ ]thought[ ]process:    # Granite
    ) | (?P<closing>
        </{_PREFIX}(?:{_NAMES}){_SUFFIX}>
      | ◁/think▷
      | \[/think\]
      | <\|END_THINKING\|>
      | <\|end_of_thought\|>
      | <\|close\|>[ ]?think[ ]?<\|sep\|>
      | <channel\|>
      | <unused95>
      | <\|channel\|>final<\|message\|>
      | (?:^|(?<=\n))[ ]*+here(?:['’]s|[ ]is)[ ]my[ ]response:
    )
    """,  # noqa: RUF001
    re.IGNORECASE | re.VERBOSE,
)
_LABEL = re.compile(r"\s*+thought\n")
"""The name of the channel, which Gemma 4 may write even if it does not reason."""

_MARK = re.compile(
    r"""
    (?P<opening> <\|begin_of_box\|> | <\|begin_of_solution\|> | <(?:final_?)?answer> | <conclusion> | <response> )
    | (?P<closing> <\|end_of_box\|> | <\|end_of_solution\|> | </(?:final_?)?answer> | </conclusion> | </response> )
    """,
    re.IGNORECASE | re.VERBOSE,
)
_LATEX_BOX = re.compile(r"\\(?:boxed|fbox)[ ]?\{")
_LATEX_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf)\{([^{}]*+)\}")
_CLOSING_OF = {"◁think▷": "◁/think▷", "[think]": "[/think]", "<|channel>": "<channel|>", "<unused94>": "<unused95>"}
_WORDS_OF_CLOSING = (("START_", "END_"), ("begin_of", "end_of"), ("open|", "close|"), ("thought process", "response"))


def without_reasoning(reply: str) -> str | None:
    """Return the part of a reply that is not reasoning, unchanged; None if a reply with reasoning has no other part.

    If the prompt opened the reasoning, the reply has only a closing tag, and all text before the tag is reasoning. An
    opening tag without a closing one makes the rest of the reply reasoning. Of several parts, the last one is returned.
    """
    parts: list[str] = []
    start, is_open = 0, False
    for tag in _TAG.finditer(reply):
        if tag["opening"] is not None:
            if not is_open:
                parts.append(reply[start : tag.start()])
            is_open = True
        else:
            if not is_open:
                parts.clear()
            start, is_open = tag.end(), False
    if start == 0 and not parts and not is_open:
        label = _LABEL.match(reply)
        return reply[label.end() :] if label else reply
    if not is_open:
        parts.append(reply[start:])
    return next((part for part in reversed(parts) if part.strip()), None)


def final_answer(reply: str) -> str | None:
    """Return the answer in a reply to a question: without reasoning, and without the marks of a final answer.

    The marks are those with which some model families enclose their answer, such as `<|begin_of_box|>`, `<answer>` or
    `\\boxed{}`. A reply without reasoning and marks is returned unchanged.

    Returns:
        The answer; None if the whole reply is reasoning.
    """
    text = without_reasoning(reply)
    if text is None:
        return None
    answer = without_marks(text)
    return answer if answer == reply else answer.strip()


def without_marks(text: str) -> str:
    """Return the text within the last mark of a final answer; the text itself if it has no such mark."""
    return _unboxed(_within_last_mark(text))


def opened_reasoning(prompt: str) -> str:
    """Return the tag at the end of a prompt that opens the reasoning of the reply; "" if there is none."""
    tag = _last_tag(prompt)
    return tag["opening"] or "" if tag is not None else ""


def closes_reasoning(prompt: str) -> bool:
    """Whether a prompt ends with the tag that closes the reasoning, so that the reply is only an answer."""
    tag = _last_tag(prompt)
    return tag is not None and tag["closing"] is not None


def _last_tag(prompt: str) -> re.Match[str] | None:
    """The tag at the end of a prompt, apart from white space."""
    ending = prompt.rstrip()[-_MAX_TAG_LENGTH:]
    return next((tag for tag in _TAG.finditer(ending) if tag.end() == len(ending)), None)


def closing_of(opening: str) -> str:
    """Return the tag that closes the reasoning that `opening` opens."""
    if opening.lower() in _CLOSING_OF:
        return _CLOSING_OF[opening.lower()]
    for old, new in _WORDS_OF_CLOSING:
        if old in opening:
            return opening.replace(old, new)
    if opening.startswith("<|channel|>"):
        return "<|channel|>final<|message|>"
    return f"</{opening[1:]}"


def mentions_reasoning(template: str) -> bool:
    """Whether a chat template contains a reasoning tag, so that replies to its prompts may contain reasoning."""
    return _TAG.search(template) is not None


def is_reply_tag(token: str) -> bool:
    """Whether a token encloses reasoning or a final answer in replies."""
    return _TAG.fullmatch(token) is not None or _MARK.fullmatch(token) is not None


_MAX_TAG_LENGTH = 64
"""In characters. No reasoning tag is longer."""


def _within_last_mark(text: str) -> str:
    marks = list(_MARK.finditer(text))
    if not marks:
        return text
    last = next((index for index in reversed(range(len(marks))) if marks[index]["opening"] is not None), -1)
    start = marks[last].end() if last >= 0 else 0
    end = marks[last + 1].start() if last + 1 < len(marks) else len(text)
    inner = text[start:end]
    return inner if inner.strip() else text


def _unboxed(text: str) -> str:
    """The content of the last LaTeX box; the text itself if there is no box, or an empty one."""
    boxes = list(_LATEX_BOX.finditer(text))
    if not boxes:
        return text
    start = boxes[-1].end()
    inner = text[start : _closing_brace(text, start)].strip()
    plain = _LATEX_TEXT.sub(r"\1", inner).strip()
    return plain or text


def _closing_brace(text: str, start: int) -> int:
    """The position of the brace that closes the one before `start`; the end of the text if there is none."""
    depth = 1
    for position in range(start, len(text)):
        if text[position] == "{" and text[position - 1] != "\\":
            depth += 1
        elif text[position] == "}" and text[position - 1] != "\\":
            depth -= 1
            if depth == 0:
                return position
    return len(text)

"""Turn a teacher's reply into plain text: without markup, invisible characters, and the turns after the reply.

All functions take linear time.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterator
from itertools import groupby

_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f\x80-\x84\x86-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff]"
)
"""Control characters, byte order marks, zero-width spaces, direction marks and soft hyphens. The two joiners are not
included, because words of Persian and of Indian languages contain them."""
_LINE_END = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_SPACE = re.compile("[\xa0\u1680\u2000-\u200a\u202f\u205f\u3000]")

_PLACEHOLDER = re.compile(
    r"""
      </?(?:image|img|video)(?:[ _-]?\d{1,3})?> | <img\s[^<>]{0,500}>
    | <\|/?(?:image|img|video|vision|media)(?:_[a-z0-9]{1,12}){0,2}\|>
    | <IMG_CONTEXT> | <image_soft_token> | <(?:start|end)_of_image> | <fake_token_around_image> | <global-img>
    | <ImageHere> | <imgpad> | <\|placeholder\d{0,3}\|> | \[IMG(?:_(?:BREAK|END))?\]
    | !\[[^\[\]\n]{0,200}\]\([^()\n]{0,500}\)
    """,
    re.IGNORECASE | re.VERBOSE,
)
_MAX_NESTED = 4
_ROLES = r"(?:user|assistant|model|system|human)"
_TURN = re.compile(
    rf"""
      <\|(?!(?:begin|end)_of_(?:box|solution)\|)[a-z_]{{1,30}}\|> | <｜[^<>｜\n]{{1,30}}｜>
    | </?(?:start_of_turn|end_of_turn|end_of_utterance|bos|eos)> | <turn\|> | <\|turn> | \[/?INST\]
    | </s>(?=\s*+(?:\Z|<s>)|[ \t]*+\n) | \A\s*+<s>
    | \n{_ROLES}[ \t]*+(?=\n)
    """,  # noqa: RUF001
    re.VERBOSE,
)
_ROLE_LINE = re.compile(rf"\s*+{_ROLES}[ \t]*+(?:\n|\Z)")

_TAG = re.compile(r"<(?P<slash>/?)(?P<name>[a-z][a-z0-9]{0,11})(?:\s[^<>]{0,500})?/?>", re.IGNORECASE)
_HEADINGS = frozenset(f"h{level}" for level in range(1, 7))
_BLOCKS = _HEADINGS | {
    *("p", "div", "ul", "ol", "dl", "dt", "dd", "table", "thead", "tbody", "tfoot", "section", "article"),
    *("blockquote", "pre", "details", "summary", "center"),
}
_LINES = frozenset(("br", "hr", "li", "tr"))
_CELLS = frozenset(("td", "th"))
_BOLD = frozenset(("b", "strong"))
_INLINE = frozenset(
    (
        *("i", "em", "u", "s", "del", "ins", "mark", "small", "big", "span", "font", "code", "tt", "kbd", "samp"),
        *("q", "cite", "a", "sub", "sup", "label"),
    )
)
_MARKUP = _BLOCKS | _LINES | _CELLS | _BOLD | _INLINE
_LINE_BEGINS = re.compile(r"(?:\A|\n)[ \t>*#|-]{0,8}\Z")
_LINE_ENDS = re.compile(r"[ \t*|]{0,8}(?:\n|\Z)")
_ENTITY = re.compile(r"&(?:#\d{1,7}|#x[0-9a-f]{1,6}|[a-z][a-z0-9]{1,31});", re.IGNORECASE)


def visible(text: str) -> str:
    """Remove invisible characters, and write every kind of space and of line end in the same way."""
    return _SPACE.sub(" ", _LINE_END.sub("\n", _INVISIBLE.sub("", text)))


def without_placeholders(text: str) -> str:
    """Remove placeholders of images and videos, since a prompt may hold only the placeholder of its own image."""
    for _ in range(_MAX_NESTED):
        text, num_removed = _PLACEHOLDER.subn("", text)
        if not num_removed:
            return text
    # No model nests placeholders this deeply.
    return text.replace("<", "")


def first_turn(text: str) -> str:
    """Remove the tokens of turns, and the turns of a dialogue that the model has invented after its reply."""
    start = 0
    for turn in (*_TURN.finditer(text), None):
        part = text[start : turn.start() if turn else len(text)]
        role = _ROLE_LINE.match(part) if start else None
        if role is not None:
            part = part[role.end() :]
        if part.strip():
            return part
        start = turn.end() if turn else len(text)
    return ""


def without_markup(text: str) -> str:
    """Decode HTML's entities, and replace its tags by line breaks, Markdown, or nothing.

    A tag without a counterpart is a part of the text, as in "What does <b> mean?", unless it begins or ends a line.
    """
    if "<" in text:
        text = "".join(_replaced_tags(text))
    return with_decoded_entities(text)


def with_decoded_entities(text: str) -> str:
    """Decode HTML's entities. An ampersand without a semicolon, as in a URL, is a part of the text."""
    return _ENTITY.sub(lambda entity: html.unescape(entity[0]), text) if "&" in text else text


def is_tag(text: str) -> bool:
    """Whether the text is a single tag of HTML."""
    tag = _TAG.fullmatch(text)
    return tag is not None and tag["name"].lower() in _MARKUP


def _replaced_tags(text: str) -> Iterator[str]:
    tags = [tag for tag in _TAG.finditer(text) if tag["name"].lower() in _MARKUP]
    paired = _paired(tags)
    start = 0
    for tag in tags:
        name = tag["name"].lower()
        if name in _LINES | _CELLS or tag in paired or _is_at_line_edge(text, tag):
            yield text[start : tag.start()]
            yield _replacement(name, is_opening=not tag["slash"])
            start = tag.end()
    yield text[start:]


def _paired(tags: list[re.Match[str]]) -> set[re.Match[str]]:
    """The opening tags that have a closing tag, and their closing tags."""
    paired: set[re.Match[str]] = set()
    unclosed: dict[str, list[re.Match[str]]] = {}
    for tag in tags:
        waiting = unclosed.setdefault(tag["name"].lower(), [])
        if not tag["slash"]:
            waiting.append(tag)
        elif waiting:
            paired |= {tag, waiting.pop()}
    return paired


def _is_at_line_edge(text: str, tag: re.Match[str]) -> bool:
    before, after = text[max(0, tag.start() - 9) : tag.start()], text[tag.end() : tag.end() + 9]
    begins = _LINE_BEGINS.search(before) is not None and (tag.start() < 9 or "\n" in before)
    ends = _LINE_ENDS.match(after) is not None and (tag.end() + 9 > len(text) or "\n" in after)
    return begins or ends


def _replacement(name: str, is_opening: bool) -> str:
    if name in _HEADINGS:
        return "\n# " if is_opening else "\n"
    if name in _BLOCKS or name in _LINES:
        return "\n"
    if name in _CELLS:
        return " | " if is_opening else ""
    return "**" if name in _BOLD else ""


_NO_SPACES = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u303f\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uaa60-\uaa7f"
    "\uf900-\ufaff\uff66-\uff9d\U00020000-\U0003ffff]"
)
"""The scripts that put no spaces between words: Thai, Lao, Burmese, Khmer, Chinese and Japanese."""
_EXTENDS = frozenset("\u0e33\u0eb3\uff9e\uff9f\u200c\u200d")
"""Letters that belong to the character before them, although Unicode does not count them as marks."""


def num_words(text: str) -> int:
    """The number of words. In scripts without spaces between words, every character (grapheme) counts as a word."""
    return sum(map(_num_words, text.split()))


def _num_words(chunk: str) -> int:
    if _NO_SPACES.search(chunk) is None:
        return 1
    # Marks belong to the character before them, so they neither count nor separate.
    graphemes = [c for c in chunk if unicodedata.category(c)[0] not in "MP" and c not in _EXTENDS]
    runs = groupby(graphemes, key=lambda c: _NO_SPACES.match(c) is not None)
    return sum(len(list(run)) if is_unspaced else 1 for is_unspaced, run in runs) or 1

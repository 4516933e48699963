"""When one answer agrees with another, for the parity check; evaluation has metrics of its own."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

Matcher = Callable[[str, str], bool]
"""Takes the reference and the prediction, in this order."""

_MEANINGFUL = frozenset("%‰#&@′″")  # noqa: RUF001
"""Unicode calls these punctuation, but they are part of an answer: 5% is not 5, C# is not C."""


def exact(reference: str, prediction: str) -> bool:
    """Equal once written alike; what the paper says (arXiv 2509.16633), and the default.

    Case, Unicode form, the amount of white space and the punctuation around the text do not count; everything inside
    does, and so do a sign and a decimal point: "3.5" is not "35", "-5" is not "5". Text of nothing but punctuation
    matches nothing.
    """
    wanted = normalise(reference)
    return bool(wanted) and wanted == normalise(prediction)


def containment(reference: str | None, prediction: str | None) -> bool:
    """The reference occurs anywhere in the prediction; what the paper's released scripts do (vl2g/MPA, 4e69e39).

    Both lose their case, white space and everything outside `\\w` first; None counts as "". So "no" matches "Nokia",
    "5" matches "35", and an empty reference matches everything. For comparison with the release, not for new work.
    """
    return _squeezed(reference) in _squeezed(prediction)


MATCHERS: dict[str, Matcher] = {"exact": exact, "containment": containment}


def normalise(text: str) -> str:
    """NFKC, case folded, inner white space single, no white space or punctuation at the ends."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    spaced = " ".join(folded.split())
    start, end = 0, len(spaced)
    while start < end and _is_leading_noise(spaced, start):
        start += 1
    while end > start and _is_trailing_noise(spaced, end - 1):
        end -= 1
    return spaced[start:end]


def _is_leading_noise(text: str, at: int) -> bool:
    follower = text[at + 1 : at + 2]
    if unicodedata.category(text[at]) == "Pd":
        return not follower.strip()
    if text[at] in ".,":
        return not follower.isalnum()
    return _is_noise(text[at])


def _is_trailing_noise(text: str, at: int) -> bool:
    if unicodedata.category(text[at]) == "Pd":
        return not text[:at] or text[at - 1].isspace()
    return _is_noise(text[at])


def _is_noise(character: str) -> bool:
    is_punctuation = unicodedata.category(character).startswith("P") and character not in _MEANINGFUL
    return is_punctuation or character.isspace()


def _squeezed(text: str | None) -> str:
    return re.sub(r"\W", "", (text or "").lower())

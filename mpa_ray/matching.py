"""Matchers, which decide for the verdicts whether two answers agree. Evaluation uses `mpa_ray.metrics` instead."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from mpa_ray.config import AnlsMatch, AnyOfMatch, MatcherConfig, NumericMatch
from mpa_ray.metrics import anls, text, vqa

Matcher = Callable[[str, str], bool]
"""Takes the reference and the prediction, in this order, and returns whether they agree."""

_MAX_LABEL_LENGTH = 100
"""In characters, without the digest. File systems allow names of 255 bytes, so this leaves room for the digest and for
an ending that the file may have while it is written."""

_MEANINGFUL = frozenset("%‰#&@′″")  # noqa: RUF001
"""Characters that Unicode classifies as punctuation but that change an answer: 5% is not 5, and C# is not C."""


def exact(reference: str, prediction: str) -> bool:
    """Whether the texts are equal after normalisation: the paper's rule (arXiv 2509.16633), and the default.

    Ignores case, Unicode form, the amount of white space, and punctuation around the text. Punctuation inside the text
    counts, as do a sign and a decimal point: "3.5" is not "35", and "-5" is not "5". Text that is only punctuation
    matches nothing.
    """
    expected = normalise(reference)
    return bool(expected) and expected == normalise(prediction)


def containment(reference: str | None, prediction: str | None) -> bool:
    """Whether the prediction contains the reference: the rule of the paper's released scripts (vl2g/MPA, 4e69e39).

    Ignores case, white space and all characters outside `\\w`; None counts as "". So "no" matches "Nokia", "5" matches
    "35", and an empty reference matches everything. Use it to compare with the release, not for new work.
    """
    return text.squeezed(reference or "") in text.squeezed(prediction or "")


def vqa_normalized(reference: str, prediction: str) -> bool:
    """Whether the texts are equal after the normalisation of VQA accuracy.

    This normalisation removes articles and punctuation, and replaces "two" with "2". It also removes signs, so that
    "-5" equals "5". Text that is only articles and punctuation matches nothing.
    """
    expected = vqa.normalise(reference)
    return bool(expected) and expected == vqa.normalise(prediction)


@dataclass(frozen=True)
class Numeric:
    """Two numbers agree if their units are equal and they differ by at most `tolerance`.

    Texts that are not both numbers are compared by `exact`.
    """

    tolerance: float
    """The largest allowed difference, as a share of the reference."""

    def __call__(self, reference: str, prediction: str) -> bool:
        expected, predicted = quantity(reference), quantity(prediction)
        if expected is None or predicted is None:
            return exact(reference, prediction)
        distance = abs(predicted.value - expected.value)
        return expected.unit == predicted.unit and distance <= self.tolerance * abs(expected.value)


@dataclass(frozen=True)
class Similar:
    """Two texts agree if their normalised Levenshtein similarity (ANLS) is at least a threshold."""

    threshold: float

    def __call__(self, reference: str, prediction: str) -> bool:
        return bool(reference.strip()) and anls.anls(prediction, [reference], self.threshold) > 0


@dataclass(frozen=True)
class AnyOf:
    """Two texts agree if they agree according to at least one of several matchers."""

    matchers: tuple[Matcher, ...]

    def __call__(self, reference: str, prediction: str) -> bool:
        return any(matches(reference, prediction) for matches in self.matchers)


MATCHERS: dict[str, Matcher] = {"exact": exact, "containment": containment, "vqa_normalized": vqa_normalized}
"""The matchers without settings, by name."""


def matcher_of(config: MatcherConfig) -> Matcher:
    """The configured matcher; it can be pickled."""
    match config:
        case NumericMatch():
            return Numeric(config.tolerance)
        case AnlsMatch():
            return Similar(config.threshold)
        case AnyOfMatch():
            return AnyOf(tuple(matcher_of(inner) for inner in config.of))
        case _:
            return MATCHERS[config.kind]


def matcher_label(config: MatcherConfig) -> str:
    """A matcher's name with its setting, such as `numeric-0.05`, for use in file names.

    Different matchers have different labels. A long label is cut, and ends with a digest of the whole label.
    """
    label = _whole_label(config)
    if len(label) <= _MAX_LABEL_LENGTH:
        return label
    return f"{label[:_MAX_LABEL_LENGTH]}-{hashlib.sha256(label.encode()).hexdigest()[:16]}"


def _whole_label(config: MatcherConfig) -> str:
    match config:
        case NumericMatch():
            return f"numeric-{_digits(config.tolerance)}"
        case AnlsMatch():
            return f"anls-{_digits(config.threshold)}"
        case AnyOfMatch():
            return "-or-".join(map(_whole_label, config.of))
        case _:
            return config.kind


def _digits(number: float) -> str:
    """A number as text with all its digits, but without a final `.0`."""
    return short if float(short := f"{number:g}") == number else repr(number)


@dataclass(frozen=True)
class Quantity:
    """A number and its unit."""

    value: float
    unit: str
    """A sign such as `%` or `$`; empty if the number has none."""


_QUANTITY = re.compile(
    r"(?P<sign>[-+\u2212]?)(?P<before>[$€£¥]?) ?(?P<digits>\d{1,3}(?:,\d{3})+|\d+)?(?P<decimals>\.\d+)?"
    r" ?(?P<after>[%‰°$€£¥]?)",
    re.ASCII,
)


def quantity(text: str) -> Quantity | None:
    """Parse a text that is one number, with or without thousands separators and a unit sign; None for other text."""
    match = _QUANTITY.fullmatch(normalise(text))
    if match is None or not (match["digits"] or match["decimals"]):
        return None
    value = float(f"{(match['digits'] or '0').replace(',', '')}{match['decimals'] or ''}")
    return Quantity(-value if match["sign"] in ("-", "\u2212") else value, match["before"] or match["after"])


def normalise(text: str) -> str:
    """Apply NFKC and case folding, collapse white space, and strip white space and punctuation from both ends."""
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

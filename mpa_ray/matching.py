"""When one answer agrees with another, for the parity check; evaluation has metrics of its own."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from mpa_ray.config import AnlsMatch, AnyOfMatch, MatcherConfig, NumericMatch
from mpa_ray.metrics import anls, text, vqa

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
    return text.squeezed(reference or "") in text.squeezed(prediction or "")


def vqa_normalized(reference: str, prediction: str) -> bool:
    """Equal once both are written as VQA accuracy writes them: no articles and punctuation, "two" is "2".

    A sign is punctuation there: "-5" is "5". Text that is nothing but articles and punctuation matches nothing.
    """
    wanted = vqa.normalise(reference)
    return bool(wanted) and wanted == vqa.normalise(prediction)


@dataclass(frozen=True)
class Numeric:
    """Numbers of the same unit that differ by at most a share of the reference; other text as `exact`."""

    tolerance: float

    def __call__(self, reference: str, prediction: str) -> bool:
        wanted, told = quantity(reference), quantity(prediction)
        if wanted is None or told is None:
            return exact(reference, prediction)
        return wanted.unit == told.unit and abs(told.value - wanted.value) <= self.tolerance * abs(wanted.value)


@dataclass(frozen=True)
class Similar:
    """Average normalised Levenshtein similarity of at least a threshold."""

    threshold: float

    def __call__(self, reference: str, prediction: str) -> bool:
        return bool(reference.strip()) and anls.anls(prediction, [reference], self.threshold) > 0


@dataclass(frozen=True)
class AnyOf:
    """Agreement by at least one of several matchers."""

    matchers: tuple[Matcher, ...]

    def __call__(self, reference: str, prediction: str) -> bool:
        return any(matches(reference, prediction) for matches in self.matchers)


MATCHERS: dict[str, Matcher] = {"exact": exact, "containment": containment, "vqa_normalized": vqa_normalized}
"""Those that have no settings."""


def matcher_of(config: MatcherConfig) -> Matcher:
    """The matcher that a configuration describes; it survives pickling."""
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
    """A matcher's name with its setting, fit for a file's name: `numeric-0.05`."""
    match config:
        case NumericMatch():
            return f"numeric-{config.tolerance:g}"
        case AnlsMatch():
            return f"anls-{config.threshold:g}"
        case AnyOfMatch():
            return "-or-".join(matcher_label(inner) for inner in config.of)
        case _:
            return config.kind


@dataclass(frozen=True)
class Quantity:
    """A number and what it counts, such as `%` or `$`; empty where nothing is said."""

    value: float
    unit: str


_QUANTITY = re.compile(
    r"(?P<sign>[-+\u2212]?)(?P<before>[$€£¥]?) ?(?P<digits>\d{1,3}(?:,\d{3})+|\d+)?(?P<decimals>\.\d+)?"
    r" ?(?P<after>[%‰°$€£¥]?)",
    re.ASCII,
)


def quantity(text: str) -> Quantity | None:
    """What a text says where it is one number, with thousands separators and a unit sign perhaps; else None."""
    found = _QUANTITY.fullmatch(normalise(text))
    if found is None or not (found["digits"] or found["decimals"]):
        return None
    value = float(f"{(found['digits'] or '0').replace(',', '')}{found['decimals'] or ''}")
    return Quantity(-value if found["sign"] in ("-", "\u2212") else value, found["before"] or found["after"])


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

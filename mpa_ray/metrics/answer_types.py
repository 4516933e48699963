"""Classify answers by simple rules, and measure how far two sets of answers differ in their types."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

TYPES = (
    "yes_no",
    "number",
    "colour",
    "time_or_date",
    "person_place_organisation",
    "single_word",
    "phrase",
    "other",
)
"""The types of answers. `other` is the type of a text that has neither letters nor digits."""

_YES_NO = {"yes", "no"}
_COLOURS = {
    "red",
    "green",
    "blue",
    "yellow",
    "orange",
    "purple",
    "pink",
    "brown",
    "black",
    "white",
    "gray",
    "grey",
    "gold",
    "silver",
    "beige",
    "tan",
    "teal",
    "turquoise",
    "maroon",
    "navy",
    "violet",
    "cyan",
    "magenta",
    "cream",
    "golden",
}
_SHADES = {"light", "dark", "bright", "pale", "deep"}
_NUMBER_WORDS = {
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
    "thirty",
    "forty",
    "fifty",
    "sixty",
    "seventy",
    "eighty",
    "ninety",
    "hundred",
    "thousand",
    "million",
    "billion",
    "trillion",
    "dozen",
    "half",
}
_MONTHS = (
    "jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|"
    "nov(?:ember)?|dec(?:ember)?"
)
_DAYS = "(?:mon|tues|wednes|thurs|fri|satur|sun)days?"
_NUMBER = re.compile(r"[-+\u2212]?\s?[$€£¥#]?\s?\d[\d,]*(?:\.\d+)?\s?(?:%|°[cf]?|[$€£¥]|percent|st|nd|rd|th)?|\.\d+%?")
_TIME_OR_DATE = re.compile(
    rf"\d{{1,2}}[:.]\d{{2}}(?::\d{{2}})?\s?(?:[ap]\.?m\.?)?|\d{{1,2}}\s?[ap]\.?m\.?|\d{{1,2}}\s?o'?clock|noon|midnight"
    r"|\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/]\d{1,2}[-/]\d{2,4}|\d{1,2}\.\d{1,2}\.\d{4}"
    rf"|(?:\d{{1,2}}(?:st|nd|rd|th)?\s)?(?:of\s)?(?:{_MONTHS})\.?(?:\s\d{{1,2}}(?:st|nd|rd|th)?)?,?(?:\s\d{{4}})?"
    rf"|(?:in|since|year|the year)\s(?:19|20)\d{{2}}|(?:the\s)?(?:19|20)\d0'?s|(?:{_DAYS})"
)
_CLOCK_WITH_POINT = re.compile(r"\d{1,2}\.\d{2}")
_MARKERS = {
    "inc",
    "ltd",
    "llc",
    "corp",
    "co",
    "gmbh",
    "university",
    "college",
    "school",
    "museum",
    "hospital",
    "street",
    "st",
    "avenue",
    "ave",
    "road",
    "rd",
    "city",
    "park",
    "lake",
    "river",
    "mount",
    "mt",
    "airport",
    "bank",
    "company",
    "association",
    "institute",
    "church",
    "hotel",
    "mr",
    "mrs",
    "ms",
    "dr",
    "prof",
    "sir",
}
_JOINING = {"of", "the", "and", "de", "la", "van", "von", "der", "di", "del", "&"}


def answer_type(text: str) -> str:
    """The type of an answer, one of `TYPES`.

    A year is a `time_or_date` only together with a word that shows that it is a year ("in 1999"); otherwise, it is a
    `number`. A name (`person_place_organisation`) consists of two or more words that begin with a capital letter or a
    digit, apart from joining words such as "of". At least two of the words begin with a capital letter, or one is a
    marker such as Inc or Street.
    """
    plain = " ".join(text.split()).strip(" .,;!?\"'")
    lower = plain.lower()
    words = re.findall(r"[^\W_]+(?:['’.-][^\W_]+)*", lower)  # noqa: RUF001
    if not words:
        return "other"
    if len(words) == 1 and words[0] in _YES_NO:
        return "yes_no"
    if _TIME_OR_DATE.fullmatch(lower) and not _CLOCK_WITH_POINT.fullmatch(lower):
        return "time_or_date"
    if _NUMBER.fullmatch(lower) or _is_number_in_words(words):
        return "number"
    if _is_colour(words):
        return "colour"
    if _is_name(plain):
        return "person_place_organisation"
    return "single_word" if len(words) == 1 else "phrase"


def divergence(first: Mapping[str, int], second: Mapping[str, int]) -> float:
    """Jensen-Shannon divergence of two sets of counts by type, in bits (Lin 1991).

    It is 0 for equal shares and 1 for sets of counts that have no type in common. It is also 0 if both sets are empty,
    and 1 if only one is empty.
    """
    totals = sum(first.values()), sum(second.values())
    if not all(totals):
        return 0.0 if not any(totals) else 1.0
    shares = [(first.get(kind, 0) / totals[0], second.get(kind, 0) / totals[1]) for kind in {*first, *second}]
    halves = sum(_information(p, (p + q) / 2) + _information(q, (p + q) / 2) for p, q in shares)
    return min(1.0, max(0.0, halves / 2))


def _information(share: float, mean: float) -> float:
    return share * math.log2(share / mean) if share else 0.0


def _is_number_in_words(words: list[str]) -> bool:
    parts = [part for word in words for part in word.split("-")]
    counted = [part for part in parts if part not in ("and", "a")]
    return bool(counted) and all(part in _NUMBER_WORDS or part.isdecimal() for part in counted)


def _is_colour(words: list[str]) -> bool:
    named = [word for word in words if word not in _SHADES and word != "and"]
    return bool(named) and len(named) <= 3 and all(set(word.split("-")) <= _COLOURS | _SHADES for word in named)


def _is_name(text: str) -> bool:
    stripped = [word.strip(".,'\"()") for word in text.split()]
    words = [word for word in stripped if word and word.lower() not in _JOINING]
    if len(words) < 2 or not all(word[0].isupper() or word[0].isdigit() for word in words):
        return False
    num_capitalised = sum(word[0].isupper() for word in words)
    return num_capitalised >= 2 or any(word.lower() in _MARKERS for word in words)

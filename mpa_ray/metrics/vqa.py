"""VQA accuracy and TextVQA's variant, computed exactly as the evaluators of the leaderboards compute them, including
their mistakes."""

from __future__ import annotations

import re
from collections.abc import Sequence

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32
"""The largest number of periods that are removed. By mistake, the evaluators pass the flag `re.UNICODE`, whose value is
32, as the number of replacements."""

_NUMBERS = {
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
_ARTICLES = {"a", "an", "the"}

_SHORT_FORMS = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't it'd
it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't somebody'll
somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's they'd they'll
they're they've wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll who's
who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
"""
"""Contractions. If a word equals a contraction except for the missing apostrophe, the apostrophe is inserted."""
_DOUBLE_SHORT_FORMS = """
couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've something'd've
there'd've they'd've we'd've who'd've wouldn't've y'all'll you'd've
"""
"""Contractions with two apostrophes. If a word lacks one of the two, the missing one is inserted."""


def _contractions() -> dict[str, str]:
    forms = {form.replace("'", ""): form for form in _SHORT_FORMS.split()}
    for form in _DOUBLE_SHORT_FORMS.split():
        first, second = (at for at, character in enumerate(form) if character == "'")
        forms |= {form[:first] + form[first + 1 :]: form, form[:second] + form[second + 1 :]: form}
    # The evaluators have these forms, too. One of them removes an apostrophe: the one in "somebody'd".
    forms |= {"twas": "'twas", "somebody'd": "somebodyd"}
    forms |= dict.fromkeys(("ow's'at", "'ows'at", "'ow'sat"), "'ow's'at")
    return forms | dict.fromkeys(("yall'd've", "y'alld've", "y'all'dve"), "y'all'd've")


_CONTRACTIONS = _contractions()


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """The mean over the annotators of min(1, n / 3), where n *other* annotators gave the predicted answer.

    Prediction and answers are always normalised. If m of ten answers match, the score is 0, 0.3, 0.6, 0.9, 1, ... for
    m = 0, 1, 2, 3, 4, ...; with one answer it is always 0. (visualqa.org/evaluation.html)
    """
    return _soft_agreement(normalise(_trimmed(prediction)), [normalise(_trimmed(answer)) for answer in answers])


def vqa_accuracy_official(prediction: str, answers: Sequence[str]) -> float:
    """`vqa_accuracy` as GT-Vision-Lab's script has computed it since 2021: if all answers are equal, nothing is
    normalised.

    For example, the prediction "Black." is wrong if all ten annotators wrote "black".
    """
    predicted, references = _trimmed(prediction), [_trimmed(answer) for answer in answers]
    if len(set(references)) > 1:
        predicted, references = normalise(predicted), [normalise(answer) for answer in references]
    return _soft_agreement(predicted, references)


def textvqa_m4c(prediction: str, answers: Sequence[str]) -> float:
    """`vqa_accuracy` after M4C's normalisation, which removes commas and splits off "'s" as a word."""
    return _soft_agreement(normalise_m4c(prediction), [normalise_m4c(answer) for answer in answers])


def normalise(text: str) -> str:
    """Remove punctuation or turn it into spaces, convert to lower case, write number words as digits, drop articles,
    and restore the apostrophes of contractions."""
    return _words(_without_punctuation(text))


def normalise_m4c(text: str) -> str:
    """`normalise`, after M4C's own tokenisation."""
    tokenized = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return normalise(_trimmed(tokenized))


def _trimmed(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _without_punctuation(text: str) -> str:
    result = text
    # If a number anywhere in the text contains a comma, all marks are removed instead of being replaced by spaces.
    all_vanish = _COMMA_IN_NUMBER.search(text) is not None
    for mark in _MARKS:
        vanishes = all_vanish or f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if vanishes else " ")
    return _PERIOD.sub("", result, count=_MOST_PERIODS)


def _words(text: str) -> str:
    numbered = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in numbered if word not in _ARTICLES)


def _soft_agreement(predicted: str, answers: Sequence[str]) -> float:
    if not answers:
        return 0.0
    num_matching = sum(answer == predicted for answer in answers)
    # Add the terms one by one, as the evaluators do, so that the sum has exactly the same rounding errors.
    return sum(min(1.0, (num_matching - (answer == predicted)) / 3) for answer in answers) / len(answers)

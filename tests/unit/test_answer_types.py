"""Types of answers by simple rules, and the divergence of two sets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpa_ray.metrics.answer_types import TYPES, answer_type, divergence

TABLE = {
    "yes_no": ["yes", "No.", " YES ", "no!"],
    "number": [
        "5",
        "-5",
        "3.14",
        "1,234",
        "50%",
        "50 %",
        "$5",
        "$ 1,000.50",
        "5€",
        "two",
        "twenty-one",
        "one hundred and five",
        "2 million",
        "1950",
        "2010",
        ".5",
        "1st",
        "22nd",
        "#7",
        "20 percent",
        "a dozen",
        "10.30",
        "72°f",
        "0",
    ],
    "colour": [
        "red",
        "Red.",
        "light blue",
        "dark-green",
        "black and white",
        "red, white and blue",
        "grey",
        "blue-green",
    ],
    "time_or_date": [
        "10:30",
        "10:30 pm",
        "3 pm",
        "3pm",
        "3 p.m.",
        "12:05:30",
        "5 o'clock",
        "noon",
        "12 May 2020",
        "May 12, 2020",
        "May 2020",
        "2020-05-12",
        "12/05/2020",
        "12.5.2020",
        "in 1999",
        "the 1980s",
        "1980s",
        "Monday",
        "sundays",
        "4th of July",
        "December",
    ],
    "person_place_organisation": [
        "New York",
        "Barack Obama",
        "University of Oxford",
        "Apple Inc.",
        "Main Street",
        "Bank of America",
        "Dr. Smith",
        "Mount Everest",
        "42 Wall Street",
        "Coca-Cola Company",
        "Queen Elizabeth II",
    ],
    "single_word": ["dog", "Dog", "Nokia", "t-shirt", "skateboarding", "café", "犬"],
    "phrase": ["a dog", "on the table", "red car", "two dogs", "to the left", "The cat", "5 apples", "it is raining"],
    "other": ["", " ", "...", "?", "-", "%", "\n"],
}


@pytest.mark.parametrize(("text", "expected"), [(text, kind) for kind, texts in TABLE.items() for text in texts])
def test_answers_have_the_expected_types(text: str, expected: str) -> None:
    assert answer_type(text) == expected


@given(st.text())
def test_every_text_has_one_of_the_types(text: str) -> None:
    assert answer_type(text) in TYPES


COUNTS = st.dictionaries(st.sampled_from(TYPES), st.integers(0, 1000))


@given(COUNTS, COUNTS)
def test_divergence_is_symmetric_and_between_0_and_1(first: dict[str, int], second: dict[str, int]) -> None:
    bits = divergence(first, second)
    assert 0 <= bits <= 1
    assert bits == pytest.approx(divergence(second, first))
    assert divergence(first, {kind: 3 * count for kind, count in first.items()}) == pytest.approx(0)


def test_the_divergence_of_known_shares_is_computed() -> None:
    assert divergence({"number": 5}, {"colour": 2}) == 1
    assert divergence({}, {}) == 0
    assert divergence({}, {"colour": 1}) == 1
    # Shares (1, 0) and (1/2, 1/2): H(3/4, 1/4) - 1/2.
    assert divergence({"number": 4}, {"number": 1, "colour": 1}) == pytest.approx(0.3112781)

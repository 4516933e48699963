"""The matchers: what counts as the same answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpa_ray.matching import MATCHERS, containment, exact, normalise


@pytest.mark.parametrize(
    ("reference", "prediction"),
    [
        ("red", "red"),
        ("Red", "red."),
        ("  red ", '"Red"'),
        ("New  York", "new\nyork"),
        ("Straße", "STRASSE"),
        ("５", "5"),  # noqa: RUF001
        ("ﬁre", "fire"),
        ("red", "**Red**"),
        ("red", "- red"),
        ("yes", "Yes!"),
        ("(a)", "a"),
        ("3.5", "3.5."),
        ("é", "e\u0301"),
    ],
)
def test_exact_matches(reference: str, prediction: str) -> None:
    assert exact(reference, prediction)


@pytest.mark.parametrize(
    ("reference", "prediction"),
    [
        ("3.5", "35"),
        ("-5", "5"),
        ("-$5", "$5"),
        (".5", "5"),
        ("-.5", ".5"),
        ("no", "Nokia"),
        ("5", "35"),
        ("5%", "5"),
        ("C#", "C"),
        ("A+", "A"),
        ("A-", "A"),
        ("10:10", "1010"),
        ("cat", "a cat"),
        ("ice cream", "icecream"),
        ("", ""),
        ("", "red"),
        ("...", "!"),
        ("?", "?"),
    ],
)
def test_exact_does_not_match(reference: str, prediction: str) -> None:
    assert not exact(reference, prediction)


@pytest.mark.parametrize(
    ("reference", "prediction", "matches"),
    [
        ("no", "Nokia", True),
        ("5", "35", True),
        ("3.5", "35", True),
        ("-5", "5", True),
        ("Floyd Av", "Floyd", False),
        ("Floyd", "Floyd Av", True),
        ("", "anything", True),
        ("", "", True),
        (None, "anything", True),
        (None, None, True),
        ("red", None, False),
        ("ice cream", "An icecream.", True),
        ("a_b", "ab", False),
    ],
)
def test_containment_is_that_of_the_release(reference: str | None, prediction: str | None, matches: bool) -> None:
    assert containment(reference, prediction) is matches


def test_matchers_by_name() -> None:
    assert MATCHERS["exact"] is exact
    assert MATCHERS["containment"] is containment


@given(st.text())
def test_exact_is_reflexive_where_something_is_left(text: str) -> None:
    assert exact(text, text) == bool(normalise(text))


@given(st.text(), st.text())
def test_exact_is_symmetric(one: str, other: str) -> None:
    assert exact(one, other) == exact(other, one)


@given(st.text(), st.text(), st.text())
def test_containment_finds_the_reference_inside(before: str, reference: str, after: str) -> None:
    assert containment(reference, f"{before} {reference} {after}")


@given(st.from_regex(r"-?[0-9]{1,4}(\.[0-9]{1,3})?", fullmatch=True), st.from_regex(r"-?[0-9.]{1,6}", fullmatch=True))
def test_exact_keeps_numbers_apart(one: str, other: str) -> None:
    assert exact(one, other) == (one == other.rstrip("."))

"""The matchers: what counts as the same answer."""

from __future__ import annotations

import pickle
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpa_ray.config import IdentifyConfig, MatcherConfig
from mpa_ray.matching import (
    MATCHERS,
    Matcher,
    Quantity,
    containment,
    exact,
    matcher_label,
    matcher_of,
    normalise,
    quantity,
    vqa_normalized,
)


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


def configured(matcher: object) -> Matcher:
    """The matcher of a setting, pickled as on its way to a worker."""
    config = IdentifyConfig.model_validate({"matcher": matcher}).matcher
    assert config is not None
    matcher_copy: Matcher = pickle.loads(pickle.dumps(matcher_of(config)))
    return matcher_copy


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("5", 5, ""),
        ("-5", -5, ""),
        ("\u22125", -5, ""),
        ("+5", 5, ""),
        ("1,234.5", 1234.5, ""),
        (".5", 0.5, ""),
        ("5.", 5, ""),
        ("57 %", 57, "%"),
        ("57%", 57, "%"),
        ("$5", 5, "$"),
        ("-$5", -5, "$"),
        ("5€", 5, "€"),
        ("$ 1,000", 1000, "$"),
        ("10:30", None, ""),
        ("1,23", None, ""),
        ("10 20", None, ""),
        ("five", None, ""),
        ("", None, ""),
        ("%", None, ""),
        ("5 apples", None, ""),
        ("1e3", None, ""),
        ("3.5.2", None, ""),
    ],
)
def test_quantities(text: str, value: float | None, unit: str) -> None:
    assert quantity(text) == (None if value is None else Quantity(value, unit))


def test_numbers_agree_within_a_share_of_the_reference() -> None:
    matches = configured({"kind": "numeric", "tolerance": 0.1})
    assert matches("100", "110")
    assert matches("1,000", "950.5")
    assert not matches("100", "110.1")
    assert not matches("50%", "50")
    assert not matches("-5", "5")
    assert matches("0", "0.0")
    assert not matches("0", "0.001")
    assert matches("red", "Red.")
    assert not matches("red", "5")
    assert configured("numeric")("100", "105")


def test_texts_of_similar_spelling() -> None:
    assert configured("anls")("hello world", "helo world")
    assert not configured({"kind": "anls", "threshold": 0.95})("hello world", "helo world")
    assert not configured("anls")("", "")


def test_answers_after_the_normalisation_of_vqa_accuracy() -> None:
    assert vqa_normalized("the two dogs.", "2 dogs")
    assert vqa_normalized("t-shirt", "t shirt")
    assert not vqa_normalized("the", "a")
    assert configured("vqa_normalized") is vqa_normalized


def test_any_of_several() -> None:
    matches = configured({"kind": "any_of", "of": ["exact", {"kind": "numeric", "tolerance": 0.05}, "vqa_normalized"]})
    assert matches("100", "104")
    assert matches("two", "2")
    assert matches("red", "RED")
    assert not matches("red", "blue")


KINDS = [
    kind
    for settings in get_args(get_args(MatcherConfig)[0])
    for kind in get_args(settings.model_fields["kind"].annotation)
]
"""The values of `identify.matcher.kind`."""


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_matcher_and_a_label(kind: str) -> None:
    settings = {"of": ["exact", "anls"]} if kind == "any_of" else {}
    matcher = IdentifyConfig.model_validate({"matcher": {"kind": kind, **settings}}).matcher
    assert matcher is not None
    assert matcher_of(matcher)("red", "red")
    assert not matcher_of(matcher)("red", "blue")
    assert matcher_label(matcher)


def labelled(tree: object) -> str:
    matcher = IdentifyConfig.model_validate({"matcher": tree}).matcher
    assert matcher is not None
    return matcher_label(matcher)


def test_matchers_that_differ_have_different_labels() -> None:
    """In earlier versions, the D_PI of one matcher overwrote that of another if the first six digits of their
    tolerances were the same."""
    trees = [{"kind": "numeric", "tolerance": number} for number in (0.1234561, 0.1234562, 1, 1e-9)]
    trees += [{"kind": "anls", "threshold": number} for number in (0.1234561, 0.1234562)]
    assert len({labelled(tree) for tree in trees}) == len(trees)
    assert [labelled(trees[2]), labelled({"kind": "numeric", "tolerance": 0.05})] == ["numeric-1", "numeric-0.05"]


def test_the_label_of_many_matchers_fits_into_a_file_name() -> None:
    def any_of(last: float) -> object:
        tolerances = [*(number / 1000 for number in range(20)), last]
        return {"kind": "any_of", "of": [{"kind": "numeric", "tolerance": number} for number in tolerances]}

    one, other = labelled(any_of(0.5)), labelled(any_of(0.6))
    assert one != other
    assert max(len(one), len(other)) < 160
    assert one.startswith("numeric-0-or-numeric-0.001-or-")


@given(st.text(), st.text())
def test_matchers_never_raise(reference: str, prediction: str) -> None:
    for matcher in (*MATCHERS, "numeric", "anls"):
        assert configured(matcher)(reference, prediction) in (True, False)

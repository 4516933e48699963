"""Metrics, quirk by quirk, with values from the reference evaluators."""

# ruff: noqa: RUF001

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpa_ray.evaluation.benchmarks import BENCHMARKS
from mpa_ray.metrics import METRICS, score
from mpa_ray.metrics.anls import similarity
from mpa_ray.metrics.vqa import normalise, normalise_m4c

TEXT = st.text(max_size=40)
HOSTILE = st.text(st.sampled_from("aAthe onez1,2.3%$-'\n\t\r ?!/é’日٣\u00a0\ud800"), max_size=20)


def ten(answer: str, count: int, other: str = "something else") -> list[str]:
    return [answer] * count + [f"{other} {n}" for n in range(10 - count)]


@pytest.mark.parametrize("metric", ["vqa_accuracy", "vqa_accuracy_official", "textvqa_m4c"])
@pytest.mark.parametrize(
    ("matching", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (7, 1.0), (10, 1.0)]
)
def test_agreement_is_with_the_others(metric: str, matching: int, expected: float) -> None:
    assert score(metric, "red", ten("red", matching)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Punctuation becomes a space, vanishes beside one, and vanishes everywhere where a number has a comma.
        ("red-blue", "red blue"),
        ("coca -cola", "coca cola"),
        ("1,000 red-blue", "1000 redblue"),
        ("t-shirt", "t shirt"),
        ("-5", "5"),
        ("what?", "what"),
        ("dallas,tx", "dallas tx"),
        ("dallas, tx", "dallas tx"),
        ("a/b/c", "b c"),
        ("[1]", "1"),
        ("{x}", "x"),
        ("x!y", "x y"),
        ("stop!", "stop"),
        ("one@two", "1 2"),
        ("1,000", "1000"),
        ("1,0,0", "100"),
        ("١,٢", "١٢"),
        # Left unchanged.
        ("5%", "5%"),
        ("$5", "$5"),
        ("10:30", "10:30"),
        ("#1", "#1"),
        ("a&b", "a&b"),
        ("x*y", "x*y"),
        ("~1", "~1"),
        ("don’t", "don’t"),
        ("5–6", "5–6"),
        ("はい。", "はい。"),
        # Periods go unless a digit follows.
        ("5.", "5"),
        ("x.5", "x.5"),
        ("3 .5", "3 .5"),
        ("e.g.", "eg"),
        ("3.14", "3.14"),
        ("3.a", "3a"),
        ("...", ""),
        ("." * 40, "." * 8),
        # Number words, then articles, then short forms.
        ("None", "0"),
        ("zero", "0"),
        ("a one", "1"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("no", "no"),
        ("The", ""),
        ("an apple", "apple"),
        ("another", "another"),
        ("a", ""),
        ("A CAT", "cat"),
        ("dont", "don't"),
        ("Im", "im"),
        ("ive", "ive"),
        ("let's", "let's"),
        ("lets", "lets"),
        ("its", "its"),
        ("shes", "shes"),
        ("somebody'd", "somebodyd"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("couldntve", "couldntve"),
        ("twas", "'twas"),
        ("'ows'at", "'ow's'at"),
        ("yall'd've", "y'all'd've"),
        ("oclock", "o'clock"),
        ("weve", "we've"),
        ("wed've", "we'd've"),
        ("wed", "wed"),
        ("itsy", "itsy"),
        # White space.
        ("new\ryork", "new york"),
        ("a\u00a0b", "b"),
        ("  x  ", "x"),
        ("", ""),
        (" ", ""),
        ("\ud800", "\ud800"),
    ],
)
def test_vqa_normalisation(text: str, expected: str) -> None:
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dallas,tx", "dallastx"),
        ("1,000-b", "1000 b"),
        ("mcdonald's", "mcdonald 's"),
        ("whats", "what's"),
        ("what's", "what 's"),
        ("What?", "what"),
        ("a?b", "ab"),
        ("1,000 red-blue", "1000 red blue"),
        ("one", "1"),
        ("new\nyork", "new york"),
        ("IT'S", "it 's"),
        ("5.", "5"),
        ("The 's", "'s"),
    ],
)
def test_m4c_normalisation(text: str, expected: str) -> None:
    assert normalise_m4c(text) == expected


def test_answers_that_are_all_equal() -> None:
    black = ["black"] * 10
    assert [score(m, "Black.", black) for m in ("vqa_accuracy", "vqa_accuracy_official")] == [1.0, 0.0]
    assert score("vqa_accuracy_official", "black", black) == 1.0
    assert score("vqa_accuracy_official", " black\n", ["black\t"] * 10) == 1.0
    assert score("vqa_accuracy_official", "Black.", [*["black"] * 9, "Black"]) == 1.0
    assert score("vqa_accuracy_official", "Two", ["2"] * 10) == 0.0


def test_one_annotator_has_no_others() -> None:
    assert score("vqa_accuracy", "red", ["red"]) == 0.0
    assert score("vqa_accuracy", "red", ["red", "red"]) == pytest.approx(1 / 3)
    # OK-VQA: five people, each counted twice.
    assert score("vqa_accuracy", "race", ["race"] * 2 + ["x"] * 8) == pytest.approx(0.6)


def test_texts_that_normalise_to_nothing_are_equal() -> None:
    assert score("vqa_accuracy", "the", [*ten("a", 2), "?", "!"]) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("hello world", ["hello world"], 1.0),
        ("Hello  World ", ["hello world"], 1.0),
        ("", [""], 1.0),
        ("", ["a"], 0.0),
        ("helo world", ["hello world"], 1 - 1 / 11),
        ("helo   world  ", ["hello world"], 1 - 1 / 14),
        ("ab", ["ac"], 0.5),
        ("abc", ["axy"], 0.0),
        ("x", ["y", "x"], 1.0),
        ("ﬁx", ["fix"], 0.0),
        ("ß", ["ss"], 0.0),
        ("éa", ["e\u0301a"], 0.0),
        ("12", ["12"], 1.0),
        ("a.", ["a"], 0.5),
    ],
)
def test_anls(prediction: str, answers: list[str], expected: float) -> None:
    assert score("anls", prediction, answers) == pytest.approx(expected)


def test_anls_takes_the_longer_of_the_upper_case_forms() -> None:
    # "ﬁ" is two letters in upper case.
    assert similarity("ﬁve", "five") == pytest.approx(1 - 2 / 4)
    assert similarity("x" * 900, "x" * 899 + "y") == pytest.approx(1 - 1 / 900)


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("105", "100", 1),
        ("95", "100", 1),
        ("105.1", "100", 0),
        ("1.05", "1", 0),
        ("-105", "-100", 1),
        ("100", "-100", 0),
        ("1950", "2010", 1),
        ("50%", "0.5", 1),
        ("50%", "50", 0),
        ("57%", "57", 0),
        ("57", "57%", 0),
        ("50%", "50%", 1),
        ("1,000", "1000", 0),
        ("1,000", "1,000", 1),
        ("$5", "5", 0),
        ("0", "0", 1),
        ("0.0", "0", 0),
        ("0.01", "0", 0),
        ("1e3", "1000", 1),
        ("1_000", "1000", 1),
        (" 14\n", "14", 1),
        ("3.", "3", 1),
        (".5", "0.5", 1),
        ("٣", "3", 1),
        ("nan", "nan", 0),
        ("inf", "inf", 0),
        ("nan", "5", 0),
        ("inf", "5", 0),
        ("5", "inf", 0),
        ("5", "nan", 0),
        ("Yes", "yes", 1),
        ("yes ", "yes", 0),
        ("[Italy , 22]", "[Italy , 22]", 1),
        ("[Italy, 22]", "[Italy , 22]", 0),
        ("five", "5", 0),
        ("", "", 1),
        ("%", "%", 1),
        ("5%%", "0.05", 1),
        ("1e400", "5", 0),
        ("2 million", "2000000", 0),
    ],
)
def test_relaxed_accuracy(prediction: str, answer: str, expected: int) -> None:
    assert score("relaxed_accuracy", prediction, [answer]) == expected


def test_relaxed_accuracy_takes_the_best_answer() -> None:
    assert score("relaxed_accuracy", "104", ["7", "100"]) == 1


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [(" Red\n", ["blue", "red "], 1), ("red.", ["red"], 0), ("", [""], 1), ("İ", ["i̇"], 1), ("a", [], 0)],
)
def test_exact_match(prediction: str, answers: list[str], expected: int) -> None:
    assert score("exact_match", prediction, answers) == expected


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("Nokia", ["no"], 1),
        ("100", ["10"], 1),
        ("5", ["-5"], 1),
        ("35", ["3.5"], 1),
        ("x", ["?"], 1),
        ("a b", ["ab"], 1),
        ("Floyd", ["Floyd Av"], 0),
        ("red", ["blue", "red"], 0),
        ("a_b", ["ab"], 0),
        ("anything", [], 0),
    ],
)
def test_containment(prediction: str, answers: list[str], expected: int) -> None:
    assert score("containment", prediction, answers) == expected


@pytest.mark.parametrize("metric", METRICS)
@given(prediction=TEXT | HOSTILE, answers=st.lists(TEXT | HOSTILE, max_size=11))
def test_nothing_raises_and_scores_are_in_range(metric: str, prediction: str, answers: list[str]) -> None:
    assert 0.0 <= score(metric, prediction, answers) <= 1.0


@pytest.mark.parametrize("metric", [name for name in METRICS if name != "containment"])
@given(prediction=HOSTILE, answers=st.lists(HOSTILE, max_size=6), order=st.randoms())
def test_the_order_of_answers_does_not_matter(metric: str, prediction: str, answers: list[str], order: object) -> None:
    shuffled = list(answers)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    assert score(metric, prediction, shuffled) == pytest.approx(score(metric, prediction, answers))


@pytest.mark.parametrize("metric", METRICS)
@given(text=st.text(st.sampled_from("aZ0 é-"), min_size=1, max_size=12).filter(str.strip))
def test_an_answer_given_by_many_is_right(metric: str, text: str) -> None:
    assert score(metric, text, [text] * 10) == 1.0


@given(HOSTILE)
def test_a_second_normalisation_changes_white_space_and_marks_only(text: str) -> None:
    """Normalisation is not idempotent: a mark that becomes a space may leave another mark beside a space."""
    once = normalise(text)
    assert once == " ".join(once.split())
    assert not set(once) & set('[]"{}()')


def test_an_unknown_metric_is_named_with_the_choices() -> None:
    with pytest.raises(
        ValueError, match=r"no metric 'accuracy'\. Did you mean vqa_accuracy\? Choose one of vqa_accuracy, "
    ):
        score("accuracy", "a", ["a"])


def test_every_metric_says_who_defines_it() -> None:
    assert all(metric.source and metric.version and metric.summary for metric in METRICS.values())


def test_the_documents_name_each_benchmarks_metric() -> None:
    metrics = {}
    for line in (Path(__file__).parents[2] / "docs/evaluation.md").read_text().splitlines():
        if match := re.fullmatch(r"\| (`.*?) \| `(\w+)` \| .* \|", line):
            metrics |= dict.fromkeys(re.findall(r"`(\w+)`", match[1]), match[2])
    assert metrics == {name: benchmark.metric for name, benchmark in BENCHMARKS.items() if name != "questions"}

"""Text that UTF-8 cannot encode stays readable, and ids stay different."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mpa_ray.textual import identifier, is_storable, parse_json, readable, to_json

ANY_TEXT = st.text(st.characters()) | st.text(st.sampled_from("\\xue9d83\udce9\ud83d"))


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("café", "café"),
        ("caf\udce9.png", r"caf\xe9.png"),
        ("half \ud83d", r"half \ud83d"),
        ("\ude00\ud83d", r"\ude00\ud83d"),
        (r"C:\data\new", r"C:\data\new"),
    ],
)
def test_text_stays_readable(text: str, stored: str) -> None:
    assert readable(text) == identifier(text) == stored


def test_a_name_with_an_escape_differs_from_one_with_the_byte() -> None:
    assert identifier(r"caf\xe9.png") == r"caf\\xe9.png" != identifier("caf\udce9.png")
    assert readable(r"caf\xe9.png") == r"caf\xe9.png"


@given(ANY_TEXT)
def test_every_text_can_be_stored(text: str) -> None:
    assert is_storable(readable(text))
    assert is_storable(identifier(text))
    assert readable(text) == text or not is_storable(text)


@given(ANY_TEXT, ANY_TEXT)
@example("\\\udce9", r"\\xe9")
@example(r"\\xe9", r"\xe9")
def test_different_texts_have_different_identifiers(one: str, other: str) -> None:
    assert (identifier(one) == identifier(other)) == (one == other)


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 200_000, "1" * 5000, b"\xff", "{", ""])
def test_json_that_cannot_be_read_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        parse_json(text)


def test_a_missing_number_is_null() -> None:
    assert (
        to_json({"a": float("nan"), "b": [1.5, float("inf")], "c": "NaN"})
        == '{"a": null, "b": [1.5, null], "c": "NaN"}'
    )


@given(st.dictionaries(ANY_TEXT, st.lists(ANY_TEXT)))
def test_json_of_any_text_is_read_as_readable_text(value: dict[str, list[str]]) -> None:
    text = to_json(value)
    assert is_storable(text)
    assert parse_json(text) == {readable(key): [readable(item) for item in items] for key, items in value.items()}

"""One entry of a benchmark's file, whose errors name the file and the position of the entry."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mpa_ray.errors import ConfigError
from mpa_ray.evaluation.benchmarks.printed_list import parse_printed_list

_MAX_SHOWN = 80
"""The number of characters of an answer that an error message shows."""


@dataclass(frozen=True)
class Record:
    """A row of a Parquet file, or an entry of a JSON file."""

    file: str
    """The file's URI."""
    position: str
    """The position in the file for error messages, such as `row 3`."""
    number: int
    """The number of the entry, counted from 0: within a JSON file, or over all files of a mirror."""
    split: str
    """The split, such as train, val or test; empty if unknown."""
    values: Mapping[str, Any]
    row_id: str
    """The file's path below the folder that was listed, and the number of the row."""
    image_uri: str | None = None
    """The image's locator if the row holds the image, otherwise None."""
    field: str = "benchmark.path"
    """The setting that names the file, for error messages."""

    @property
    def source(self) -> str:
        """The prefix of generated ids: the split or, if it is unknown, the file's name without its extension."""
        return self.split or self.file.rpartition("/")[2].rpartition(".")[0]

    def get(self, *names: str) -> Any:
        """The value of the first of these fields that the entry has; None if it has none of them."""
        return next((value for name in names if (value := self.values.get(name)) is not None), None)

    def text(self, *names: str) -> str:
        """The value of the first of these fields that the entry has, as text.

        Raises:
            ConfigError: the entry has none of them, or the value is empty, or neither text nor a whole number.
        """
        value = self.get(*names)
        if value is None or value == "":
            raise self.error(
                f"{_either(names)} is missing.", "Check that the file is complete and belongs to this benchmark."
            )
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise self.error(f"{_either(names)} is a {type(value).__name__}.", "Give text or a whole number.")
        return str(value)

    def optional(self, *names: str) -> str | None:
        """Like `text`, but None if the value is missing or empty. The items of a list are joined with `+`."""
        value = self.get(*names)
        parts = value if isinstance(value, list) else [] if value is None else [value]
        return "+".join(str(part).strip() for part in parts if part is not None) or None

    def answers(self, *names: str, may_be_printed: bool = False) -> list[str]:
        """The reference answers, from a text, a list of texts, or VQA's list of objects.

        Args:
            names: The fields that may hold the answers; the first one that the entry has is used.
            may_be_printed: Whether to read a text as a list if it is a list in Python's notation.

        Raises:
            ConfigError: all answers are missing or empty, as in test splits, or they have a different form.
        """
        value = self.get(*names)
        if may_be_printed and isinstance(value, str):
            value = self._unprinted(value, names)
        values = value if isinstance(value, list) else [] if value is None else [value]
        answers = [self._answer(answer, names) for answer in values]
        if not any(answer.strip() for answer in answers):
            raise self.error(
                "the answers are missing, as in a test split without labels.", "Use a split with answers, such as val."
            )
        return answers

    def _unprinted(self, text: str, names: tuple[str, ...]) -> str | list[Any]:
        """Return the list if the text is a list in Python's notation. Otherwise, return the text itself, which is one
        answer.

        Raises:
            ConfigError: it is unclear whether the text is a list or one answer in brackets, or the text is a NumPy
                array as `str` shows it.
        """
        try:
            values = parse_printed_list(text)
        except ValueError as error:
            example = json.dumps([text])
            raise self.error(
                f"{_either(names)} is the text {text[:_MAX_SHOWN]!r}, {error}.",
                f"Give a list of texts. If it is one answer in brackets, write {example[:_MAX_SHOWN]}.",
            ) from None
        return text if values is None else values

    def error(self, problem: str, remedy: str) -> ConfigError:
        return ConfigError(self.field, self.file, f"{self.position}: {problem}", remedy)

    def _answer(self, answer: Any, names: tuple[str, ...]) -> str:
        if isinstance(answer, dict):
            if "answer" not in answer:
                raise self.error(f"an entry of {_either(names)} has no 'answer'.", "Check that the file is complete.")
            answer = answer["answer"]
        if answer is None:
            return ""
        if isinstance(answer, bool) or not isinstance(answer, str | int | float):
            raise self.error(f"{_either(names)} holds a {type(answer).__name__}.", "Give answers as text.")
        return str(answer)


def _either(names: tuple[str, ...]) -> str:
    return " or ".join(map(repr, names))

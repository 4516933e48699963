"""One entry of a benchmark's file, which knows where it stands when a field is missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mpa_ray.errors import ConfigError


@dataclass(frozen=True)
class Record:
    """A row of a Parquet file, or an entry of a JSON one."""

    file: str
    """The file's URI."""
    place: str
    """Where in the file, for messages: `row 3`."""
    number: int
    """From 0 on: in a JSON file the entry, in a mirror the row of the whole split, however many files it is cut in."""
    split: str
    """Train, val, test or the like; empty where nothing tells."""
    values: Mapping[str, Any]
    row_id: str
    """The file's path below what was listed, and the row."""
    image_uri: str | None = None
    """A locator, where the row holds its image."""
    field: str = "benchmark.path"
    """The setting that names the file, for messages."""

    @property
    def source(self) -> str:
        """The split, or else the file's name without its ending: what made-up ids begin with."""
        return self.split or self.file.rpartition("/")[2].rpartition(".")[0]

    def get(self, *names: str) -> Any:
        """The first of the fields that is there; None where none is."""
        return next((value for name in names if (value := self.values.get(name)) is not None), None)

    def text(self, *names: str) -> str:
        """The first of the fields that is there.

        Raises:
            ConfigError: there is none, it is empty, or it is neither text nor a whole number.
        """
        value = self.get(*names)
        if value is None or value == "":
            raise self.error(f"there is no {_either(names)}.", "Check that the file is whole and of this benchmark.")
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise self.error(f"{_either(names)} is a {type(value).__name__}.", "Give text or a whole number.")
        return str(value)

    def optional(self, *names: str) -> str | None:
        """As `text`, but None for nothing; the parts of a list are joined by `+`."""
        value = self.get(*names)
        parts = value if isinstance(value, list) else [] if value is None else [value]
        return "+".join(str(part).strip() for part in parts if part is not None) or None

    def answers(self, *names: str) -> list[str]:
        """The reference answers, however they are given: text, a list of texts, or VQA's list of objects.

        Raises:
            ConfigError: there are none, or none but empty ones, as in test splits; or they are of another form.
        """
        value = self.get(*names)
        found = value if isinstance(value, list) else [] if value is None else [value]
        answers = [self._answer(answer, names) for answer in found]
        if not any(answer.strip() for answer in answers):
            raise self.error(
                "answers absent: this is a test split without labels.", "Give a split with answers, such as val."
            )
        return answers

    def error(self, problem: str, remedy: str) -> ConfigError:
        return ConfigError(self.field, self.file, f"{self.place}: {problem}", remedy)

    def _answer(self, answer: Any, names: tuple[str, ...]) -> str:
        if isinstance(answer, dict):
            if "answer" not in answer:
                raise self.error(f"an entry of {_either(names)} has no 'answer'.", "Check that the file is whole.")
            answer = answer["answer"]
        if answer is None:
            return ""
        if isinstance(answer, bool) or not isinstance(answer, str | int | float):
            raise self.error(f"{_either(names)} holds a {type(answer).__name__}.", "Give answers as text.")
        return str(answer)


def _either(names: tuple[str, ...]) -> str:
    return " or ".join(map(repr, names))

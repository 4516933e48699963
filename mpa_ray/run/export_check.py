"""The answers that transformers gives with an exported checkpoint (`check.json`), which an engine must reproduce."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mpa_ray.run.run import Run

FILE_NAME = "check.json"


@dataclass(frozen=True)
class CheckedAnswer:
    """A question about an image, and the checkpoint's answer with greedy decoding."""

    annotation_id: str
    image_id: str
    uri: str
    question: str
    answer: str


@dataclass(frozen=True)
class ExportCheck:
    """The answers that an engine has to reproduce."""

    answers: tuple[CheckedAnswer, ...]

    @classmethod
    def read(cls, run: Run, folder: str) -> ExportCheck:
        """Read the answers from the folder of a training run. Raises FileNotFoundError if it has exported none."""
        return cls.from_json(run.read_json(f"{folder}/{FILE_NAME}"))

    def write(self, run: Run, folder: str) -> None:
        run.write_json(f"{folder}/{FILE_NAME}", self.to_json())

    def to_json(self) -> dict[str, Any]:
        return {"answers": [asdict(answer) for answer in self.answers]}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> ExportCheck:
        """The inverse of `to_json`."""
        return cls(tuple(CheckedAnswer(**answer) for answer in content["answers"]))

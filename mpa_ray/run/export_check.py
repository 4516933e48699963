"""The answers that transformers gives with an exported checkpoint (`check.json`), which an engine must reproduce."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from mpa_ray.run.run import Run

FILE_NAME = "check.json"
_NEAR_TIE = 0.5
"""If the logits of the two most likely tokens differ by less, the number format or the batch may decide between them:
the logits of one model differ by a few tenths between an engine in 16 bits and transformers in 32 bits."""


def is_near_tie(margin: float | None) -> bool:
    """Whether an answer with this margin has a place where two tokens were about equally likely."""
    return margin is not None and margin < _NEAR_TIE


@dataclass(frozen=True)
class CheckedAnswer:
    """A question about an image, and the checkpoint's answer with greedy decoding."""

    annotation_id: str
    image_id: str
    uri: str
    question: str
    answer: str
    margin: float | None = None
    """The smallest difference between the logits of the most likely token and the next, over all tokens of the answer;
    None if it is not known."""


@dataclass(frozen=True)
class ExportCheck:
    """The answers that an engine has to reproduce."""

    answers: tuple[CheckedAnswer, ...]
    repairs: tuple[str, ...] = ()
    """What the export changed in the settings that it carried over from the student's model."""

    @classmethod
    def read(cls, run: Run, folder: str) -> ExportCheck:
        """Read the answers from the folder of a training run. Raises FileNotFoundError if it has exported none."""
        return run.read_as(f"{folder}/{FILE_NAME}", cls)

    def write(self, run: Run, folder: str) -> None:
        run.write_json(f"{folder}/{FILE_NAME}", asdict(self))

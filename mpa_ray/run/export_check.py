"""The answers that transformers gives with an exported checkpoint (`check.json`), which an engine must reproduce."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile

from mpa_ray.run.run import Run

FILE_NAME = "check.json"
_NEAR_TIE = 0.5
"""If the logits of the two most likely tokens differ by less, the number format or the batch may decide between them:
the logits of one model differ by a few tenths between an engine in 16 bits and transformers in 32 bits."""


@dataclass(frozen=True)
class NearTie:
    """A token of an answer at which another token was about equally likely."""

    begin: int
    """The place of its first character in the answer."""
    end: int
    """The place after its last character."""


def near_ties(margins: Sequence[float], answer: str, decode: Callable[[int], str]) -> tuple[NearTie, ...]:
    """Return the tokens of an answer at which another token was about equally likely.

    Args:
        margins: For each token of the reply, the difference between the logits of the most likely token and the next.
        answer: The answer in the reply, without white space around it.
        decode: Returns the text of the first tokens of the reply, as many as given.
    """
    start = decode(len(margins)).rfind(answer)
    spans = []
    for index, margin in enumerate(margins):
        if not margin < _NEAR_TIE:
            continue
        begin, end = len(decode(index)) - start, len(decode(index + 1)) - start
        # After another token in the text before the answer, such as the reasoning, the whole answer may differ.
        spans.append(NearTie(begin, end) if start >= 0 and end >= 0 else NearTie(0, len(answer)))
    return tuple(dict.fromkeys(spans))


def differs_clearly(answer: str, ties: Sequence[NearTie], other: str) -> bool:
    """Whether an answer differs from a reference answer at a place where only one token was likely.

    Answers are compared without the white space around them.

    Args:
        answer: The reference answer.
        ties: Its `near_ties`.
        other: The other answer.
    """
    answer, other = answer.strip(), other.strip()
    # The other token may begin with the text of the reference's token, so the end counts, too.
    place = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(answer, other, strict=False)))
    return answer != other and not any(tie.begin <= place <= tie.end for tie in ties)


@dataclass(frozen=True)
class CheckedAnswer:
    """A question about an image, and the checkpoint's answer with greedy decoding."""

    annotation_id: str
    image_id: str
    uri: str
    question: str
    answer: str
    near_ties: tuple[NearTie, ...] = ()
    """See `near_ties`."""


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

"""Rates with their origin, and the numbers that are assumed if nothing better is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Origin = Literal["given", "measured", "estimated", "assumed", "not known"]

ENGINE_START_S = 120.0
"""Seconds to load weights, compile and capture CUDA graphs of a model with a few billion parameters."""
TRAINING_START_S = 120.0
"""Seconds that a training run takes in addition to its optimiser steps."""
PARITY_SHARE = 0.1
"""Parity samples per image: the paper has about 2,000 for 21,953 images of TextVQA (arXiv 2509.16633). A weaker
student has more; the bundled students have 0.3."""
PROMPT_TOKENS = 120
"""Tokens of a prompt's text."""
PAIR_TOKENS = 30
"""Tokens of a question with its answer, as the teacher writes them."""
ANSWER_TOKENS = 6
"""Tokens of an answer."""


@dataclass(frozen=True)
class Rate:
    """A number and where it comes from."""

    value: float | None
    """The number; None if it is not known."""
    origin: Origin

    def or_else(self, estimate: Callable[[], Rate]) -> Rate:
        """This rate, or the estimate if this rate is not known."""
        return self if self.value is not None else estimate()


UNKNOWN = Rate(None, "not known")


def choose_rate(planned: float | None, measured: float | None, otherwise: Rate = UNKNOWN) -> Rate:
    """The value in the user's plan, else the measured value, else `otherwise`."""
    if planned is not None:
        return Rate(planned, "given")
    return Rate(measured, "measured") if measured is not None else otherwise

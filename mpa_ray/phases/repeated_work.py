"""Finished work that a command does again, and failed images that a later command may visit again."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from mpa_ray.errors import ConfigError, Unfinished, did_you_mean
from mpa_ray.records import Reason
from mpa_ray.run.redo import ANY_REASON


@dataclass(frozen=True)
class Again:
    """The finished work that `--redo` and `--relevel` ask to do again."""

    reasons: frozenset[str] = frozenset()
    """Images that failed for these reasons are visited again; `ANY_REASON` stands for all."""
    relevel: bool = False
    """Whether to train again the students whose D_PI was redone after their training."""

    @classmethod
    def of(cls, redo: str | None = None, relevel: bool = False) -> Again:
        """Parse the reasons, separated by commas. Raises ConfigError if one is unknown."""
        if not isinstance(redo, str | None):
            remedy = 'Pass reasons as one text, separated by commas, such as "storage,unreadable"; "failed" is all.'
            raise ConfigError("redo", redo, f"is a {type(redo).__name__}, not text.", remedy)
        reasons = [word.strip() for word in redo.split(",")] if redo is not None else []
        known = [ANY_REASON, *map(str, Reason)]
        for reason in reasons:
            if reason not in known:
                remedy = did_you_mean(reason, known) or "The report lists the reasons; `failed` stands for all of them."
                raise ConfigError("--redo", reason, "is not a reason for which images fail.", remedy)
        return cls(frozenset(reasons), relevel)


NOTHING_AGAIN = Again()


class PassingFailures:
    """Counts the images that failed for reasons that may be temporary, in all passes of a command."""

    def __init__(self) -> None:
        """Begin with no failed images."""
        self._by_pass: list[tuple[str, Counter[str]]] = []

    def add(self, label: str, by_reason: Counter[str]) -> None:
        """Add the counts of one pass."""
        if by_reason:
            self._by_pass.append((label, by_reason))

    def check(self) -> None:
        """Raise Unfinished if any image was counted. The error says how to visit these images again."""
        if not self._by_pass:
            return
        total: Counter[str] = sum((by_reason for _, by_reason in self._by_pass), Counter())
        passes = ", ".join(f"{label} {by_reason.total()}" for label, by_reason in self._by_pass)
        reasons = ",".join(sorted(total))
        raise Unfinished(
            f"images failed for reasons that may be temporary ({passes}). Everything else is done. "
            f"The same command with --redo {reasons} visits these images again."
        )

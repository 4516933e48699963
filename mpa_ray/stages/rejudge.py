"""Apply another matcher to stored verdicts. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace

from mpa_ray.matching import Matcher
from mpa_ray.records import Reason, State, Verdict
from mpa_ray.textual import Json


def rejudge(verdict: Verdict, matches: Matcher) -> Verdict:
    """Return the verdict that another matcher gives on the answers that are stored in a verdict.

    If the teacher's answers agree according to this matcher but not according to the original matcher, the student may
    never have been asked. The pair is then dropped as `student_not_asked`. A verdict without two answers of the teacher
    is returned unchanged.
    """
    if verdict.teacher_agrees is None or verdict.answer is None or verdict.second_answer is None:
        return verdict
    agrees = matches(verdict.answer, verdict.second_answer)
    student_agrees = None if verdict.student_answer is None else matches(verdict.answer, verdict.student_answer)
    reason: Reason | None
    match agrees, student_agrees:
        case False, _:
            reason = Reason.TEACHER_INCONSISTENT
        case True, True:
            reason = Reason.STUDENT_CORRECT
        case True, False:
            reason = None
        case _:
            reason = Reason.STUDENT_NOT_ASKED
    state = State.KEPT if reason is None else State.DROPPED
    return replace(
        verdict,
        state=state.value,
        reason=None if reason is None else reason.value,
        teacher_agrees=agrees,
        student_agrees=student_agrees,
    )


_KEPT = "teacher_yes_student_no"
_NOT_ASKED = "teacher_yes_student_not_asked"


@dataclass(frozen=True)
class ParityChanges:
    """The numbers of parity samples before and after the change of the matcher, and of samples gained and lost."""

    before: int
    after: int
    gained: int
    lost: int


@dataclass
class Changes:
    """Counts how many verdicts another matcher moves from one cell to another; see `Verdict.cell`."""

    moves: Counter[tuple[str, str]] = field(default_factory=Counter)
    """The number of verdicts by their cells before and after."""

    def counted(self, verdicts: Iterable[Verdict], matches: Matcher) -> Iterator[Verdict]:
        """Yield the verdicts that another matcher gives, and count how each verdict moves."""
        for before in verdicts:
            after = rejudge(before, matches)
            self.moves[before.cell, after.cell] += 1
            yield after

    @property
    def parity(self) -> ParityChanges:
        """The change of D_PI."""
        (before, after), stayed = self._cells(), self.moves[_KEPT, _KEPT]
        return ParityChanges(before[_KEPT], after[_KEPT], after[_KEPT] - stayed, before[_KEPT] - stayed)

    def to_json(self) -> dict[str, Json]:
        """The numbers of verdicts by cell before and after, the moves, and the change of D_PI."""
        before, after = self._cells()
        return {
            "cells_before": dict(before),
            "cells_after": dict(after),
            "moves": [{"before": old, "after": new, "verdicts": n} for (old, new), n in self.moves.most_common()],
            "parity_samples": asdict(self.parity),
            "num_not_asked": after[_NOT_ASKED],
        }

    def table(self, name: str) -> str:
        """The changes as a table in text, for the terminal."""
        before, after = self._cells()
        lines = [f"{name:<38}{'before':>9}{'after':>9}"]
        lines += [f"  {cell:<36}{before[cell]:>9}{after[cell]:>9}" for cell in sorted({*before, *after})]
        parity = self.parity
        lines.append(f"  {'D_PI':<36}{parity.before:>9}{parity.after:>9}  ({parity.gained} gained, {parity.lost} lost)")
        if not_asked := after[_NOT_ASKED]:
            pairs = "1 pair" if not_asked == 1 else f"{not_asked} pairs"
            lines.append(
                f"  WARNING: for {pairs}, the teacher's answers agree according to this matcher but not "
                "according to the first one, so the student was never asked. To judge these pairs, set "
                "identify.ask_where_teacher_disagrees: true, give the student another name, and run mpa-ray identify."
            )
        return "\n".join(lines)

    def _cells(self) -> tuple[Counter[str], Counter[str]]:
        before: Counter[str] = Counter()
        after: Counter[str] = Counter()
        for (old, new), number in self.moves.items():
            before[old] += number
            after[new] += number
        return before, after

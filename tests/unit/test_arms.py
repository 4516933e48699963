"""The samples of each arm."""

from __future__ import annotations

from typing import get_args

import pytest

from mpa_ray.config import ARMS, Arm
from mpa_ray.leveling.arms import SampleSources, samples_of
from mpa_ray.records import ParitySample, Verdict

CELLS = [(True, False), (True, True), (False, None), (None, None)]
"""Whether teacher and student agree, in turn; the last pairs were not judged."""


def verdicts(count: int) -> list[Verdict]:
    rows = []
    for number in range(count):
        teacher, student = CELLS[number % 4]
        rows.append(
            Verdict(
                f"{number}#0",
                f"{number}",
                "/i",
                "dropped",
                question="?",
                answer="a",
                teacher_agrees=teacher,
                student_agrees=student,
            )
        )
    return rows


def ids(arm: Arm, count: int = 400, seed: int = 0) -> list[str]:
    rows = verdicts(count)
    parity = [row.sample() for row in rows if row.teacher_agrees and row.student_agrees is False]
    own = [ParitySample("mine", "i", "/i", "?", "a", "")]
    sources = SampleSources(lambda: parity, lambda: rows, labels=lambda: own)
    return [s.annotation_id for s in samples_of(arm, sources, seed)()]


@pytest.mark.parametrize(("arm", "size"), [("parity", 100), ("all", 300), ("consistent", 200), ("random", 100)])
def test_every_arm_has_its_size(arm: Arm, size: int) -> None:
    assert len(ids(arm)) == len(set(ids(arm))) == size
    assert set(ids(arm)) <= set(ids("all"))


def test_every_arm_has_a_description() -> None:
    assert set(ARMS) == set(get_args(Arm))


def test_a_users_labels_are_an_arm() -> None:
    assert ids("labels") == ["mine"]


def test_arm_labels_needs_a_labelled_set() -> None:
    with pytest.raises(ValueError, match="arm labels has no labelled set"):
        samples_of("labels", SampleSources(list, list), 0)


def test_the_random_arm_depends_on_the_seed_and_mixes_all_cells() -> None:
    assert ids("random") == ids("random")
    assert set(ids("random", seed=1)) != set(ids("random"))
    cells = [int(name.removesuffix("#0")) % 4 for name in ids("random")]
    assert all(15 < cells.count(cell) < 55 for cell in (0, 1, 2))
    assert 3 not in cells

"""Phases of a run: each has its own label and file, and its record sums over attempts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpa_ray.config import Arm, ObjectStoreConfig
from mpa_ray.observability.usage import Usage
from mpa_ray.run.phase_record import (
    PassTotals,
    PhaseKey,
    PhaseKind,
    PhaseRecord,
    add_to_record,
    clear_error,
    phase_record,
    phase_records,
    record_times,
)
from mpa_ray.run.run import Run
from tests.s3_server import CREDENTIALS, s3_server

OpenRun = Callable[[], Run]

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]*", fullmatch=True)
keys = st.builds(PhaseKey, st.sampled_from(get_args(PhaseKind)), st.none() | names, st.sampled_from(get_args(Arm)))


@given(keys)
def test_a_key_is_read_back_from_its_path(key: PhaseKey) -> None:
    assert PhaseKey.from_path(key.path) == key


@given(keys, keys)
def test_two_phases_share_neither_a_path_nor_a_label(one: PhaseKey, other: PhaseKey) -> None:
    assert (one.path == other.path) == (one.label == other.label) == (one == other)


def test_a_student_whose_name_ends_like_an_arm_has_its_own_record() -> None:
    """Student `x` on arm `all`, and student `x.all`."""
    assert PhaseKey("level", "x", "all").path != PhaseKey("level", "x.all").path


def test_a_record_sums_over_attempts(tmp_path: Path) -> None:
    run, key = Run.open(str(tmp_path)), PhaseKey("annotate")
    add_to_record(run, key, PhaseRecord(2.0, 1))
    totals = PassTotals(num_images=8, num_images_by_models=16, working_s=4.0, usage=Usage(num_output_tokens=5))
    add_to_record(run, key, PhaseRecord(6.0, 1, totals))
    add_to_record(run, key, PhaseRecord(6.0, 1, totals))
    ((stored_key, record),) = phase_records(run)
    assert stored_key == key
    assert (record.wall_s, record.num_attempts) == (14.0, 3)
    assert record.totals is not None
    assert (record.totals.num_images, record.totals.images_per_s) == (16, 2.0)
    assert record.totals.usage.num_output_tokens == 10


@pytest.fixture(params=["folder", "bucket"])
def open_run(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenRun]:
    """Opens the same run again and again, as several drivers do."""
    if request.param == "folder":
        yield lambda: Run.open(str(tmp_path))
        return
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with s3_server() as endpoint:
        yield lambda: Run.open("s3://bucket/run", ObjectStoreConfig(endpoint_url=endpoint))


def test_no_driver_loses_the_attempts_of_another(open_run: OpenRun) -> None:
    """Each of eight drivers adds attempts at the same phase. In earlier versions, the record was read and written
    again, and lost some attempts."""
    key = PhaseKey("level", "x.all", "random")

    def drive(_: int) -> None:
        run = open_run()
        for _ in range(3):
            add_to_record(run, key, PhaseRecord(1.0, 1))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(drive, range(8)))
    run = open_run()
    assert dict(phase_records(run)) == {key: PhaseRecord(24.0, 24)}
    assert record_times(run).keys() == {key.path}
    assert len(list(run.storage.list("phases"))) == 24


def test_no_file_of_a_record_is_changed(tmp_path: Path) -> None:
    run, key = Run.open(str(tmp_path)), PhaseKey("annotate")
    # As an earlier version wrote it: one file with the sums of three attempts.
    run.write_json(key.path, PhaseRecord(9.0, 3, error="3 of 3 images failed.").to_json())
    stored = run.storage.read(key.path)
    clear_error(run, key)
    assert phase_record(run, key) == PhaseRecord(9.0, 3, is_begun_again=True)
    clear_error(run, key)
    add_to_record(run, key, PhaseRecord(1.0, 1, error="disk full"))
    assert phase_record(run, key) == PhaseRecord(10.0, 4, error="disk full")
    assert run.storage.read(key.path) == stored
    assert list(run.storage.list("phases")) == [
        "phases/annotate.json",
        "phases/annotate~1.json",
        "phases/annotate~2.json",
    ]

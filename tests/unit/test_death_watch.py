"""The lines that a pass prints when its processes die."""

from __future__ import annotations

import threading

import pytest

from mpa_ray.pipeline.death_watch import Deaths, DeathWatch


def test_each_change_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    killed, no_memory = Deaths(1, "engine of teacher: killed"), Deaths(3, "engine of teacher: no memory")
    reports = iter([Deaths(), killed, None, killed, no_memory, no_memory])
    is_done = threading.Event()

    def deaths() -> Deaths | None:
        try:
            return next(reports)
        except StopIteration:
            is_done.set()
            return None

    with DeathWatch("annotate:teacher", deaths, interval_s=0.001):
        assert is_done.wait(30)
    assert capsys.readouterr().out.splitlines() == [
        "annotate:teacher: 1 process died so far; the latest: engine of teacher: killed",
        "annotate:teacher: 3 processes died so far; the latest: engine of teacher: no memory",
    ]

"""Ray Train in a separate thread: in the main thread, it would end an interrupted command with exit code 0."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mpa_ray.leveling.driver import _fit_in_thread
from mpa_ray.observability.log_context import _fields, log_context


def test_a_training_does_not_run_in_the_main_thread_and_keeps_its_log_fields() -> None:
    seen: list[tuple[threading.Thread, Any]] = []
    trainer = SimpleNamespace(fit=lambda: seen.append((threading.current_thread(), _fields.get())))
    with log_context(student="small"):
        _fit_in_thread(cast(Any, trainer))
    ((thread, fields),) = seen
    assert thread is not threading.main_thread()
    assert fields["student"] == "small"


def test_its_error_is_raised_in_the_caller() -> None:
    def fail() -> None:
        raise ValueError("no samples")

    with pytest.raises(ValueError, match="no samples"):
        _fit_in_thread(cast(Any, SimpleNamespace(fit=fail)))

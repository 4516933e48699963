"""Where lines of Ray's own processes are printed."""

from __future__ import annotations

import pytest
import ray._private.worker as ray_worker

from mpa_ray.pipeline import cluster


def test_warnings_of_ray_go_where_other_lines_of_libraries_go(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # `listen_error_messages` in Ray calls the function by its name in this module.
    assert "print_to_stdstream" in ray_worker.listen_error_messages.__code__.co_names
    monkeypatch.setattr(ray_worker, "print_to_stdstream", ray_worker.print_to_stdstream)
    cluster._send_warnings_to_stderr()
    cluster._send_warnings_to_stderr()
    line = {"lines": ["WARNING: 8 PYTHON worker processes have been started"], "pid": "raylet", "is_err": False}
    ray_worker.print_to_stdstream(line, ignore_prefix=False)
    ray_worker.stdout_deduplicator.flush()
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("8 PYTHON worker processes") == 1

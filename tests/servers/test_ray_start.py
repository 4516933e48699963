"""A Ray that does not start on this machine."""

from __future__ import annotations

import pytest
import ray

from mpa_ray.errors import Unfinished
from mpa_ray.pipeline.cluster import start_ray


@pytest.fixture
def init_raises(monkeypatch: pytest.MonkeyPatch) -> list[Exception]:
    """The error that Ray raises when it starts."""
    errors: list[Exception] = []

    def init(**_: object) -> None:
        raise errors[0]

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", init)
    return errors


def test_a_slow_start_of_ray_ends_in_one_line(init_raises: list[Exception]) -> None:
    """In earlier versions, it ended with a traceback."""
    init_raises.append(Exception("The current node timed out during startup.\nThe GCS has become overloaded."))
    with pytest.raises(Unfinished) as error:
        start_ray()
    assert str(error.value) == (
        "Ray did not start on this machine: The current node timed out during startup. The GCS has become overloaded. "
        "Run the same command again to continue."
    )


def test_another_error_of_ray_is_not_hidden(init_raises: list[Exception]) -> None:
    init_raises.append(KeyError("a fault of Ray"))
    with pytest.raises(KeyError, match="a fault of Ray"):
        start_ray()

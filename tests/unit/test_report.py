"""What a report warns of."""

from __future__ import annotations

import pytest

from mpa_ray.config import ModelConfig, VllmEngineConfig
from mpa_ray.report.collect import forgetting, teacher_warnings


def test_a_second_pass_that_was_not_free_is_told_with_model_and_block_size() -> None:
    model = ModelConfig(model="some/teacher", engine=VllmEngineConfig(block_size=128))
    found = {"num_second_answers": 40, "num_visits_with_uncached_image": 3, "num_uncached_image_tokens": 96}
    (warning,) = teacher_warnings(found, model)
    assert all(part in warning for part in ("3 of 40", "96", "some/teacher", "128"))
    assert teacher_warnings({**found, "num_visits_with_uncached_image": 0}, model) == []


@pytest.mark.parametrize(
    ("retained", "warned"),
    [
        ({"num": 120, "before": 100, "after": 95}, False),
        ({"num": 120, "before": 100, "after": 94}, True),
        ({"num": 0, "before": 0, "after": 0}, False),
        ({"num": 10, "before": 10}, False),
    ],
)
def test_losing_over_a_twentieth_of_the_retained_pairs_is_warned_of(retained: dict[str, int], warned: bool) -> None:
    assert (forgetting(retained) is not None) == warned

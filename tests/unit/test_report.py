"""What a report warns of."""

from __future__ import annotations

from mpa_ray.config import ModelConfig, VllmEngineConfig
from mpa_ray.report.collect import teacher_warnings


def test_a_second_pass_that_was_not_free_is_told_with_model_and_block_size() -> None:
    model = ModelConfig(model="some/teacher", engine=VllmEngineConfig(block_size=128))
    found = {"num_second_answers": 40, "num_visits_with_uncached_image": 3, "num_uncached_image_tokens": 96}
    (warning,) = teacher_warnings(found, model)
    assert all(part in warning for part in ("3 of 40", "96", "some/teacher", "128"))
    assert teacher_warnings({**found, "num_visits_with_uncached_image": 0}, model) == []

"""Image tokens of public models, from their settings, against their processors, for odd sizes and for all models."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.families import picture
from tests.public_models import NAMES, num_tokens, public_model, rule_of

SIZES = [
    *((1000, 1000), (1200, 900), (850, 1100), (1800, 600)),
    *((40, 30), (33, 1000), (1000, 33), (448, 448), (1920, 1080), (3000, 2000)),
]


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in NAMES if public_model(name).preprocessor_config])
def test_image_tokens_of_odd_sizes_are_those_of_the_processor(name: str, tmp_path: Path) -> None:
    processor, rule = public_model(name).processor(tmp_path), rule_of(public_model(name))
    expected = {size: num_tokens(processor, picture(size)) for size in SIZES}
    assert {size: rule.tokens(*size) for size in SIZES} == expected

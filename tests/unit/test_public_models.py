"""Sizes and image tokens of public models, from their true settings, against their authors and their processors."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from transformers import CONFIG_MAPPING

from mpa_ray.config import ModelConfig
from mpa_ray.imaging.image_tokens import ImageTokenRule, image_token_rule
from mpa_ray.imaging.prepare import ImageScaling, PreparedImage
from mpa_ray.models.omitted_settings import TEXT_DEFAULTS, VISION_DEFAULTS, with_defaults
from mpa_ray.sizing.architecture import architecture_of
from tests.families import file_of, picture
from tests.public_models import NAMES, PublicModel, public_model

LIMITS = ModelConfig(model="m").min_pixels, ModelConfig(model="m").max_pixels
SHAPES = {"1:1": (1000, 1000), "4:3": (1200, 900), "letter page": (850, 1100), "3:1": (1800, 600)}
FURTHER_SIZES = [(40, 30), (33, 1000), (1000, 33), (448, 448), (1920, 1080), (3000, 2000)]
WITH_PROCESSORS = [name for name in NAMES if public_model(name).preprocessor_config]


@pytest.mark.parametrize("name", NAMES)
def test_the_parameters_of_public_models_are_counted(name: str) -> None:
    model = public_model(name)
    billions = architecture_of(model.config, name).total / 1e9
    # TinyLLaVA's parameters are published with a single digit after the point.
    rounding = 0.05 if name == "tinyllava-2b" else 0.0
    assert abs(billions - model.published_parameters) <= 0.02 * model.published_parameters + rounding


def rule_of(model: PublicModel) -> ImageTokenRule:
    rule = image_token_rule(with_defaults(model.config), model.preprocessor_config)
    assert rule is not None
    return rule


@cache
def processor_of(name: str, folder: Path) -> Any:
    return public_model(name).processor(folder)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processor")


def num_tokens(processor: Any, image: Any, **arguments: Any) -> int:
    """The tokens that the processor writes into a prompt for an image."""
    placeholder = getattr(processor, "boi_token", processor.image_token)
    ids = processor(text=[placeholder], images=[[image]], return_tensors="pt", **arguments)["input_ids"][0]
    tokenizer = processor.tokenizer
    image_token = getattr(processor, "image_token_id", None) or tokenizer.convert_tokens_to_ids(processor.image_token)
    return int((ids == image_token).sum())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", WITH_PROCESSORS)
def test_image_tokens_are_those_of_the_processor(name: str, shape: str, folder: Path) -> None:
    processor, rule, size = processor_of(name, folder), rule_of(public_model(name)), SHAPES[shape]
    assert rule.tokens(*size) == num_tokens(processor, picture(size))
    scaling = ImageScaling.of(processor, *LIMITS)
    prepared = scaling.prepare(file_of(size))
    assert isinstance(prepared, PreparedImage)
    arguments = scaling.processor_arguments([prepared.image])
    assert rule.scaled_tokens(*size, *LIMITS) == num_tokens(processor, prepared.image, **arguments)


@pytest.mark.parametrize("name", [n for n in WITH_PROCESSORS if n.split("-")[0] not in ("gemma3", "paligemma")])
def test_image_tokens_of_odd_sizes_are_those_of_the_processor(name: str, folder: Path) -> None:
    processor, rule = processor_of(name, folder), rule_of(public_model(name))
    expected = {size: num_tokens(processor, picture(size)) for size in FURTHER_SIZES}
    assert {size: rule.tokens(*size) for size in FURTHER_SIZES} == expected


@pytest.mark.parametrize("name", NAMES)
def test_no_image_has_more_tokens_than_the_most(name: str) -> None:
    rule = rule_of(public_model(name))
    most = rule.most_tokens(*LIMITS)
    sizes = [(width, height) for width in range(20, 3000, 97) for height in range(20, 3000, 89)]
    tokens = [rule.scaled_tokens(*size, *LIMITS) for size in sizes if max(size) <= 100 * min(size)]
    assert 0.95 * most <= max(tokens) <= most


def test_the_defaults_that_config_json_omits_are_those_of_transformers() -> None:
    for model_type, defaults in (TEXT_DEFAULTS | VISION_DEFAULTS).items():
        of_library = CONFIG_MAPPING[model_type]()
        for name, value in defaults.items():
            expected = getattr(of_library, name)
            assert value == (list(expected) if isinstance(expected, tuple) else expected), (model_type, name)

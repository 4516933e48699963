"""Sizes and image tokens of public models, from their true settings, against their authors and their processors."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from transformers import CONFIG_MAPPING

from mpa_ray.config import ModelConfig, ObjectStoreConfig, PlanConfig
from mpa_ray.errors import ConfigError
from mpa_ray.imaging.prepare import ImageScaling, PreparedImage
from mpa_ray.models.checkpoints import processor_settings
from mpa_ray.models.omitted_settings import TEXT_DEFAULTS, VISION_DEFAULTS
from mpa_ray.sizing.architecture import architecture_of
from mpa_ray.sizing.models import Models, num_parameters
from tests.families import file_of
from tests.public_models import NAMES, checkpoint, num_tokens, public_model, rule_of

LIMITS = ModelConfig(model="m").min_pixels, ModelConfig(model="m").max_pixels
SHAPES = {"1:1": (1000, 1000), "4:3": (1200, 900), "letter page": (850, 1100), "3:1": (1800, 600)}
FAMILIES = ("qwen2-vl-2b", "qwen3-vl-2b", "smolvlm-500m", "internvl3-2b-hf", "llava-ov-7b", "llava-1.5-7b", "gemma3-4b")


@pytest.mark.parametrize("name", NAMES)
def test_the_parameters_of_public_models_are_counted(name: str) -> None:
    model = public_model(name)
    billions = architecture_of(model.config, name).total / 1e9
    # TinyLLaVA's parameters are published with a single digit after the point.
    rounding = 0.05 if name == "tinyllava-2b" else 0.0
    assert abs(billions - model.published_parameters) <= 0.02 * model.published_parameters + rounding


@cache
def processor_of(name: str, folder: Path) -> Any:
    return public_model(name).processor(folder)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processor")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", [*FAMILIES, "paligemma-3b"])
def test_image_tokens_are_those_of_the_processor(name: str, shape: str, folder: Path) -> None:
    processor, rule, size = processor_of(name, folder), rule_of(public_model(name)), SHAPES[shape]
    scaling = ImageScaling.of(processor, *LIMITS)
    prepared = scaling.prepare(file_of(size))
    assert isinstance(prepared, PreparedImage)
    arguments = scaling.processor_arguments([prepared.image])
    assert rule.scaled_tokens(*size, *LIMITS) == num_tokens(processor, prepared.image, **arguments)


@pytest.mark.parametrize("name", NAMES)
def test_no_image_has_more_tokens_than_the_most(name: str) -> None:
    rule = rule_of(public_model(name))
    most = rule.most_tokens(*LIMITS)
    sizes = [(width, height) for width in range(20, 3000, 97) for height in range(20, 3000, 89)]
    tokens = [rule.scaled_tokens(*size, *LIMITS) for size in sizes if max(size) <= 100 * min(size)]
    assert 0.95 * most <= max(tokens) <= most


def test_the_defaults_that_config_json_omits_are_those_of_transformers() -> None:
    for model_type, defaults in (TEXT_DEFAULTS | VISION_DEFAULTS).items():
        part = model_type.removesuffix("_vision") if model_type.endswith("vl_vision") else None
        of_library = CONFIG_MAPPING[model_type]() if part is None else CONFIG_MAPPING[part]().vision_config
        for name, value in defaults.items():
            expected = getattr(of_library, name, value)
            assert value == (list(expected) if isinstance(expected, tuple) else expected), (model_type, name)


def test_students_are_ordered_by_their_parameters(tmp_path: Path) -> None:
    """The order in which `align` admits students: also of those whose config.json omits sizes."""
    names = ["gemma3-4b", "smolvlm-500m", "llava-1.5-7b", "qwen2-vl-2b", "internvl3-2b-hf"]
    students = [ModelConfig(model=checkpoint(tmp_path / name, name)) for name in names]
    ordered = sorted(students, key=lambda student: num_parameters(student, ObjectStoreConfig()))
    smallest_first = ["smolvlm-500m", "internvl3-2b-hf", "qwen2-vl-2b", "gemma3-4b", "llava-1.5-7b"]
    assert [Path(student.model).name for student in ordered] == smallest_first
    assert num_parameters(ModelConfig(model=str(tmp_path / "missing")), ObjectStoreConfig()) == 0


def test_a_plan_counts_image_tokens_with_the_settings_and_arguments_of_the_processor(tmp_path: Path) -> None:
    models = Models(PlanConfig(), ObjectStoreConfig(), [])
    smolvlm = ModelConfig(model=checkpoint(tmp_path / "smolvlm", "smolvlm-500m"))
    # 16 tiles and the whole image, each with 64 tokens.
    assert models.image_tokens(smolvlm) == 17 * 64
    internvl = checkpoint(tmp_path / "internvl", "internvl3-2b-hf")
    assert models.image_tokens(ModelConfig(model=internvl)) == 13 * 256
    for arguments, num_tiles in (({"crop_to_patches": False}, 1), ({"images_kwargs": {"max_patches": 4}}, 5)):
        engine = {"engine_args": {"mm_processor_kwargs": arguments}}
        assert models.image_tokens(ModelConfig.model_validate({"model": internvl, "engine": engine})) == num_tiles * 256
    assert not models.notes


IMPOSSIBLE: list[tuple[str, dict[str, Any]]] = [
    ("internvl3-2b-hf", {"max_patches": 10**9}),
    ("internvl3-2b-hf", {"max_patches": "many"}),
    ("internvl3-2b-hf", {"size": {"height": None}}),
    ("llava-ov-7b", {"image_grid_pinpoints": [[0, 0]]}),
    ("llava-ov-7b", {"size": {"height": 10**9}, "image_grid_pinpoints": [[384]]}),
    ("smolvlm-500m", {"max_image_size": {"longest_edge": -1}}),
    ("smolvlm-500m", {"size": "large"}),
    ("qwen2-vl-2b", {"size": {"shortest_edge": 10**20, "longest_edge": 10**30}}),
    ("qwen2-vl-2b", {"patch_size": 1e-320}),
]


@pytest.mark.parametrize(("name", "change"), IMPOSSIBLE)
def test_impossible_settings_of_a_processor_are_an_error(name: str, change: dict[str, Any]) -> None:
    model = public_model(name)
    with pytest.raises(ConfigError, match="lacks a size"):
        architecture_of(model.config, name, {**model.preprocessor_config, **change})


def test_settings_of_the_processor_may_be_in_either_file(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "smolvlm", "smolvlm-500m")
    expected = public_model("smolvlm-500m").preprocessor_config
    assert processor_settings(folder, ObjectStoreConfig()) == expected
    Path(folder, "preprocessor_config.json").unlink()
    assert processor_settings(folder, ObjectStoreConfig()) == {}
    Path(folder, "processor_config.json").write_text(json.dumps({"image_processor": expected, "image_seq_len": 64}))
    assert processor_settings(folder, ObjectStoreConfig()) == expected


DOCUMENTED = {
    "Qwen2-VL, Qwen2.5-VL": ("qwen2-vl-2b", "qwen2-vl-7b", "qwen2.5-vl-7b"),
    "Qwen3-VL": ("qwen3-vl-2b", "qwen3-vl-8b"),
    "SmolVLM-500M": ("smolvlm-500m",),
    "InternVL2.5, InternVL3 (`-hf`)": ("internvl2.5-8b-mpo-hf", "internvl3-2b-hf"),
    "LLaVA-OneVision": ("llava-ov-7b",),
    "LLaVA-1.5": ("llava-1.5-7b",),
    "Gemma 3, PaliGemma": ("gemma3-4b", "paligemma-3b"),
}


@pytest.mark.parametrize("family", DOCUMENTED)
def test_the_documented_image_tokens_are_right(family: str) -> None:
    page = (Path(__file__).parents[2] / "docs/models.md").read_text()
    (row,) = (line for line in page.splitlines() if line.startswith(f"| {family} |"))
    for name in DOCUMENTED[family]:
        rule = rule_of(public_model(name))
        tokens = [rule.scaled_tokens(*size, *LIMITS) for size in SHAPES.values()]
        assert row.startswith(f"| {family} | {' | '.join(map(str, [*tokens, rule.most_tokens(*LIMITS)]))} |")

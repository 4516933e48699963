"""The files of examples/: each loads, its models fit the GPUs that it names, and its own files can be read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mpa_ray.config import ObjectStoreConfig, RunConfig, load_config
from mpa_ray.corpus.places.places import Places
from mpa_ray.evaluation.benchmarks import check_images, read_benchmark
from mpa_ray.sizing.plan import size_run
from mpa_ray.sizing.render import render_sizing
from mpa_ray.tasks.library import find_task
from tests.unit.test_sizing import QWEN2_VL_2B, QWEN2_VL_7B

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.name for path in ROOT.glob("examples/*.yaml"))

SMOLVLM_500M = {
    "model_type": "idefics3",
    "scale_factor": 4,
    "text_config": {
        "hidden_size": 960,
        "intermediate_size": 2560,
        "num_hidden_layers": 32,
        "num_attention_heads": 15,
        "num_key_value_heads": 5,
        "head_dim": 64,
        "max_position_embeddings": 8192,
        "vocab_size": 49280,
    },
    "tie_word_embeddings": False,
    "vision_config": {
        "hidden_size": 768,
        "image_size": 512,
        "patch_size": 16,
        "num_hidden_layers": 12,
        "intermediate_size": 3072,
    },
}
"""The sizes of HuggingFaceTB/SmolVLM-500M-Instruct, whose card counts 0.51 billion parameters. Its own config.json
leaves the vision model's depth and inner width to the defaults of transformers."""

SETTINGS = {
    "Qwen/Qwen2-VL-7B-Instruct": QWEN2_VL_7B,
    "Qwen/Qwen2-VL-2B-Instruct": QWEN2_VL_2B,
    "HuggingFaceTB/SmolVLM-500M-Instruct": SMOLVLM_500M,
    "s3://my-bucket/adapters/qwen2b-menus": QWEN2_VL_2B,
}
"""config.json of every model that an example names."""


def load_without_network(path: str, tmp_path: Path, **more: str) -> RunConfig:
    """A file whose models become local folders, and whose run is empty, so that planning needs no network."""
    config = load_config(path)
    overrides = {"run_dir": str(tmp_path / "run"), **more}
    models = {"teacher": config.teacher.model}
    models |= {f"students.{n}": student.model for n, student in enumerate(config.students)}
    models |= {f"evaluate.models.{n}": m.model for n, m in enumerate(config.evaluate.models if config.evaluate else [])}
    for where, model in models.items():
        overrides[f"{where}.model"] = str(checkpoint(tmp_path, model))
    return load_config(path, overrides)


def checkpoint(root: Path, model: str) -> Path:
    """A folder with the model's config.json."""
    folder = root / model.replace("/", "@")
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(SETTINGS[model]))
    return folder


def test_there_is_an_example_for_each_use() -> None:
    uses = ("one_gpu", "four_gpus", "s3", "own_questions", "own_task", "many_students")
    assert {f"{use}.yaml" for use in uses} <= set(EXAMPLES)


def check_sizing(config: RunConfig) -> None:
    sizing = size_run(config)
    page = render_sizing(sizing)
    assert sizing.is_complete, page
    assert {check.result for check in sizing.checks} == {"fits"}, page
    assert sizing.gpu_hours > 0


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_planned_completely_and_fits_its_gpus(name: str, tmp_path: Path) -> None:
    check_sizing(load_without_network(str(ROOT / "examples" / name), tmp_path))


def test_the_file_in_the_readme_fits_a_gpu_with_48_gb(tmp_path: Path) -> None:
    (shown,) = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "my.yaml").write_text(shown)
    plan = {"plan.num_images": "1000", "plan.gpu": "L40S"}
    check_sizing(load_without_network(str(tmp_path / "my.yaml"), tmp_path, **plan))


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_task_of_an_example_exists(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert find_task(load_config(f"examples/{name}").task)


def test_the_questions_of_an_example_can_be_read_and_have_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    settings: Any = load_config("examples/own_questions.yaml").evaluate
    (benchmark,) = settings.benchmarks
    questions = list(read_benchmark(benchmark, Places(ObjectStoreConfig())))
    check_images(questions)
    assert len(questions) == load_config("examples/own_questions.yaml").plan.num_benchmark_questions  # type: ignore[union-attr]
    assert {question.family for question in questions} == {"amount", "fact", "count"}

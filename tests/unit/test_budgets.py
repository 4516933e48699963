"""What an engine is given for the largest image: tokens of a batch, memory of the cache, and the longest sequence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mpa_ray.config import (
    MeasuredModel,
    ModelConfig,
    ObjectStoreConfig,
    RunConfig,
    ScriptedEngineConfig,
    VllmEngineConfig,
)
from mpa_ray.engine.vllm.arguments import engine_arguments
from mpa_ray.engine.vllm.budgets import ImageBudget, batch_tokens, default_batch_tokens
from mpa_ray.models.shared_engines import EngineGroup
from mpa_ray.phases.annotate import annotation_pass
from mpa_ray.phases.answering import answer_pass
from mpa_ray.phases.context import RunContext
from mpa_ray.phases.identify import verdict_pass
from mpa_ray.run.phase_record import PhaseKey
from mpa_ray.sizing.architecture import architecture_of
from mpa_ray.sizing.models import read_architecture
from mpa_ray.sizing.plan import size_run
from mpa_ray.sizing.sequence import VisitText
from mpa_ray.tasks.library import TASKS
from tests.conftest import scripted_tree
from tests.public_models import NAMES, checkpoint, public_model

H100, L4 = 16384, 8192
"""vLLM's own defaults for work in batches."""
TEXT = VisitText(num_prompt_bytes=600, max_new_tokens=256)


def served(model: str, **settings: Any) -> ModelConfig:
    return ModelConfig.model_validate({"model": model, **settings})


def arguments_of(model: ModelConfig, on_cpu: bool, default: int | None = None) -> dict[str, Any]:
    settings = model.engine
    assert isinstance(settings, VllmEngineConfig)
    return engine_arguments(model, settings, on_cpu, {}, default)


def test_a_batch_holds_the_largest_image(tmp_path: Path) -> None:
    """InternVL makes 13 tiles of 256 tokens of an image at 4:3; vLLM's default on CPUs is 2,048 tokens."""
    internvl = served(checkpoint(tmp_path / "internvl", "internvl3-2b-hf"))
    assert arguments_of(internvl, on_cpu=True)["max_num_batched_tokens"] >= 3328
    assert arguments_of(internvl, on_cpu=False, default=L4)["max_num_batched_tokens"] == L4
    onevision = served(checkpoint(tmp_path / "onevision", "llava-ov-7b"), max_pixels=2304 * 2304)
    # 9 tiles and the whole image of 729 tokens each, and a token at the end of each row.
    assert arguments_of(onevision, on_cpu=False, default=L4)["max_num_batched_tokens"] >= 7290
    large = served(checkpoint(tmp_path / "qwen", "qwen2-vl-2b"), max_pixels=12_845_056)
    assert arguments_of(large, on_cpu=False, default=H100)["max_num_batched_tokens"] >= 16384
    assert arguments_of(large, on_cpu=True)["max_num_batched_tokens"] >= 16384


@pytest.mark.parametrize("name", ["qwen2-vl-2b", "gemma3-4b"])
def test_a_batch_on_a_gpu_is_never_smaller_than_the_default_of_vllm(name: str, tmp_path: Path) -> None:
    model = served(checkpoint(tmp_path / name, name))
    assert "max_num_batched_tokens" not in arguments_of(model, on_cpu=True)
    assert arguments_of(model, on_cpu=False, default=H100)["max_num_batched_tokens"] == H100
    assert arguments_of(served("owner/unknown"), on_cpu=False, default=L4)["max_num_batched_tokens"] == L4
    assert batch_tokens(None, None) is None


def test_the_default_for_work_in_batches_is_that_of_the_installed_vllm() -> None:
    """On this machine without a GPU, vLLM's default is 4,096 tokens for each CPU engine."""
    assert default_batch_tokens(1) in (4096, L4, H100)


def test_arguments_of_the_user_override_the_budgets(tmp_path: Path) -> None:
    engine_args = {"max_num_batched_tokens": 4096, "mm_processor_cache_gb": 0.5, "max_model_len": 999}
    folder = checkpoint(tmp_path / "internvl", "internvl3-2b-hf")
    model = served(folder, engine={"engine_args": engine_args})
    assert engine_args.items() <= arguments_of(model, on_cpu=False, default=L4).items()
    assert TEXT.with_limit(model, read_architecture(model, ObjectStoreConfig())) == model
    untiled = served(folder, engine={"engine_args": {"mm_processor_kwargs": {"crop_to_patches": False}}})
    assert "max_num_batched_tokens" not in arguments_of(untiled, on_cpu=True)


def test_the_cache_holds_the_images_in_flight(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "internvl", "internvl3-2b-hf")
    budget = ImageBudget.of(served(folder))
    assert budget is not None
    assert budget.num_bytes == 13 * 448 * 448 * 3 * 4
    for num_images in (1, 71, 282):
        model = served(folder, max_images_in_flight=num_images)
        num_bytes = arguments_of(model, on_cpu=False, default=L4)["mm_processor_cache_gb"] * 2**30
        assert num_bytes >= 1.25 * num_images * budget.num_bytes
        assert num_bytes <= max(2**30, 1.25 * num_images * budget.num_bytes + 2**28)
    # Two frames of 512 squares of 28 pixels, 71 images.
    qwen = served(checkpoint(tmp_path / "qwen", "qwen2-vl-2b"))
    assert arguments_of(qwen, on_cpu=True)["mm_processor_cache_gb"] == 1.0
    more = qwen.model_copy(update={"engine": VllmEngineConfig(max_num_seqs=256)})
    assert arguments_of(more, on_cpu=True)["mm_processor_cache_gb"] == 3.25


@pytest.mark.parametrize("content", ["[]", '{"model_type": "qwen2_vl", "vision_config": {"patch_size": "x"}}', "{"])
def test_damaged_settings_leave_the_budgets_to_vllm(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    assert ImageBudget.of(served(str(tmp_path))) is None


@pytest.mark.parametrize(("max_reasoning_tokens", "reasoning"), [(0, 0), (None, 2048), (3000, 3000)])
@pytest.mark.parametrize("name", NAMES)
def test_the_longest_sequence_is_what_a_visit_needs(
    name: str, max_reasoning_tokens: int | None, reasoning: int
) -> None:
    public = public_model(name)
    model = served("m").model_copy(update={"max_reasoning_tokens": max_reasoning_tokens})
    sizes = architecture_of(public.config, name, public.preprocessor_config)
    image_tokens = sizes.image_rule.most_tokens(model.min_pixels, model.max_pixels)
    num_tokens = TEXT.sequence_tokens(model, sizes)
    if sizes.max_position_embeddings <= 4096:
        assert num_tokens is None or num_tokens < sizes.max_position_embeddings
    else:
        assert num_tokens is not None
        text = 600 + 256 + 2048 + reasoning
        assert image_tokens + text <= num_tokens <= 1.05 * image_tokens + text + 64


def test_a_family_without_a_rule_keeps_the_limit_of_the_model() -> None:
    config = {**public_model("qwen2-vl-2b").config, "model_type": "glm4v"}
    assert TEXT.sequence_tokens(served("m"), architecture_of(config, "m")) is None


def test_passes_serve_models_with_the_length_that_a_visit_needs(images: Path, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "qwen3", "qwen3-vl-2b")
    config = RunConfig.model_validate(scripted_tree(images, tmp_path / "run"))
    vllm = VllmEngineConfig()
    teacher = config.teacher.model_copy(update={"model": folder, "engine": vllm})
    student = config.students[0].model_copy(update={"model": folder, "engine": vllm})
    context = RunContext.from_checked(config.model_copy(update={"teacher": teacher, "students": [student]}))
    name = MeasuredModel(student.name, None).name
    group, run = EngineGroup.single(name, student), context.run
    passes = [
        annotation_pass(context),
        verdict_pass(context, group),
        answer_pass(context, PhaseKey("evaluate", name), group, run.questions("q"), run.predictions("q", name)),
    ]
    (length,) = {work.model.engine.max_sequence_tokens for work in passes}
    assert length is not None
    # The model's own limit is 262,144.
    assert 392 + 2048 < length < 8192
    set_by_user = teacher.model_copy(update={"engine": VllmEngineConfig(max_model_len=777)})
    context = RunContext.from_checked(config.model_copy(update={"teacher": set_by_user}))
    assert annotation_pass(context).model == set_by_user
    scripted = RunContext.from_checked(config)
    assert isinstance(annotation_pass(scripted).model.engine, ScriptedEngineConfig)


def test_a_plan_checks_the_memory_of_that_length(images: Path, tmp_path: Path) -> None:
    """A cache for one sequence of 262,144 tokens would not fit on this GPU."""
    tree = scripted_tree(images, tmp_path / "run")
    folder = checkpoint(tmp_path / "qwen3", "qwen3-vl-2b")
    tree["teacher"] = {"model": folder, "gpus_per_replica": 1}
    tree["plan"] = {"num_images": 10, "gpu": "L4"}
    (check, *_) = size_run(RunConfig.model_validate(tree)).checks
    assert check.result == "fits"
    tree["teacher"]["engine"] = {"max_model_len": 262144}
    (check, *_) = size_run(RunConfig.model_validate(tree)).checks
    assert check.result == "does not fit"


def test_the_text_of_a_visit_is_that_of_the_task_and_its_replies(images: Path, tmp_path: Path) -> None:
    task = TASKS["demo_world"]
    tree = scripted_tree(images, tmp_path / "run")
    tree |= {"annotate": {"sampling": {"max_new_tokens": 900}}, "answer": {"max_new_tokens": 40}}
    text = VisitText.of(RunConfig.model_validate(json.loads(json.dumps(tree))), task)
    assert text.max_new_tokens == 900
    assert text.num_prompt_bytes >= len(task.annotation_prompt(as_json=True))

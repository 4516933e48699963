"""What the GPU measurements share."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import shapes
from benchmarks.gpu.check import MODULES, check_imports
from benchmarks.gpu.measuring import GpuMonitor, Options, Record, parse_options
from benchmarks.gpu.second_question import Timings, Totals
from benchmarks.gpu.serving import Serving
from mpa_ray.config import ModelConfig


def test_every_core_module_that_check_names_can_be_imported() -> None:
    assert "failed" not in check_imports(MODULES["core"])


def test_imports_that_fail_are_named() -> None:
    row = check_imports(("json", "no_such_module"))
    assert row["imported"] == ["json"]
    assert row["failed"] == {"no_such_module": "ModuleNotFoundError: No module named 'no_such_module'"}


def test_totals_follow_from_the_timings() -> None:
    timings = Timings(448, 8, 256, 300, 20, 0.0, 1.0, 10.0, 100.0, 80.0, 20.0, 2.0)
    totals = Totals.of(timings, first_tokens=32, second_tokens=8)
    assert totals == Totals(260.0, 200.0, 1.3, 1.5, 0.75, 0.1)


def parse(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", ["script.py", "--out", "x.json", *arguments])
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", type=int, default=896)
    parser.add_argument("--num-images", type=int, default=320)
    return parse_options(parser, {"side": 112, "num_images": 24})


def test_a_dry_run_replaces_defaults_only(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {"out": Path("x.json"), "dry_run": False, "side": 896, "num_images": 320}
    assert parse(monkeypatch) == expected
    assert parse(monkeypatch, "--dry-run", "--side", "56") == {
        **expected,
        "dry_run": True,
        "side": 56,
        "num_images": 24,
    }


def test_a_record_keeps_its_rows_and_its_exit_code(tmp_path: Path) -> None:
    out = tmp_path / "folder/record.json"
    record = Record(Options(out, dry_run=True))
    assert record.exit_code == 1
    record.add("one", {"images_per_s": 3.0})
    assert record.exit_code == 0
    assert json.loads(out.read_text())["rows"] == {"one": {"images_per_s": 3.0}}
    record.fail("two", "out of memory")
    record.summarise(ratio=2.0)
    assert record.exit_code == 1
    content = json.loads(out.read_text())
    assert content["rows"] == {"one": {"images_per_s": 3.0}, "two": {"failed": "out of memory"}}
    assert content["summary"] == {"ratio": 2.0}


def test_without_a_gpu_there_is_no_load() -> None:
    with GpuMonitor() as monitor:
        assert monitor.between(0.0, 1e9) == {}


@pytest.mark.parametrize("shape", list(shapes.SHAPES))
def test_a_shape_has_qwen2_vls_special_tokens(shape: str) -> None:
    tokenizer = shapes.build_tokenizer(shape)
    config = shapes.build_config(shape, tokenizer)
    expected = 1984 if shape == "tiny" else 151643
    assert tokenizer.convert_tokens_to_ids("<|endoftext|>") == expected
    assert config.image_token_id == expected + shapes.SPECIAL_TOKENS.index("<|image_pad|>")
    assert tokenizer.decode(tokenizer("How many objects?")["input_ids"]) == "How many objects?"
    assert max(tokenizer.get_vocab().values()) < config.text_config.vocab_size
    heads = config.text_config.num_attention_heads
    assert 2 * sum(shapes.SHAPES[shape].mrope_section) == config.text_config.hidden_size // heads


def test_images_have_their_sides_in_turn_and_a_question_each(tmp_path: Path) -> None:
    from PIL import Image

    images = shapes.paint_images(tmp_path / "images", [56, 84], 5)
    for image in images:
        with Image.open(image.path) as pixels:
            assert pixels.size == (image.side_px, image.side_px)
    assert [image.side_px for image in images] == [56, 84, 56, 84, 56]
    assert len({image.path for image in images}) == 5
    assert all(image.question and image.answer for image in images)


@pytest.mark.parametrize("on_gpu", [False, True])
def test_serving_settings_are_a_valid_configuration(on_gpu: bool) -> None:
    serving = Serving(896, 64, 4096, 12, on_gpu, {"enforce_eager": True, "load_format": "auto"})
    config = ModelConfig.model_validate(serving.model_settings("./model"))
    arguments = config.engine.engine_args  # type: ignore[union-attr]
    assert arguments["load_format"] == "auto"
    assert arguments["enforce_eager"]
    assert ("compilation_config" in arguments) == on_gpu
    assert (config.gpus_per_replica, config.cpus_per_replica) == ((1, 13) if on_gpu else (0, 1))

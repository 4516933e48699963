"""What is refused as a model before anything starts, because its folder is no whole vision-language checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mpa_ray.config import ObjectStoreConfig, StudentConfig, resolve_path
from mpa_ray.config.engines import VllmEngineConfig
from mpa_ray.errors import ConfigError
from mpa_ray.models.checkpoint_files import check_files, check_kind
from mpa_ray.phases.preflight import check_student, check_trainable

STUDENT = Path(resolve_path("bundled:demo/models/student"))

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"


def change_settings(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    settings = json.loads((folder / "config.json").read_text())
    change(settings)
    (folder / "config.json").write_text(json.dumps(settings))


def make_text_model(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}')


def cut_weights(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-1])


def cut_header(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:100])


def add_index(folder: Path) -> None:
    weight_map = {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def needs_code(settings: dict[str, Any]) -> None:
    settings |= {"model_type": "internvl_chat", "auto_map": {"AutoConfig": "configuration.InternVLChatConfig"}}


BROKEN: list[tuple[Callable[[Path], object], str]] = [
    (make_text_model, "is not a vision-language model: its model_type qwen2 reads no images"),
    (lambda folder: change_settings(folder, needs_code), "model_type internvl_chat needs Python code"),
    (lambda folder: change_settings(folder, lambda settings: settings.pop("model_type")), "has no model_type"),
    (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    (lambda folder: (folder / "config.json").write_bytes(b""), "its config.json is empty"),
    (lambda folder: (folder / "config.json").write_bytes(b"{"), "its config.json cannot be read"),
    (lambda folder: (folder / "config.json").write_bytes(b"[]"), "its config.json is not a JSON object but a list"),
    (lambda folder: (folder / "config.json").write_bytes(b"[" * 100_000), "its config.json cannot be read"),
    (lambda folder: (folder / "processor_config.json").write_bytes(b"{,}"), "its processor_config.json cannot be read"),
    (lambda folder: (folder / "processor_config.json").unlink(), "has no processor"),
    (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer"),
    (lambda folder: (folder / "tokenizer.json").write_bytes(POINTER), "its tokenizer.json is a pointer of Git LFS"),
    (lambda folder: (folder / "model.safetensors").unlink(), "has no weights"),
    (lambda folder: (folder / "model.safetensors").write_bytes(POINTER), "its model.safetensors is a pointer of Git"),
    (lambda folder: (folder / "model.safetensors").write_bytes(b""), "its model.safetensors is empty"),
    (lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 99), "is not a safetensors file"),
    (
        lambda folder: (folder / "model.safetensors").write_bytes(b"\x04" + b"\0" * 7 + b"[{1}"),
        "its model.safetensors has a damaged header",
    ),
    (
        lambda folder: (folder / "model.safetensors").write_bytes(b"\x02" + b"\0" * 7 + b"{}"),
        "its model.safetensors holds no tensor",
    ),
    (cut_weights, r"its model.safetensors is truncated: it has [\d,]+ of [\d,]+ bytes"),
    (cut_header, "its model.safetensors is truncated: it has 100 bytes, but its header alone takes"),
    (add_index, "model.safetensors.index.json names model-00002-of-00002.safetensors, which is missing"),
]


@pytest.mark.parametrize(("break_checkpoint", "problem"), BROKEN, ids=[problem for _, problem in BROKEN])
def test_a_folder_that_is_no_whole_checkpoint_is_refused(
    break_checkpoint: Callable[[Path], object], problem: str, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(STUDENT, folder)
    check_files(folder, "teacher.model", "model")
    break_checkpoint(folder)
    with pytest.raises(ConfigError, match=problem) as caught:
        check_student(StudentConfig(model=str(folder), engine=VllmEngineConfig()), 0, ObjectStoreConfig())
    assert caught.value.field == "students.0.model"
    with pytest.raises(ConfigError, match=problem):
        check_trainable(StudentConfig(model=str(folder)), 0, ObjectStoreConfig())


def test_an_adapter_needs_its_weights_and_a_whole_base(tmp_path: Path) -> None:
    adapter, base = tmp_path / "adapter", tmp_path / "base"
    shutil.copytree(STUDENT, base)
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    student = StudentConfig(model=str(adapter))
    with pytest.raises(ConfigError, match=r"students\.0\.model = .*adapter': has no weights"):
        check_trainable(student, 0, ObjectStoreConfig())
    shutil.copy(base / "model.safetensors", adapter / "adapter_model.safetensors")
    check_trainable(student, 0, ObjectStoreConfig())
    cut_weights(base)
    with pytest.raises(ConfigError, match=r"base_model_name_or_path = .*base': its model.safetensors is truncated"):
        check_trainable(student, 0, ObjectStoreConfig())
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"students\.0\.model = .*adapter_config.json cannot be read"):
        check_trainable(student, 0, ObjectStoreConfig())


@pytest.mark.parametrize(
    "settings",
    [
        {"model_type": "qwen2_vl"},
        {"model_type": "idefics3", "auto_map": {}},
        {"model_type": "of_tomorrow", "vision_config": {}},
    ],
)
def test_a_model_that_may_read_images_is_accepted(settings: dict[str, Any]) -> None:
    check_kind(settings, "teacher.model", "model")

"""Misspelt arguments of vLLM are refused before an engine starts, where the installed vLLM can be read."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from mpa_ray.config import ModelConfig, ObjectStoreConfig
from mpa_ray.engine.vllm import known_arguments
from mpa_ray.errors import ConfigError
from mpa_ray.phases import preflight

ARGUMENTS = """
class EngineArgs:
    model: str = "m"
    gpu_memory_utilization: float = 0.9

    def create(self) -> None:
        here: int = 3


class AsyncEngineArgs(EngineArgs):
    enable_log_requests: bool = False
"""


@pytest.fixture
def vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file with the arguments of an installed vLLM."""
    file = tmp_path / "vllm/engine/arg_utils.py"
    file.parent.mkdir(parents=True)
    file.write_text(ARGUMENTS)
    spec = ModuleSpec("vllm", None, origin=str(tmp_path / "vllm/__init__.py"))
    monkeypatch.setattr(known_arguments, "find_spec", lambda _: spec)
    monkeypatch.setattr(preflight, "find_spec", lambda _: spec)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    known_arguments.known_arguments.cache_clear()
    yield file
    known_arguments.known_arguments.cache_clear()


def check(**engine_args: object) -> None:
    tree = {"model": "bundled:demo/models/student", "engine": {"engine_args": engine_args}}
    preflight.check_model(ModelConfig.model_validate(tree), "teacher", ObjectStoreConfig())


@pytest.mark.usefixtures("vllm")
def test_a_misspelt_argument_is_refused_with_the_one_that_was_meant() -> None:
    with pytest.raises(ConfigError) as refused:
        check(gpu_memory_utilisation=0.5)
    assert str(refused.value) == (
        "teacher.engine.engine_args.gpu_memory_utilisation = 0.5: is not an argument of the installed vLLM. "
        "Did you mean gpu_memory_utilization?"
    )
    check(gpu_memory_utilization=0.5, enable_log_requests=True)
    with pytest.raises(ConfigError, match="AsyncEngineArgs"):
        check(here=3)


@pytest.mark.usefixtures("vllm")
def test_on_a_cluster_a_misspelt_argument_is_only_a_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    check(gpu_memory_utilisation=0.5)
    assert "WARNING: teacher.engine.engine_args.gpu_memory_utilisation" in "".join(capsys.readouterr())


@pytest.mark.parametrize("source", ["", "class AsyncEngineArgs(Other):\n    x: int\n", "class ?", None])
def test_a_vllm_with_another_layout_refuses_nothing(vllm: Path, source: str | None) -> None:
    if source is None:
        vllm.unlink()
    else:
        vllm.write_text(source)
    check(gpu_memory_utilisation=0.5)

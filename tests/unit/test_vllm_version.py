"""Which versions of vLLM are accepted, and which names they must have. Imports no vLLM."""

from __future__ import annotations

import logging
import sys
from types import ModuleType

import pytest

from mpa_ray.engine.vllm.rendering import has_renderer
from mpa_ray.engine.vllm.version import check_vllm
from mpa_ray.errors import ConfigError

REQUIRED = {"json": ("loads",)}
"""Names that are there without vLLM."""


@pytest.mark.parametrize(
    "version", ["0.29.0", "0.30.1", "0.32.0+cpu", "0.32.3.post1", "0.1.dev18001+g5f2ab"], ids=lambda v: v
)
def test_tested_versions_and_builds_from_source_pass_without_a_warning(
    caplog: pytest.LogCaptureFixture, version: str
) -> None:
    check_vllm(version, REQUIRED)
    assert not caplog.records


@pytest.mark.parametrize("version", ["0.33.0", "1.0.0rc1"])
def test_a_newer_version_is_used_with_a_warning(caplog: pytest.LogCaptureFixture, version: str) -> None:
    with caplog.at_level(logging.WARNING):
        check_vllm(version, REQUIRED)
    assert f"vLLM {version} is newer than 0.32" in caplog.text


@pytest.mark.parametrize(
    ("version", "problem"),
    [(None, "vLLM is not installed"), ("0.28.1", r"'vllm 0\.28\.1': it is older than 0\.29"), ("0.9.2", "older")],
)
def test_no_vllm_and_an_old_one_are_refused_with_the_remedy(version: str | None, problem: str) -> None:
    with pytest.raises(ConfigError, match=rf"{problem}.*Run pip install 'vllm>=0\.29,<0\.34', or mpa-ray setup-cpu"):
        check_vllm(version, REQUIRED)


def test_the_error_names_the_missing_name() -> None:
    with pytest.raises(ConfigError, match=r"it has no json\.renderer"):
        check_vllm("0.32.0", {"json": ("loads", "renderer")})
    with pytest.raises(ConfigError, match=r"json\.v1 cannot be imported"):
        check_vllm("0.32.0", {"json.v1": ("loads",)})


def test_a_vllm_without_a_callable_renderer_is_used_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    monkeypatch.setitem(sys.modules, "vllm.renderers", None)
    with caplog.at_level(logging.WARNING):
        assert not has_renderer.__wrapped__()
    assert "this vLLM has no renderer to call" in caplog.text

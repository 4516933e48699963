"""Which vLLM is accepted: by its version, and by the names that it has. Imports no vLLM."""

from __future__ import annotations

import logging
import sys
from types import ModuleType

import pytest

from mpa_ray.engine.vllm import engine as vllm_engine
from mpa_ray.errors import ConfigError


@pytest.fixture(autouse=True)
def needs_no_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_engine, "_NEEDED", {"json": ("loads",)})


def installed(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    monkeypatch.setattr(vllm_engine, "_installed_version", lambda: version)


@pytest.mark.parametrize(
    "version", ["0.29.0", "0.30.1", "0.32.0+cpu", "0.32.3.post1", "0.1.dev18001+g5f2ab"], ids=lambda v: v
)
def test_tested_versions_and_builds_from_source_pass_in_silence(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, version: str
) -> None:
    installed(monkeypatch, version)
    vllm_engine.check_vllm()
    assert not caplog.records


@pytest.mark.parametrize("version", ["0.33.0", "1.0.0rc1"])
def test_a_newer_one_is_used_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, version: str
) -> None:
    installed(monkeypatch, version)
    with caplog.at_level(logging.WARNING):
        vllm_engine.check_vllm()
    assert f"vLLM {version} is newer than 0.32" in caplog.text


@pytest.mark.parametrize(
    ("version", "told"),
    [(None, "vLLM is not installed"), ("0.28.1", r"'vllm 0\.28\.1': it is older than 0\.29"), ("0.9.2", "older")],
)
def test_none_and_an_old_one_are_refused_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, version: str | None, told: str
) -> None:
    installed(monkeypatch, version)
    with pytest.raises(ConfigError, match=rf"{told}.*Install vLLM 0\.29 to 0\.32"):
        vllm_engine.check_vllm()


def test_a_missing_name_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "0.32.0")
    monkeypatch.setattr(vllm_engine, "_NEEDED", {"json": ("loads", "renderer")})
    with pytest.raises(ConfigError, match=r"it has no json\.renderer"):
        vllm_engine.check_vllm()
    monkeypatch.setattr(vllm_engine, "_NEEDED", {"json.v1": ("loads",)})
    with pytest.raises(ConfigError, match=r"json\.v1 cannot be imported"):
        vllm_engine.check_vllm()


def test_one_without_a_renderer_to_call_is_used_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    monkeypatch.setitem(sys.modules, "vllm.renderers", None)
    with caplog.at_level(logging.WARNING):
        assert not vllm_engine._can_render.__wrapped__()
    assert "raw prompts go to it" in caplog.text

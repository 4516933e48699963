"""What is known about images that kill engines applies to one engine: which changes make it another engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mpa_ray.config import LimitsConfig, ModelConfig, ObjectStoreConfig, ReadingConfig
from mpa_ray.corpus.read import Reader
from mpa_ray.models.shared_engines import Adapter
from mpa_ray.pipeline.engine_digest import engine_digest
from mpa_ray.pipeline.pass_spec import Pass
from mpa_ray.run.phase_record import PhaseKey
from mpa_ray.run.run import Run
from mpa_ray.storage.local import LocalStorage


@pytest.fixture
def work(tmp_path: Path) -> Pass[Any]:
    run, model = Run(LocalStorage(str(tmp_path / "run"))), tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"weights")
    return Pass(
        key=PhaseKey("annotate"),
        models=("teacher",),
        source=run.corpus,
        target=run.annotations,
        model=of(str(model)),
        branch="teacher",
        make_stage=lambda _: pytest.fail("no engine starts"),
        reader=Reader(ObjectStoreConfig()),
        reading=ReadingConfig(),
        limits=LimitsConfig(),
    )


def of(model: str, token: str = "hf_first", **settings: object) -> ModelConfig:
    engine = {"kind": "vllm", "engine_args": {"hf_token": token}} | dict(settings.pop("engine", {}))  # type: ignore[call-overload]
    return ModelConfig.model_validate({"model": model, "engine": engine, **settings})


@pytest.mark.parametrize(
    "settings",
    [
        *({"max_pixels": 200_704}, {"min_pixels": 1}, {"max_image_pixels": 10_000}, {"max_images_in_flight": 4}),
        *({"gpus_per_replica": 1.0}, {"cpus_per_replica": 2.0}, {"gpus_per_replica": 1, "accelerator_type": "A100"}),
        *({"engine": {"max_num_seqs": 8}}, {"engine": {"max_model_len": 512}}, {"engine": {"dtype": "float32"}}),
        *({"engine": {"engine_args": {"gpu_memory_utilization": 0.5}}}, {"num_replicas": 2}),
    ],
)
def test_every_setting_of_an_engine_counts(work: Pass[Any], settings: dict[str, object]) -> None:
    assert engine_digest(replace(work, model=of(work.model.model, **settings))) != engine_digest(work)


def test_the_model_the_adapters_the_time_limit_and_the_libraries_count(
    work: Pass[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.safetensors").write_bytes(b"other weights")
    changed = [
        replace(work, model=of(str(other))),
        replace(work, adapters={"small": Adapter(str(other), work.model.model, 8)}),
        replace(work, limits=LimitsConfig(request_timeout_s=5)),
    ]
    digests = {engine_digest(each) for each in [work, *changed]}
    monkeypatch.setattr("mpa_ray.pipeline.engine_digest.engine_versions", lambda: {"vllm": "99"})
    assert len(digests | {engine_digest(work)}) == 5


def test_the_place_of_the_model_tokens_and_other_limits_do_not_count(work: Pass[Any], tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "model.safetensors").write_bytes(b"weights")
    limits = LimitsConfig(max_poison_images=20, max_image_deaths=3, max_engine_deaths=2)
    same = replace(work, model=of(str(moved), token="hf_second"), limits=limits, command="another")
    assert engine_digest(same) == engine_digest(work)

"""What the package needs to know about each kind of engine, and that each kind answers it."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from pydantic import TypeAdapter

from mpa_ray.config import EngineConfig, ModelConfig
from mpa_ray.config.engines import ENGINE_CLASSES, EngineSettings, KvCache
from mpa_ray.engine.build import EngineFactory, check_settings, engine_factory, images_in_flight
from mpa_ray.errors import ConfigError

UNION: TypeAdapter[Any] = TypeAdapter(EngineConfig)
ENGINE_KINDS = tuple(UNION.json_schema()["discriminator"]["mapping"])


def engine(kind: str, **settings: Any) -> Any:
    return UNION.validate_python({"kind": kind, **settings})


def test_the_kinds_are_those_of_the_union() -> None:
    assert {type(engine(kind)) for kind in ENGINE_KINDS} == set(ENGINE_CLASSES)


@pytest.mark.parametrize("kind", ENGINE_KINDS)
def test_every_kind_names_a_factory_with_the_parameters_of_all(kind: str) -> None:
    factory = engine_factory(engine(kind))
    expected = list(inspect.signature(EngineFactory.__call__).parameters)[1:]
    assert list(inspect.signature(factory).parameters) == expected


@pytest.mark.parametrize("kind", ENGINE_KINDS)
def test_every_kind_answers_what_the_package_asks(kind: str) -> None:
    settings = engine(kind)
    assert isinstance(settings, EngineSettings)
    assert settings.default_images_in_flight >= 1
    assert settings.num_gpus_per_copy >= 1
    assert settings.max_adapters >= 0
    assert isinstance(settings.has_checkpoint, bool)
    assert settings.identity_fields()


def test_a_kind_without_an_answer_cannot_be_configured() -> None:
    class Unfinished(EngineSettings):
        pass

    with pytest.raises(TypeError, match=r"default_images_in_flight.*identity_fields"):
        Unfinished()  # type: ignore[abstract]


def test_vllm_works_on_a_tenth_more_images_than_it_decodes_together() -> None:
    model = ModelConfig(model="a", engine=engine("vllm", max_num_seqs=32))
    assert images_in_flight(model) == 36
    assert images_in_flight(model.model_copy(update={"max_images_in_flight": 5})) == 5
    assert images_in_flight(ModelConfig(model="a", engine=engine("scripted"))) == 64


def test_arguments_that_only_change_the_speed_are_no_part_of_the_identity() -> None:
    plain = engine("vllm")
    fast = engine("vllm", max_num_seqs=8, tensor_parallel_size=2, engine_args={"gpu_memory_utilization": 0.5})
    assert fast.identity_fields() == plain.identity_fields() == {"dtype": "auto", "max_model_len": None}
    other = engine("vllm", max_model_len=512, engine_args={"kv_cache_dtype": "fp8"})
    assert other.identity_fields() == {"dtype": "auto", "max_model_len": 512, "engine_args.kv_cache_dtype": "fp8"}


def test_one_slot_of_an_engine_is_kept_free_of_adapters() -> None:
    assert engine("vllm").max_adapters == 15
    assert engine("vllm", engine_args={"max_loras": 4}).max_adapters == 3
    assert engine("scripted").max_adapters == 0


def test_an_engine_states_how_it_uses_the_memory_of_a_gpu() -> None:
    assert engine("vllm").kv_cache == KvCache(value_bytes=2, memory_share=None)
    assert engine("vllm", dtype="float32").kv_cache == KvCache(value_bytes=4, memory_share=None)
    arguments = {"gpu_memory_utilization": 0.5, "kv_cache_dtype": "fp8_e4m3"}
    small = engine("vllm", dtype="float32", max_model_len=512, engine_args=arguments)
    assert small.kv_cache == KvCache(value_bytes=1, memory_share=0.5)
    assert (engine("vllm").max_sequence_tokens, small.max_sequence_tokens) == (None, 512)
    assert engine("scripted").kv_cache is None


@pytest.mark.parametrize("kind", ENGINE_KINDS)
def test_the_settings_of_every_kind_can_be_checked(kind: str) -> None:
    check_settings(engine(kind), "teacher.engine")


def test_an_argument_that_vllm_does_not_have_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^teacher\.engine\.engine_args\.max_number = 3: is not an argument"):
        check_settings(engine("vllm", engine_args={"max_number": 3}), "teacher.engine")


def test_a_model_split_over_gpus_needs_all_of_them() -> None:
    assert engine("vllm", tensor_parallel_size=4).num_gpus_per_copy == 4
    assert engine("scripted").num_gpus_per_copy == 1

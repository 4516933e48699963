"""What a dataset's content depends on, as a flat record of names and values that can be compared and shown."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from mpa_ray.config import ModelConfig, RunConfig, StudentConfig, resolve_path
from mpa_ray.tasks.task import PREAMBLE, SYSTEM_PROMPT, Task

ALGORITHM_VERSION = 1
"""Goes up when the same settings would give other rows."""

_SAMPLED_BYTES = 1 << 20


def model_identity(model: str) -> str:
    """A local folder by its content, wherever it lies; a hub name as it is.

    Weights are told apart by size and by their first and last MiB: reading terabytes at every start would cost minutes.
    """
    folder = Path(resolve_path(model))
    if not folder.is_dir():
        return model
    digest = hashlib.sha256()
    for file in sorted(f for f in folder.iterdir() if f.is_file() and not f.name.startswith(".")):
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}:".encode())
        with file.open("rb") as content:
            digest.update(content.read(_SAMPLED_BYTES))
            if size > _SAMPLED_BYTES:
                content.seek(max(_SAMPLED_BYTES, size - _SAMPLED_BYTES))
                digest.update(content.read())
    return f"sha256:{digest.hexdigest()[:16]}"


def _model(config: ModelConfig) -> dict[str, Any]:
    engine = config.engine
    fields: dict[str, Any] = {
        "model": model_identity(config.model),
        "engine": engine.kind,
        "min_pixels": config.min_pixels,
        "max_pixels": config.max_pixels,
    }
    if engine.kind == "vllm":
        return fields | {"dtype": engine.dtype, "max_model_len": engine.max_model_len}
    return fields | engine.model_dump(include={"inconsistent_rate", "wrong_rate", "unparsable_rate", "truncated_rate"})


def _answering(config: RunConfig, task: Task) -> dict[str, Any]:
    return {
        "algorithm_version": ALGORITHM_VERSION,
        "task": task.name,
        "task_version": task.version,
        "system_prompt": SYSTEM_PROMPT,
        "preamble": PREAMBLE,
        "answer_instruction": task.answer_instruction,
        "answer.max_new_tokens": config.answer.max_new_tokens,
    }


def corpus_fingerprint(config: RunConfig) -> dict[str, Any]:
    return {"algorithm_version": ALGORITHM_VERSION, **config.source.model_dump(mode="json")}


def annotation_fingerprint(config: RunConfig, task: Task) -> dict[str, Any]:
    sampling = config.annotate.sampling.model_dump(mode="json")
    return {
        **_answering(config, task),
        "annotation_instruction": task.annotation_instruction,
        **{f"annotate.sampling.{name}": value for name, value in sampling.items()},
        **{f"teacher.{name}": value for name, value in _model(config.teacher).items()},
    }


def verdict_fingerprint(config: RunConfig, task: Task, student: StudentConfig) -> dict[str, Any]:
    return {
        **_answering(config, task),
        **{f"identify.{name}": value for name, value in config.identify.model_dump(mode="json").items()},
        **{f"{student.name}.{name}": value for name, value in _model(student).items()},
    }


def level_fingerprint(config: RunConfig, task: Task, student: StudentConfig) -> dict[str, Any]:
    # What only says where and how often the same training runs is left out, so that it may change between attempts.
    level = student.level.model_dump(
        mode="json", exclude={"checkpoint_every_steps", "max_failures", "cpus_per_worker", "gpus_per_worker"}
    )
    return {**verdict_fingerprint(config, task, student), **{f"level.{k}": v for k, v in level.items()}}


def questions_fingerprint(config: RunConfig) -> dict[str, Any]:
    assert config.evaluate is not None
    questions = Path(resolve_path(config.evaluate.questions)).read_bytes()
    return {
        "evaluate.questions": f"sha256:{hashlib.sha256(questions).hexdigest()[:16]}",
        "evaluate.shard_size": config.evaluate.shard_size,
    }


def prediction_fingerprint(config: RunConfig, task: Task, model: ModelConfig) -> dict[str, Any]:
    return {**_answering(config, task), **_model(model), **questions_fingerprint(config)}


def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The fields whose values differ, each with both values (None where a side lacks it)."""
    # JSON has no tuples; compare as JSON would store them.
    return {
        name: (old.get(name), new.get(name))
        for name in sorted({*old, *new})
        if _plain(old.get(name)) != _plain(new.get(name))
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value

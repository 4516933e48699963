"""A checkpoint's settings for text generation (generation_config.json), without those that transformers refuses.

transformers reads some of these files but refuses to save their settings, such as a temperature without sampling; it
cannot even read others. Public checkpoints have such files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mpa_ray.config.regular_file import read_regular_file

FILE_NAME = "generation_config.json"
_MODES = ("return_dict_in_generate", "do_sample", "num_beams", "use_cache")
"""Settings that decide whether other settings are valid."""
_ABOUT_THE_FILE = ("_from_model_config", "transformers_version")


@dataclass(frozen=True)
class GenerationSettings:
    """Settings that transformers reads and saves."""

    config: Any
    """The `GenerationConfig` of transformers."""
    repairs: tuple[str, ...] = ()
    """What was changed, and why: a line for each setting."""

    @classmethod
    def carried_over(cls, inherited: Mapping[str, Any], pad_token_id: int | None = None) -> GenerationSettings:
        """Carry over the settings that are valid together. The others get their defaults, which have the same effect:
        transformers ignores or refuses such settings.

        Args:
            inherited: The settings of a checkpoint.
            pad_token_id: The token that replaces an invalid `pad_token_id`.
        """
        from transformers import GenerationConfig

        valid: dict[str, Any] = {}
        repairs = []
        settings = {
            name: value for name, value in inherited.items() if name not in _ABOUT_THE_FILE and value is not None
        }
        for name in sorted(settings, key=_order):
            problem = _problem_of({**valid, name: settings[name]}, name)
            if problem is None:
                valid[name] = settings[name]
                continue
            is_replaced = name == "pad_token_id" and pad_token_id is not None and pad_token_id >= 0
            if is_replaced:
                valid[name] = pad_token_id
            result = f"is now {pad_token_id}" if is_replaced else "is left out"
            repairs.append(f"{name} {settings[name]!r} {result}: {problem}")
        return cls(GenerationConfig(**valid), tuple(repairs))

    @classmethod
    def of_checkpoint(cls, model: str, pad_token_id: int | None = None) -> GenerationSettings | None:
        """The valid settings of a checkpoint; None if it has no such file, or the file does not hold a JSON object.

        Args:
            model: A local folder or a hub name.
            pad_token_id: See `carried_over`.
        """
        from transformers.utils import cached_file

        path = Path(model, FILE_NAME)
        if not path.parent.is_dir():
            cached = cached_file(
                model,
                FILE_NAME,
                _raise_exceptions_for_gated_repo=False,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )
            path = Path(cached or path)
        try:
            settings = json.loads(read_regular_file(path))
        except (OSError, ValueError, RecursionError):
            return None
        return cls.carried_over(settings, pad_token_id) if isinstance(settings, dict) else None


def repaired_folder(model: str) -> TemporaryDirectory[str] | None:
    """A folder with the repaired settings of a checkpoint, for an engine; None if they need no repair.

    An engine that reads the settings with transformers cannot start with some of those that this module repairs.

    Args:
        model: A local folder or a hub name.
    """
    settings = GenerationSettings.of_checkpoint(model)
    if settings is None or not settings.repairs:
        return None
    folder = TemporaryDirectory(prefix="mpa_ray-generation-")
    settings.config.save_pretrained(folder.name)
    return folder


def _order(name: str) -> tuple[bool, str]:
    """The key by which settings are sorted, so that modes come first."""
    return name not in _MODES, name


def _problem_of(settings: Mapping[str, Any], name: str) -> str | None:
    """Why transformers would not save these settings, on one line; None if it would."""
    from transformers import GenerationConfig

    try:
        # With this argument, nothing is checked before `validate` is called, so there are no warnings.
        config = GenerationConfig(_from_model_config=True, **settings)
        for other in settings.keys() - vars(config).keys():
            setattr(config, other, settings[other])
        config.validate(strict=True)
    except (ValueError, TypeError, AttributeError) as error:
        lines = [line.strip().removeprefix(f"- `{name}`: ") for line in str(error).splitlines()]
        return next((line for line in lines if line and not line.startswith("GenerationConfig is invalid")), "invalid")
    return None

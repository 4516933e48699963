"""Find the identity of a checkpoint's content, and the checkpoint's local folder, from the name of a model."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from mpa_ray.config import ObjectStoreConfig, resolve_path
from mpa_ray.config.regular_file import read_regular_file
from mpa_ray.errors import ConfigError
from mpa_ray.models.hub import is_hub_name, process_hub, split_revision
from mpa_ray.storage.user_cache import cache_folder

if TYPE_CHECKING:
    from mpa_ray.storage.listing import ListedObject

_WEIGHT_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
ADAPTER_SETTINGS = "adapter_config.json"
"""The settings of a LoRA adapter. A folder with this file is an adapter."""


def model_identity(model: str, object_store: ObjectStoreConfig) -> str:
    """A digest of the content of a folder or s3:// prefix; for a hub name, the name with its commit.

    The same files have the same identity in any folder and at any prefix, no matter in which parts they were uploaded.
    All files are read completely, but only once per machine: see `mpa_ray.storage.digests`. An adapter's identity
    includes the identity of its base model. If neither the hub nor its cache has the model of a hub name, the identity
    is the name alone, and the model cannot be loaded.
    """
    if model.startswith("s3://") or Path(resolve_path(model)).is_dir():
        identity = f"sha256:{_content_digest(model, object_store)[:16]}"
    elif is_hub_name(model):
        return _identity_on_hub(model)
    else:
        return model
    try:
        adapter = adapter_folder(model, object_store)
        base = base_of_adapter(adapter) if adapter is not None else None
    except ConfigError:
        # The identity covers only the adapter's files. The error is raised again when the model is loaded.
        base = None
    return identity if base is None else f"{identity} on {model_identity(base, object_store)}"


def _identity_on_hub(model: str) -> str:
    try:
        return f"{split_revision(model)[0]}@{process_hub().commit(model)}"
    except ConfigError:
        return model


def _content_digest(model: str, object_store: ObjectStoreConfig) -> str:
    """The digest of the names, sizes and digests of the files in a folder or at an s3:// prefix."""
    # boto3 takes a second to import.
    from mpa_ray.storage.digests import Content, LocalContent, ObjectContent, sha256_of_all

    contents: dict[str, Content] = {}
    folder = Path(resolve_path(model))
    if model.startswith("s3://"):
        from mpa_ray.storage.object_store import ObjectStore
        from mpa_ray.storage.object_uri import split_uri

        bucket, _ = split_uri(model)
        for name, listed in _listing(model, object_store).items():
            contents[name] = ObjectContent(ObjectStore(object_store), bucket, listed)
    else:
        contents = {f.name: LocalContent(f) for f in folder.iterdir() if f.is_file() and _is_content(f.name)}
    names = sorted(contents)
    digests = sha256_of_all([contents[name] for name in names], model)
    lines = [f"{name}:{contents[name].num_bytes}:{digest}\n" for name, digest in zip(names, digests, strict=True)]
    # The names of local files are not always valid UTF-8.
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def _is_content(name: str) -> bool:
    """Whether a file is part of the model's content. The model card is not, since new scores change it."""
    return not name.startswith(".") and name != "README.md"


def base_of_adapter(folder: Path) -> str | None:
    """The base model of the LoRA adapter in a folder; None if the folder holds a whole checkpoint, or no adapter.

    If the base model is on the hub and the adapter names its revision, the revision is part of the returned name.

    Raises:
        ConfigError: the adapter's settings cannot be read.
    """
    settings = folder / ADAPTER_SETTINGS
    if not settings.is_file() or (folder / "config.json").is_file():
        return None
    try:
        content = json.loads(settings.read_text(encoding="utf-8"))
        base, revision = content.get("base_model_name_or_path"), content.get("revision")
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(
            "model",
            str(folder),
            f"its {ADAPTER_SETTINGS} cannot be read ({type(error).__name__}: {error}).",
            "Save the adapter again.",
        ) from error
    if not base:
        return None
    has_revision = bool(revision) and is_hub_name(str(base)) and split_revision(str(base))[1] is None
    return f"{base}@{revision}" if has_revision else str(base)


def adapter_folder(model: str, object_store: ObjectStoreConfig) -> Path | None:
    """The local folder of a LoRA adapter; None if the name does not stand for an adapter.

    An adapter at s3:// is downloaded, since adapters are small.
    """
    if model.startswith("s3://"):
        from mpa_ray.storage.object_store import ObjectStore
        from mpa_ray.storage.object_uri import split_uri

        bucket, prefix = split_uri(model.rstrip("/") + "/")
        objects = ObjectStore(object_store).list(bucket, prefix, nested=False)
        names = {file.key.removeprefix(prefix) for file in objects}
        if ADAPTER_SETTINGS not in names or "config.json" in names:
            return None
    folder = Path(local_folder(model, object_store))
    return folder if base_of_adapter(folder) is not None else None


def model_settings(model: str, object_store: ObjectStoreConfig) -> dict[str, Any]:
    """The config.json of a checkpoint, or of an adapter's base model. No weights are read or downloaded.

    Raises:
        ConfigError: there is no config.json, or it cannot be read.
    """
    try:
        settings = json.loads(_file_of(model, "config.json", object_store))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            "model",
            model,
            f"its config.json cannot be read ({type(error).__name__}).",
            "Check the name, the network and your access.",
        ) from error
    if not isinstance(settings, dict):
        raise ConfigError("model", model, "its config.json is not a JSON object.", "Download the checkpoint again.")
    return settings


def processor_settings(model: str, object_store: ObjectStoreConfig) -> dict[str, Any]:
    """The settings of a checkpoint's image processor; empty if it has none. An adapter has that of its base model.

    They are in preprocessor_config.json or, in checkpoints of transformers 5, in processor_config.json.
    """
    for name, part in (("processor_config.json", "image_processor"), ("preprocessor_config.json", None)):
        try:
            settings = json.loads(_file_of(model, name, object_store))
        except (OSError, ValueError, RecursionError, ConfigError):
            # Many checkpoints have only one of the files. Other checks report damaged ones.
            continue
        settings = settings.get(part) if part is not None and isinstance(settings, dict) else settings
        if isinstance(settings, dict):
            return settings
    return {}


def _file_of(model: str, name: str, object_store: ObjectStoreConfig) -> bytes:
    """A small file of a checkpoint, or of an adapter's base model.

    Raises:
        ConfigError: there is no such model.
        OSError: there is no such file, or it cannot be read.
    """
    if model.startswith("s3://"):
        from mpa_ray.storage.object_store import ObjectStore
        from mpa_ray.storage.object_uri import split_uri

        bucket, prefix = split_uri(model.rstrip("/") + "/")
        return ObjectStore(object_store).get(bucket, f"{prefix}{name}")
    if (folder := Path(resolve_path(model))).is_dir():
        base = base_of_adapter(folder)
        return read_regular_file(folder / name) if base is None else _file_of(base, name, object_store)
    if "/" not in model:
        raise ConfigError("model", model, "is not a folder.", "Give a folder or a hub name (owner/name).")
    return process_hub().file(model, name).read_bytes()


def weight_bytes(model: str) -> int | None:
    """The size of the weights in a local folder; None if the model is not a local folder."""
    folder = Path(model)
    if not folder.is_dir():
        return None
    return sum(file.stat().st_size for suffix in ("safetensors", "bin") for file in folder.glob(f"*.{suffix}"))


def local_model(model: str, object_store: ObjectStoreConfig) -> str:
    """Return a name that `from_pretrained` and vLLM can load: a local folder or a hub name.

    A hub name without a revision is returned unchanged.

    A checkpoint at s3:// is downloaded, and an adapter is merged into its base model. Both are done once per machine,
    and again only if the content changes.

    Raises:
        ConfigError: there is no checkpoint at the prefix.
    """
    folder = local_folder(model, object_store)
    base = base_of_adapter(Path(folder))
    if base is None:
        return folder
    identity = hashlib.sha256(model_identity(folder, object_store).encode()).hexdigest()[:16]

    def merge(target: Path) -> None:
        _merge(Path(folder), local_model(base, object_store), target)

    return _make_once(f"merged-{identity}", merge)


def local_folder(model: str, object_store: ObjectStoreConfig) -> str:
    """Do the same as `local_model`, but do not merge adapters.

    Raises:
        ConfigError: there is no file at the s3:// prefix, or no such revision on the hub.
    """
    return _folder_of(model, object_store)


def _folder_of(model: str, object_store: ObjectStoreConfig, with_weights: bool = True) -> str:
    if model.startswith("s3://"):
        return _downloaded(model, object_store, with_weights)
    folder = resolve_path(model)
    if split_revision(model)[1] is not None and not Path(folder).is_dir():
        return process_hub().snapshot(model, with_weights)
    return folder


def processor_folder(model: str, object_store: ObjectStoreConfig) -> str:
    """Return a name that `load_processor` can load: a local folder or a hub name.

    A hub name without a revision is returned unchanged. An adapter has the processor of its base model. A checkpoint at
    s3:// is downloaded without its weights.

    Raises:
        ConfigError: there is no file at the s3:// prefix, or no such revision on the hub.
    """
    adapter = adapter_folder(model, object_store)
    base = base_of_adapter(adapter) if adapter is not None else None
    if base is not None:
        return processor_folder(base, object_store)
    return _folder_of(model, object_store, with_weights=False)


def _merge(adapter: Path, base: str, target: Path) -> None:
    # These packages take seconds to import, and few runs merge an adapter.
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from mpa_ray.models.generation_settings import GenerationSettings

    generation = GenerationSettings.of_checkpoint(base)
    settings = {} if generation is None else {"generation_config": generation.config}
    model = AutoModelForImageTextToText.from_pretrained(base, dtype="auto", **settings)
    PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().save_pretrained(target)
    AutoProcessor.from_pretrained(base).save_pretrained(target)


def _downloaded(model: str, object_store: ObjectStoreConfig, with_weights: bool = True) -> str:
    from mpa_ray.storage.object_store import ObjectStore
    from mpa_ray.storage.object_uri import split_uri

    store = ObjectStore(object_store)
    bucket, prefix = split_uri(model.rstrip("/") + "/")

    def download(target: Path) -> None:
        for file in store.list(bucket, prefix, nested=False):
            if file.key != prefix and (with_weights or not file.key.endswith(_WEIGHT_ENDINGS)):
                store.download(bucket, file.key, target / file.key.removeprefix(prefix))

    digest = _listing_digest(model, object_store)
    return _make_once(digest if with_weights else f"processor-{digest}", download)


def _make_once(name: str, make: Callable[[Path], None]) -> str:
    """Return a folder in this machine's cache. The first process that needs the folder makes it."""
    cache = cache_folder()
    target = cache / name
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{name}.lock"):
        if not target.is_dir():
            with tempfile.TemporaryDirectory(dir=cache) as scratch:
                checkpoint = Path(scratch, "checkpoint")
                checkpoint.mkdir()
                make(checkpoint)
                checkpoint.rename(target)
    return str(target)


def _listing_digest(model: str, object_store: ObjectStoreConfig) -> str:
    """A digest of the names, sizes and etags of the files at an s3:// prefix. Raises the errors of `_listing`."""
    files = _listing(model, object_store)
    listing = "".join(f"{name}:{file.num_bytes}:{file.etag};" for name, file in files.items())
    return hashlib.sha256(listing.encode()).hexdigest()[:16]


def _listing(model: str, object_store: ObjectStoreConfig) -> dict[str, ListedObject]:
    """The files at an s3:// prefix that belong to the model's content, by name.

    Raises:
        ConfigError: there is no file at the prefix.
    """
    from mpa_ray.storage.object_store import ObjectStore
    from mpa_ray.storage.object_uri import split_uri

    bucket, prefix = split_uri(model.rstrip("/") + "/")
    objects = ObjectStore(object_store).list(bucket, prefix, nested=False)
    # The consoles of object stores create a folder as an empty object whose key is the prefix.
    files = {file.key.removeprefix(prefix): file for file in objects if file.key != prefix}
    files = {name: file for name, file in files.items() if _is_content(name)}
    if not files:
        raise ConfigError("model", model, "holds no files.", "Check the bucket and the prefix.")
    return files

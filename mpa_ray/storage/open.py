"""Opens the storage behind a run directory."""

from __future__ import annotations

from mpa_ray.config import ObjectStoreConfig, parse_location
from mpa_ray.errors import ConfigError
from mpa_ray.storage.local import LocalStorage
from mpa_ray.storage.storage import Storage


def open_storage(root: str, object_store: ObjectStoreConfig | None = None) -> Storage:
    """Open the storage of a run directory.

    Raises:
        ConfigError: the kind of URI is not supported, or the URI is misspelled.
    """
    try:
        root = parse_location(root)
    except ValueError as error:
        raise ConfigError("run_dir", root, f"{error}.", "Give a folder or an s3:// prefix.") from None
    if root.startswith("s3://"):
        # boto3 takes a second to import.
        from mpa_ray.storage.s3 import S3Storage

        return S3Storage(root, object_store or ObjectStoreConfig())
    if "://" in root and not root.startswith("file://"):
        raise ConfigError(
            "run_dir", root, "is neither a folder nor an s3:// URI.", "Give a folder that every node can reach."
        )
    config = object_store or ObjectStoreConfig()
    return LocalStorage(root.removeprefix("file://"), config.read_deadline_s)

"""URIs of objects. This module does not import boto3, which takes a tenth of a second."""

from __future__ import annotations

from mpa_ray.errors import ConfigError

SCHEME = "s3://"


def split_uri(uri: str) -> tuple[str, str]:
    """Split `s3://bucket/some/key` into bucket and key.

    Raises:
        ConfigError: the URI names no bucket.
    """
    bucket, _, key = uri.removeprefix(SCHEME).partition("/")
    if not uri.startswith(SCHEME) or not bucket:
        raise ConfigError("uri", uri, "names no bucket.", "Write s3://BUCKET/PREFIX.")
    return bucket, key

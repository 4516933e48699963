"""A server with the S3 API, and the environment that lets a user's commands access it."""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

SECRET = "a-secret-that-no-file-may-contain"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}


@contextmanager
def s3_server() -> Iterator[str]:
    """Run a server with an empty bucket named `bucket`, and yield its URL. The environment must contain credentials."""
    moto = ThreadedMotoServer(port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    # All servers of a process share their buckets.
    urllib.request.urlopen(f"{endpoint}/moto-api/reset", data=b"").close()
    client(endpoint).create_bucket(Bucket="bucket")
    yield endpoint
    moto.stop()


@contextmanager
def s3_server_of_user() -> Iterator[str]:
    """Like `s3_server`, with the credentials in the environment, as on a user's machine."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        with s3_server() as endpoint:
            yield endpoint


def client(endpoint: str) -> boto3.client:
    return boto3.client(
        "s3", endpoint_url=endpoint, aws_access_key_id="somebody", aws_secret_access_key=SECRET, region_name="us-east-1"
    )


def environment(endpoint: str) -> dict[str, str]:
    return {**os.environ, **CREDENTIALS, "AWS_ENDPOINT_URL": endpoint}


def upload(folder: Path, endpoint: str, prefix: str) -> None:
    """Upload all files below a folder to a prefix of the bucket."""
    store = client(endpoint)
    for path in folder.rglob("*"):
        if path.is_file():
            store.upload_file(str(path), "bucket", f"{prefix}/{path.relative_to(folder).as_posix()}")


def keys_of(endpoint: str, prefix: str) -> list[str]:
    """Return the keys of all objects under a prefix, without the prefix and without objects that show folders."""
    pages = client(endpoint).get_paginator("list_objects_v2").paginate(Bucket="bucket", Prefix=prefix)
    keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
    return [key.removeprefix(prefix) for key in keys if not key.endswith("/")]


def keys_containing(secret: str, endpoint: str, prefix: str) -> list[str]:
    """Return the keys of objects under a prefix whose content contains a text."""
    store = client(endpoint)
    keys = [prefix + key for key in keys_of(endpoint, prefix)]
    assert keys
    return [key for key in keys if secret.encode() in store.get_object(Bucket="bucket", Key=key)["Body"].read()]

"""Objects of S3 and of what speaks its protocol: the one place that knows endpoints, retries and time-outs.

Credentials come from the environment, a profile or the machine's role, as boto3 finds them; they are no settings of
ours, so no file or log of a run can show them.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

from mpa_ray.config import ObjectStoreConfig
from mpa_ray.errors import ConfigError

SCHEME = "s3://"
# A status alone is the code where an answer lost its body.
_GONE = frozenset({"404", "NoSuchKey", "NotFound"})
_BEHIND_THE_END = frozenset({"InvalidRange", "416"})
_TAKEN = frozenset({"PreconditionFailed", "412"})
_RACED = frozenset({"ConditionalRequestConflict", "409"})
_PASSING = frozenset({"500", "502", "503", "504", "SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout"})
_LONGEST_PAUSE_S = 20.0

T = TypeVar("T")


@dataclass(frozen=True)
class FoundObject:
    """An object as a listing shows it."""

    key: str
    num_bytes: int
    etag: str
    modified: datetime


@dataclass(frozen=True)
class _Page:
    """One answer of a listing."""

    objects: list[FoundObject]
    prefixes: list[str]
    is_cut: bool


def split_uri(uri: str) -> tuple[str, str]:
    """`s3://bucket/some/key` as bucket and key.

    Raises:
        ConfigError: there is no bucket in it.
    """
    bucket, _, key = uri.removeprefix(SCHEME).partition("/")
    if not uri.startswith(SCHEME) or not bucket:
        raise ConfigError("uri", uri, "names no bucket.", "Write s3://bucket/prefix.")
    return bucket, key


@dataclass(frozen=True)
class ObjectStore:
    """Whole objects by bucket and key. It holds settings alone, so it can be sent to any process."""

    config: ObjectStoreConfig

    def get(self, bucket: str, key: str, first: int | None = None, num_bytes: int | None = None) -> bytes:
        """An object, or at most `num_bytes` of it from byte `first` on.

        Raises:
            FileNotFoundError: there is no such object.
            OSError: it could not be read, after `max_attempts`.
        """
        span = {} if first is None else {"Range": f"bytes={first}-{'' if num_bytes is None else first + num_bytes - 1}"}

        def attempt() -> bytes:
            try:
                response = self._client.get_object(Bucket=bucket, Key=key, **span)
            except ClientError as error:
                if _code(error) in _BEHIND_THE_END:
                    return b""
                raise
            content: bytes = response["Body"].read()
            return content

        return self._insist(attempt, bucket, key)

    def put(self, bucket: str, key: str, content: bytes) -> None:
        """Write or replace an object; large ones in parts, which show only once all have arrived."""
        self._insist(lambda: self._put(bucket, key, content), bucket, key)

    def create(self, bucket: str, key: str, content: bytes) -> bool:
        """Write an object only if there is none; of many callers exactly one gets True.

        A repeated request may meet the object that its own lost answer had created, so whoever finds the very content
        it wanted to write has won: callers that race must bring different contents.
        """

        def attempt() -> bool:
            try:
                self._client.put_object(Bucket=bucket, Key=key, Body=content, IfNoneMatch="*")
            except ClientError as error:
                if _code(error) in _TAKEN:
                    return False
                raise
            return True

        return self._insist(attempt, bucket, key) or self.get(bucket, key) == content

    def exists(self, bucket: str, key: str) -> bool:
        try:
            self.size(bucket, key)
        except FileNotFoundError:
            return False
        return True

    def size(self, bucket: str, key: str) -> int:
        """An object's bytes. Raises FileNotFoundError, or OSError as `get` does."""
        head = self._insist(lambda: self._client.head_object(Bucket=bucket, Key=key), bucket, key)
        num_bytes: int = head["ContentLength"]
        return num_bytes

    def delete(self, bucket: str, key: str) -> None:
        self._insist(lambda: self._client.delete_object(Bucket=bucket, Key=key), bucket, key)

    def abort_uploads(self, bucket: str, prefix: str, before: datetime) -> int:
        """Remove the parts of uploads that were begun before a moment and never finished; how many there were."""
        found = self._insist(
            lambda: self._client.list_multipart_uploads(Bucket=bucket, Prefix=prefix).get("Uploads", []), bucket, prefix
        )
        old = [upload for upload in found if upload["Initiated"] < before]
        for upload in old:
            key, number = upload["Key"], upload["UploadId"]
            self._insist(
                lambda k=key, n=number: self._client.abort_multipart_upload(Bucket=bucket, Key=k, UploadId=n),  # type: ignore[misc]
                bucket,
                key,
            )
        return len(old)

    def download(self, bucket: str, key: str, path: Path) -> None:
        """Copy an object into a file, a part at a time."""
        self._insist(lambda: self._client.download_file(bucket, key, str(path)), bucket, key)

    def upload(self, path: Path, bucket: str, key: str) -> None:
        """Copy a file into an object, a part at a time; it shows only once all parts have arrived."""
        self._insist(lambda: self._client.upload_file(str(path), bucket, key, Config=self._parts), bucket, key)

    def list(self, bucket: str, prefix: str, *, nested: bool, after: str = "") -> Iterator[FoundObject]:
        """Objects under a prefix, in the order of their keys' UTF-8 bytes, page by page, from behind a key on."""
        for page in self._pages(bucket, prefix, nested=nested, after=after):
            yield from page.objects

    def children(self, bucket: str, prefix: str) -> Sequence[str] | None:
        """Keys and prefixes (they end with a slash) directly under a prefix; None where one page does not hold them."""
        page = next(self._pages(bucket, prefix, nested=False))
        if page.is_cut:
            return None
        return [found.key for found in page.objects if not found.key.endswith("/")] + page.prefixes

    def _pages(self, bucket: str, prefix: str, *, nested: bool, after: str = "") -> Iterator[_Page]:
        arguments: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix, "StartAfter": after}
        if not nested:
            arguments["Delimiter"] = "/"
        while True:
            page = self._insist(lambda a=dict(arguments): self._client.list_objects_v2(**a), bucket, prefix)  # type: ignore[misc]
            yield _Page(
                [
                    FoundObject(o["Key"], o["Size"], o["ETag"].strip('"'), o["LastModified"])
                    for o in page.get("Contents", ())
                ],
                [found["Prefix"] for found in page.get("CommonPrefixes", ())],
                page.get("IsTruncated", False),
            )
            if not page.get("IsTruncated"):
                return
            arguments["ContinuationToken"] = page["NextContinuationToken"]

    def arrow(self) -> Any:
        """The same store as a pyarrow file system."""
        from pyarrow.fs import S3FileSystem

        return S3FileSystem(
            endpoint_override=self._client.meta.endpoint_url,
            region=self._client.meta.region_name,
            connect_timeout=self.config.connect_timeout_s,
            request_timeout=self.config.read_timeout_s,
        )

    @property
    def _client(self) -> Any:
        return _client(self.config)

    def _put(self, bucket: str, key: str, content: bytes) -> None:
        if len(content) < self.config.multipart_bytes:
            self._client.put_object(Bucket=bucket, Key=key, Body=content)
            return
        self._client.upload_fileobj(BytesIO(content), bucket, key, Config=self._parts)

    @property
    def _parts(self) -> TransferConfig:
        size = self.config.multipart_bytes
        return TransferConfig(multipart_threshold=size, multipart_chunksize=size)

    def _insist(self, attempt: Callable[[], T], bucket: str, key: str) -> T:
        """Try again after faults that pass, a body that breaks off included, which boto3 itself does not repeat."""
        for tried in range(1, self.config.max_attempts + 1):
            try:
                return attempt()
            except (ClientError, BotoCoreError, Boto3Error, HTTPError) as error:
                last = _underlying(error)
                if isinstance(last, ClientError) and _code(last) in _GONE:
                    raise FileNotFoundError(f"{SCHEME}{bucket}/{key}") from None
                if isinstance(last, ClientError) and _code(last) not in _PASSING | _RACED:
                    break
            if tried < self.config.max_attempts:
                time.sleep(
                    random.uniform(0.5, 1.0) * min(_LONGEST_PAUSE_S, self.config.first_pause_s * 2 ** (tried - 1))
                )
        raise OSError(f"{SCHEME}{bucket}/{key}: {last} (attempt {tried})") from last


def _underlying(error: Exception) -> Exception:
    """What the server said, where boto3's transfers have put it into words only."""
    said = error.__context__
    return said if isinstance(error, Boto3Error) and isinstance(said, ClientError) else error


def _code(error: ClientError) -> str:
    code: str = error.response.get("Error", {}).get("Code", "")
    return code


@cache
def _client(config: ObjectStoreConfig) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=config.endpoint_url,
        region_name=config.region,
        config=Config(
            connect_timeout=config.connect_timeout_s,
            read_timeout=config.read_timeout_s,
            retries={"mode": "standard", "total_max_attempts": 1},
            max_pool_connections=config.max_connections,
        ),
    )

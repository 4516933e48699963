"""Access to S3 and to stores with the same API. Only this module knows their endpoints, retries and timeouts.

boto3 finds the credentials in the environment, a profile or the machine's role. They are not part of our settings, so
no file or log of a run can contain them.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import boto3
from boto3.s3.transfer import TransferConfig
from botocore import exceptions
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

from mpa_ray.config import ObjectStoreConfig
from mpa_ray.errors import ConfigError, TransientError, did_you_mean
from mpa_ray.storage.body import read_body
from mpa_ray.storage.boto3_errors import (
    ERRORS,
    MAX_PAUSE_S,
    error_code,
    fault_of_error,
    final_error,
    retry_after_s,
    underlying,
)
from mpa_ray.storage.deadline import Expiry, call_with_deadline
from mpa_ray.storage.faults import Fault
from mpa_ray.storage.listing import ListedObject, ListingPage
from mpa_ray.storage.object_uri import SCHEME
from mpa_ray.storage.request_pace import Outage, RequestPace

_MAX_PART_ATTEMPTS = 5
T = TypeVar("T")

_creating_client = threading.Lock()  # boto3 cannot create clients in several threads at the same time.


@dataclass(frozen=True)
class ObjectStore:
    """Reads and writes objects by bucket and key. It holds only settings, so it can be sent to any process."""

    config: ObjectStoreConfig

    def get(self, bucket: str, key: str, first: int | None = None, num_bytes: int | None = None) -> bytes:
        """Return an object, or at most `num_bytes` of it starting at byte `first`.

        Raises:
            FileNotFoundError: the object does not exist.
            TransientError: the object cannot be read now: all attempts have failed, or the store has an outage.
            OSError: the object cannot be read, for a reason that is not temporary.
            AccessLost: the credentials have expired, or the clock is wrong.
            ConfigError: there are no credentials.
        """
        last = "" if first is None or num_bytes is None else first + num_bytes - 1
        byte_range = {} if first is None else {"Range": f"bytes={first}-{last}"}
        name = f"{SCHEME}{bucket}/{key}"

        def attempt() -> bytes:
            Expiry.current().check(name, 0)
            try:
                response = self._client.get_object(Bucket=bucket, Key=key, **byte_range)
            except ClientError as error:
                if fault_of_error(error) is Fault.PAST_END:
                    return b""
                raise
            # A store without range support sends the whole object.
            skip = 0 if "ContentRange" in response else first or 0
            return read_body(response["Body"], skip, num_bytes, name)

        return self._with_retries(attempt, bucket, key)

    def put(self, bucket: str, key: str, content: bytes) -> None:
        """Write or replace an object. A large object is uploaded in parts, and is visible only when it is complete."""
        self._with_retries(lambda: self._put(bucket, key, content), bucket, key)

    def create(self, bucket: str, key: str, content: bytes) -> bool:
        """Write an object only if it does not exist; exactly one of many callers gets True.

        If the response to a successful request is lost, the retry finds the object that the request created. So a
        caller that reads back its own content has created the object, and callers must write different contents.
        """

        def attempt() -> bool:
            try:
                self._client.put_object(Bucket=bucket, Key=key, Body=content, IfNoneMatch="*")
            except ClientError as error:
                if fault_of_error(error) is Fault.EXISTS:
                    return False
                raise
            return True

        return self._with_retries(attempt, bucket, key) or self.get(bucket, key) == content

    def exists(self, bucket: str, key: str) -> bool:
        try:
            self.size(bucket, key)
        except FileNotFoundError:
            return False
        return True

    def size(self, bucket: str, key: str) -> int:
        """Return an object's size in bytes. Raises FileNotFoundError, or OSError as `get` does."""
        return int(self.properties(bucket, key)["ContentLength"])

    def properties(self, bucket: str, key: str) -> Any:
        """Return the response to a HEAD request, with the checksums that the store has. Raises as `size` does."""
        request = {"Bucket": bucket, "Key": key, "ChecksumMode": "ENABLED"}
        return self._with_retries(lambda: self._client.head_object(**request), bucket, key)

    def delete(self, bucket: str, key: str) -> None:
        self._with_retries(lambda: self._client.delete_object(Bucket=bucket, Key=key), bucket, key)

    def abort_uploads(self, bucket: str, prefix: str, before: datetime) -> int:
        """Abort the unfinished multipart uploads that started before the time `before`; return their number."""
        pages = partial(self._client.get_paginator("list_multipart_uploads").paginate, Bucket=bucket, Prefix=prefix)
        uploads = self._with_retries(lambda: [u for page in pages() for u in page.get("Uploads", ())], bucket, prefix)
        for upload in (old := [upload for upload in uploads if upload["Initiated"] < before]):
            self._with_retries(partial(self._abort, bucket, upload), bucket, upload["Key"])
        return len(old)

    def download(self, bucket: str, key: str, path: Path) -> None:
        """Copy an object into a file, in parts."""
        self._with_retries(lambda: self._parts_client.download_file(bucket, key, str(path)), bucket, key)

    def upload(self, path: Path, bucket: str, key: str, metadata: Mapping[str, str]) -> None:
        """Copy a file into an object, in parts. The object becomes visible when all parts are complete."""
        more = {"Config": self._parts, "ExtraArgs": {"Metadata": dict(metadata)}}
        self._with_retries(lambda: self._parts_client.upload_file(str(path), bucket, key, **more), bucket, key)

    def list(self, bucket: str, prefix: str, *, nested: bool, after: str = "") -> Iterator[ListedObject]:
        """Yield the objects under a prefix, sorted by the UTF-8 bytes of their keys, starting after the key `after`."""
        for page in self._pages(bucket, prefix, nested=nested, after=after):
            yield from page.objects

    def children(self, bucket: str, prefix: str) -> Sequence[str] | None:
        """Return the keys and prefixes (which end in a slash) directly under a prefix; None if they exceed one page."""
        page = next(self._pages(bucket, prefix, nested=False))
        if page.is_truncated:
            return None
        return [listed.key for listed in page.objects] + page.prefixes

    def _pages(self, bucket: str, prefix: str, *, nested: bool, after: str = "") -> Iterator[ListingPage]:
        arguments: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix, "StartAfter": after}
        arguments |= {} if nested else {"Delimiter": "/"}
        while True:
            list_page = partial(self._with_retries, partial(self._client.list_objects_v2, **arguments), bucket, prefix)
            page = call_with_deadline(list_page, self.config.read_deadline_s, f"{SCHEME}{bucket}/{prefix}")
            yield ListingPage.of(page)
            if not page.get("IsTruncated"):
                return
            arguments["ContinuationToken"] = page["NextContinuationToken"]

    def _abort(self, bucket: str, upload: Mapping[str, Any]) -> None:
        self._client.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])

    def arrow(self) -> Any:
        """The store as a pyarrow file system."""
        from pyarrow.fs import S3FileSystem

        return S3FileSystem(
            endpoint_override=self._client.meta.endpoint_url,
            region=self._client.meta.region_name,
            connect_timeout=self.config.connect_timeout_s,
            request_timeout=self.config.read_timeout_s,
        )

    @property
    def _client(self) -> Any:
        return _client(self.config, num_attempts=1)

    @property
    def _parts_client(self) -> Any:
        """For an object that needs many requests: a failed request is repeated, not the whole transfer."""
        return _client(self.config, num_attempts=min(_MAX_PART_ATTEMPTS, self.config.max_attempts))

    def _put(self, bucket: str, key: str, content: bytes) -> None:
        if len(content) < self.config.multipart_bytes:
            self._client.put_object(Bucket=bucket, Key=key, Body=content)
            return
        self._parts_client.upload_fileobj(BytesIO(content), bucket, key, Config=self._parts)

    @property
    def _parts(self) -> TransferConfig:
        size = self.config.multipart_bytes
        return TransferConfig(multipart_threshold=size, multipart_chunksize=size)

    def _with_retries(self, attempt: Callable[[], T], bucket: str, key: str) -> T:
        """Repeat a request after transient errors. boto3 itself does not retry when a response body breaks off.

        For `max_outage_s` seconds, attempts do not count if the store asks for fewer requests. In an outage, a request
        that fails is not repeated.
        """
        pace, name = _pace(self.config), f"{SCHEME}{bucket}/{key}"
        num_failed, slow_since = 0, time.monotonic()
        while True:
            # Make sure that a call which was abandoned at its deadline sends no further request.
            Expiry.current().check(name, 0)
            try:
                with pace.request():
                    try:
                        result = attempt()
                    except ERRORS as error:
                        last, fault = self._diagnose(error, bucket, key)
                        # Record the fault before the request ends, because the next request may then be sent
                        # immediately.
                        pace.record(fault, retry_after_s(last))
                    else:
                        pace.succeed()
                        return result
            except Outage as outage:
                raise TransientError(f"{name}: {outage}") from outage
            if fault not in (Fault.SLOW_DOWN, Fault.TRANSIENT):
                raise final_error(name, fault, last) from last
            if fault is Fault.SLOW_DOWN and time.monotonic() - slow_since < self.config.max_outage_s:
                continue
            num_failed += 1
            pause_s = min(MAX_PAUSE_S, self.config.first_pause_s * 2 ** (num_failed - 1))
            if isinstance(last, exceptions.EndpointConnectionError):
                pace.check_first_contact(name, last, time.monotonic() + pause_s - slow_since)
            if num_failed >= self.config.max_attempts or pace.is_out():
                raise TransientError(f"{name}: {last} (attempt {num_failed})") from last
            if fault is Fault.TRANSIENT:
                time.sleep(random.uniform(0.5, 1.0) * pause_s)

    def _diagnose(self, error: Exception, bucket: str, key: str) -> tuple[Exception, Fault]:
        """Return the error that best explains the given error, and the class of that error."""
        error = underlying(error)
        if isinstance(error, exceptions.EndpointConnectionError):
            _check_region(self._client.meta, error)
        if isinstance(error, ClientError) and error_code(error) in ("400", "401", "403"):
            # A response to HEAD has no body. Only the response to a GET says why the store refuses the request.
            try:
                self._client.get_object(Bucket=bucket, Key=key, Range="bytes=0-0")
            except ClientError as explained:
                error = explained
            except (BotoCoreError, HTTPError) as explained:
                return explained, fault_of_error(explained)
        return error, fault_of_error(error)


def _check_region(client: Any, error: Exception) -> None:
    """Raise ConfigError if AWS has no region with the configured name. `client` is the metadata of a boto3 client."""
    if ".amazonaws.com" in client.endpoint_url and client.region_name not in _session().get_available_regions("s3"):
        raise _not_a_region(client.region_name) from error


def _not_a_region(region: str) -> ConfigError:
    remedy = did_you_mean(region, _session().get_available_regions("s3")) or "Give one such as us-east-1."
    return ConfigError("object_store.region", region, "is not a region of AWS.", remedy)


@cache
def _pace(config: ObjectStoreConfig) -> RequestPace:
    """The pace that all threads of this process share."""
    return RequestPace(config.max_connections, config.first_pause_s, MAX_PAUSE_S, config.max_outage_s)


@cache
def _session() -> Any:
    """The session of this process, which holds the credentials and the descriptions of the API."""
    return boto3.Session()


@cache
def _client(config: ObjectStoreConfig, num_attempts: int) -> Any:
    """Return a client of boto3 that sends each request at most `num_attempts` times."""
    with _creating_client:
        try:
            return _session().client(
                "s3",
                endpoint_url=config.endpoint_url,
                region_name=config.region,
                config=Config(
                    connect_timeout=config.connect_timeout_s,
                    read_timeout=config.read_timeout_s,
                    retries={"mode": "standard", "total_max_attempts": num_attempts},
                    max_pool_connections=config.max_connections,
                ),
            )
        except exceptions.InvalidRegionError as error:
            raise _not_a_region(config.region or _session().region_name) from error
        except ValueError as why:
            raise ConfigError("object_store", None, f"names no endpoint ({why}).", "Check AWS_ENDPOINT_URL.") from why

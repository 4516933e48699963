"""Files at http:// and https://, which `source.allow` must permit."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from urllib3 import PoolManager, Retry, Timeout
from urllib3.exceptions import HTTPError

from mpa_ray.config import ObjectStoreConfig
from mpa_ray.corpus.places.place import Entry
from mpa_ray.errors import ConfigError

_TRANSIENT = (429, 500, 502, 503, 504)


class Web:
    """Reads files with the retries and time-outs of `object_store`."""

    def __init__(self, config: ObjectStoreConfig) -> None:
        self._config = config

    def walk(self, root: str, after: str = "", num_listers: int = 1) -> Iterator[Entry]:  # noqa: ARG002
        raise ConfigError("source.path", root, "cannot be listed.", "Give a list of URIs, a Parquet file or a tar.")

    def size(self, uri: str) -> int:
        return int(self._request("HEAD", uri, {})[1].get("Content-Length", 0))

    def read(self, uri: str, first: int = 0, num_bytes: int | None = None) -> bytes:
        last = "" if num_bytes is None else str(first + num_bytes - 1)
        is_whole = first == 0 and num_bytes is None
        content, headers = self._request("GET", uri, {} if is_whole else {"Range": f"bytes={first}-{last}"})
        if is_whole or "Content-Range" in headers:
            return content
        # A server without range support sends the whole file.
        return content[first : None if num_bytes is None else first + num_bytes]

    def _request(self, method: str, uri: str, headers: dict[str, str]) -> tuple[bytes, dict[str, str]]:
        try:
            response = _pool(self._config).request(method, uri, headers=headers)
        except HTTPError as error:
            raise OSError(f"{uri}: {error}") from error
        if response.status >= 400:
            raise OSError(f"{uri}: HTTP status {response.status}")
        return response.data, dict(response.headers)


@cache
def _pool(config: ObjectStoreConfig) -> PoolManager:
    retries = Retry(config.max_attempts - 1, backoff_factor=config.first_pause_s, status_forcelist=_TRANSIENT)
    timeout = Timeout(connect=config.connect_timeout_s, read=config.read_timeout_s)
    return PoolManager(maxsize=config.max_connections, retries=retries, timeout=timeout)

"""Files at http:// and https://. A source may name such files only if `source.allow` permits it."""

from __future__ import annotations

import random
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urljoin

from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError, NameResolutionError, SSLError
from urllib3.util import parse_url

from mpa_ray.config import ObjectStoreConfig
from mpa_ray.corpus.places.place import Entry
from mpa_ray.corpus.places.web_body import encoding_of, read_body
from mpa_ray.corpus.places.web_connections import (
    IsPublic,
    PrivateAddress,
    connections,
    is_public,
    last_address_is_public,
)
from mpa_ray.errors import ConfigError
from mpa_ray.storage.deadline import Expiry

MAX_WHOLE_BYTES = 2**30
"""The largest file that is read whole, such as a list of questions. If the caller asks for a part, this limit does not
apply."""
_MAX_REDIRECTS = 5
_MAX_PAUSE_S = 20.0
_REDIRECTS = (301, 302, 303, 307, 308)
_PAST_END = 416
_RANGE = re.compile(r"bytes (?:(?P<first>\d+)-\d+|\*)/(?P<size>\d+|\*)")

T = TypeVar("T")


@dataclass(frozen=True)
class Web:
    """Reads files with the retries and timeouts of `object_store`."""

    config: ObjectStoreConfig
    follow_redirects: bool = False
    """Whether a server may redirect to another host. A public host may never redirect to a private address."""
    is_public: IsPublic = is_public
    """Decides which addresses are public."""

    def walk(self, root: str, after: str = "", num_listers: int = 1) -> Iterator[Entry]:  # noqa: ARG002
        raise ConfigError("source.path", root, "cannot be listed.", "Give a list of URIs, a Parquet file or a tar.")

    def size(self, uri: str) -> int:
        size = self._with_retries(uri, lambda: self._size(uri))
        return len(self.read(uri)) if size is None else size

    def read(self, uri: str, first: int = 0, num_bytes: int | None = None) -> bytes:
        is_whole = first == 0 and num_bytes is None
        headers = {} if is_whole else {"Range": f"bytes={first}-{'' if num_bytes is None else first + num_bytes - 1}"}
        content = self._with_retries(uri, lambda: self._content(uri, headers, first, num_bytes))
        if num_bytes is None and len(content) > MAX_WHOLE_BYTES:
            raise OSError(f"{uri}: more than {MAX_WHOLE_BYTES} bytes")
        return content

    def _size(self, uri: str) -> int | None:
        """Return the file's size as the server states it; None if the server states no size, or states the size of an
        encoded body."""
        response = self._response("HEAD", uri, {})
        if response.status in (405, 501):
            response = self._response("GET", uri, {})
            response.close()
        _check_status(response)
        response.release_conn()
        length = response.headers.get("Content-Length", "")
        return int(length) if length.isdecimal() and not encoding_of(response) else None

    def _content(self, uri: str, headers: dict[str, str], first: int, num_bytes: int | None) -> bytes:
        response = self._response("GET", uri, headers)
        byte_range = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if response.status == _PAST_END and byte_range and byte_range["size"].isdecimal():
            response.close()
            if int(byte_range["size"]) <= first:
                return b""
        _check_status(response)
        is_part = response.status == 206
        if is_part and (byte_range is None or int(byte_range["first"] or -1) != first):
            response.close()
            raise OSError("returned a range other than the requested one")
        if is_part and first and encoding_of(response):
            response.close()
            raise OSError("returned a range of an encoded body")
        # A server without range support sends the whole file.
        limit = MAX_WHOLE_BYTES + 1 if num_bytes is None else num_bytes
        return read_body(response, 0 if is_part else first, limit)

    def _response(self, method: str, uri: str, headers: dict[str, str]) -> BaseHTTPResponse:
        """Send a request, and follow the redirects that are allowed."""
        only_public = False
        for _ in range(_MAX_REDIRECTS + 1):
            pools = connections(self.config, only_public=only_public, is_public=self.is_public)
            response = pools.urlopen(
                method,
                uri,
                redirect=False,
                headers={"Accept-Encoding": "identity", **headers},
                preload_content=False,
            )
            location = response.headers.get("Location")
            if response.status not in _REDIRECTS or not location:
                return response
            response.close()
            target = urljoin(uri, location)
            self._check_redirect(uri, target)
            # Check the address even if the redirect stays on the same host, because the host's name may now resolve to
            # another address.
            only_public = only_public or last_address_is_public()
            uri = target
        raise OSError(f"redirects more than {_MAX_REDIRECTS} times")

    def _check_redirect(self, uri: str, target: str) -> None:
        scheme, host = parse_url(target).scheme, parse_url(target).host
        if scheme not in ("http", "https") or not host:
            raise OSError(f"redirects to a {scheme}:// URI, which is not allowed")
        if not self.follow_redirects and _host(target) != _host(uri):
            raise OSError(f"redirects to another host, {host}; if you trust it, add 'redirects' to source.allow")

    def _with_retries(self, uri: str, attempt: Callable[[], T]) -> T:
        """Send a request. After an error that may be temporary, send it again, up to `max_attempts` times in total and
        until the call's deadline."""
        for number in range(1, self.config.max_attempts + 1):
            Expiry.current().check(uri, 0)
            try:
                return attempt()
            except (PrivateAddress, ValueError) as error:
                # urllib3 raises ValueError for a URI without a host.
                raise OSError(f"{uri}: {error}") from error
            except (HTTPError, _Transient) as error:
                if not _may_pass(error):
                    raise OSError(f"{uri}: {error}") from error
                last = error
            except TimeoutError as error:
                raise TimeoutError(f"{uri}: {error}") from error
            except OSError as error:
                raise type(error)(f"{uri}: {error}") from error
            if number < self.config.max_attempts:
                pause_s = min(_MAX_PAUSE_S, self.config.first_pause_s * 2 ** (number - 1))
                time.sleep(random.uniform(0.5, 1.0) * pause_s)
        raise ConnectionError(f"{uri}: {last} (attempt {number})") from last


class _Transient(Exception):
    """The server answered with an HTTP status that may be temporary."""


def _may_pass(error: HTTPError | _Transient) -> bool:
    """Whether another attempt may succeed. No attempt can succeed if the host does not exist or has no valid
    certificate."""
    cause = error.__cause__
    if isinstance(error, NameResolutionError):
        return isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_AGAIN
    return not (isinstance(error, SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error))


def _check_status(response: BaseHTTPResponse) -> None:
    if response.status < 300:
        return
    response.close()
    problem = f"HTTP status {response.status}"
    if response.status in (408, 425, 429) or response.status >= 500:
        raise _Transient(problem)
    if response.status in (404, 410):
        raise FileNotFoundError(problem)
    raise OSError(problem)


def _host(uri: str) -> tuple[str | None, int | None]:
    """Return the host and the port of a URI. The port is None if it is the default port of the URI's scheme."""
    # Use urllib3's parser: in some malformed URIs, other parsers find a host to which urllib3 does not connect.
    parts = parse_url(uri)
    port = None if parts.port == {"http": 80, "https": 443}.get(parts.scheme or "") else parts.port
    return parts.host, port

"""Connections for `web.py`. Each connection records whether its address is public, and a deadline can cut it off."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from functools import cache
from ipaddress import IPv6Address, ip_address
from typing import Any

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager, Timeout
from urllib3.connection import HTTPConnection, HTTPSConnection

from mpa_ray.config import ObjectStoreConfig
from mpa_ray.storage.deadline import Expiry


class PrivateAddress(Exception):
    """The host of a redirect has an address that is not public.

    This class does not derive from OSError, because urllib3 would turn an OSError into one of its own errors, and
        `web.py` would repeat the request.
    """


@cache
def connections(config: ObjectStoreConfig, *, only_public: bool) -> PoolManager:
    """Return this process's connections to web servers. They neither retry requests nor follow redirects.

    Args:
        config: The timeouts and the number of connections.
        only_public: Whether to raise PrivateAddress, before a request is sent, for an address of a private network, of
            this machine, or of a cloud's metadata service.
    """
    timeout = Timeout(connect=config.connect_timeout_s, read=config.read_timeout_s)
    manager = PoolManager(maxsize=config.max_connections, retries=False, timeout=timeout)
    pools = (_PublicHttpPool, _PublicHttpsPool) if only_public else (_HttpPool, _HttpsPool)
    manager.pool_classes_by_scheme = dict(zip(("http", "https"), pools, strict=True))
    return manager


def last_address_is_public() -> bool:
    """Whether the last request of this thread went to a public address."""
    return getattr(_last, "is_public", True)


class _Watched:
    """Registers a connection with the deadline of the call that uses it, and records whether its address is public."""

    sock: Any
    only_public = False
    _is_public = False

    def connect(self) -> None:
        Expiry.current().on_expiry(self._cut_off)
        super().connect()  # type: ignore[misc]
        address = self.sock.getpeername()[0]
        self._is_public = _is_public(address)
        if self.only_public and not self._is_public:
            self.close()  # type: ignore[attr-defined]
            raise PrivateAddress(f"redirects to {address}, which is not a public address")

    def request(self, *args: Any, **kwargs: Any) -> None:
        Expiry.current().on_expiry(self._cut_off)
        super().request(*args, **kwargs)  # type: ignore[misc]
        _last.is_public = self._is_public

    def _cut_off(self) -> None:
        # Closing a socket does not wake a thread that waits for its data.
        if self.sock is not None:
            with suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)


class _HttpConnection(_Watched, HTTPConnection):
    pass


class _HttpsConnection(_Watched, HTTPSConnection):
    pass


class _PublicHttpConnection(_HttpConnection):
    only_public = True


class _PublicHttpsConnection(_HttpsConnection):
    only_public = True


class _HttpPool(HTTPConnectionPool):
    ConnectionCls = _HttpConnection


class _HttpsPool(HTTPSConnectionPool):
    ConnectionCls = _HttpsConnection


class _PublicHttpPool(HTTPConnectionPool):
    ConnectionCls = _PublicHttpConnection


class _PublicHttpsPool(HTTPSConnectionPool):
    ConnectionCls = _PublicHttpsConnection


def _is_public(text: str) -> bool:
    address = ip_address(text.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_global and not address.is_multicast


_last = threading.local()

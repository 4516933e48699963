"""Connections for `web.py`. Each connection records whether its address is public, and a deadline can cut it off."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
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


IsPublic = Callable[[str], bool]
"""Whether an IP address is public."""


def is_public(text: str) -> bool:
    """Whether an IP address is not one of a private network, of this machine, or of a cloud's metadata service."""
    address = ip_address(text.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_global and not address.is_multicast


@cache
def connections(config: ObjectStoreConfig, *, only_public: bool, is_public: IsPublic = is_public) -> PoolManager:
    """Return this process's connections to web servers. They neither retry requests nor follow redirects.

    Args:
        config: The timeouts and the number of connections.
        only_public: Whether to raise PrivateAddress, before a request is sent, for an address that is not public.
        is_public: Decides which addresses are public.
    """
    timeout = Timeout(connect=config.connect_timeout_s, read=config.read_timeout_s)
    manager = PoolManager(maxsize=config.max_connections, retries=False, timeout=timeout)
    # urllib3 creates the pools, and the pools create the connections. So the rules can only be attributes of classes.
    rules = {"only_public": only_public, "is_public": staticmethod(is_public)}
    http = type("_HttpConnection", (_Watched, HTTPConnection), rules)
    https = type("_HttpsConnection", (_Watched, HTTPSConnection), rules)
    manager.pool_classes_by_scheme = {
        "http": type("_HttpPool", (HTTPConnectionPool,), {"ConnectionCls": http}),
        "https": type("_HttpsPool", (HTTPSConnectionPool,), {"ConnectionCls": https}),
    }
    return manager


def last_address_is_public() -> bool:
    """Whether the last request of this thread went to a public address."""
    return getattr(_last, "is_public", True)


class _Watched:
    """Registers a connection with the deadline of the call that uses it, and records whether its address is public."""

    sock: Any
    only_public: bool
    is_public: IsPublic
    _has_public_address = False

    def connect(self) -> None:
        Expiry.current().on_expiry(self._cut_off)
        super().connect()  # type: ignore[misc]
        address = self.sock.getpeername()[0]
        self._has_public_address = self.is_public(address)
        if self.only_public and not self._has_public_address:
            self.close()  # type: ignore[attr-defined]
            raise PrivateAddress(f"redirects to {address}, which is not a public address")

    def request(self, *args: Any, **kwargs: Any) -> None:
        Expiry.current().on_expiry(self._cut_off)
        super().request(*args, **kwargs)  # type: ignore[misc]
        _last.is_public = self._has_public_address

    def _cut_off(self) -> None:
        # Closing a socket does not wake a thread that waits for its data.
        if self.sock is not None:
            with suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)


_last = threading.local()

"""Proxies in front of an object store: one refuses the requests that a test chooses, one drops a header."""

from __future__ import annotations

import threading
from collections.abc import Callable

from benchmarks.faulty_proxy import Answer, FaultyProxy, refusal

Refusal = Callable[[str, str, int], tuple[int, str] | None]
"""Called with the method, the path and the number of requests before; returns the status and the code of an error."""


class RefusingProxy(FaultyProxy):
    """Counts the requests, and answers some of them with an error."""

    def __init__(self, upstream: str, refuses: Refusal) -> None:
        """Prepare the proxy; see `Refusal`."""
        super().__init__(upstream, share=0.0, seed=0)
        self.refuses = refuses
        self.requests: list[str] = []
        self.num_refused = 0
        self._requests_lock = threading.Lock()

    def refuse(self, method: str, path: str) -> Answer | None:
        with self._requests_lock:
            error = self.refuses(method, path, len(self.requests))
            self.requests.append(f"{method} {path}")
            self.num_refused += error is not None
        return refusal(*error, "Refused by the test.") if error is not None else None


class HeaderDroppingProxy(RefusingProxy):
    """Counts the requests, and forwards them without one of their headers, as an old store or gateway ignores it."""

    def __init__(self, upstream: str, header: str) -> None:
        """Prepare the proxy."""
        super().__init__(upstream, lambda *_: None)
        self._header = header.lower()

    def forwards(self, header: str) -> bool:
        return header != self._header

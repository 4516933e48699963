"""The proxy of the trials: it injects faults into requests, can have outages, and can refuse all credentials."""

from __future__ import annotations

import threading
import time

from benchmarks.faulty_proxy import Answer, FaultyProxy, WebFault, refusal


class ChaosProxy(FaultyProxy):
    """Spoils a share of the requests, and sometimes all of them."""

    def __init__(self, upstream: str, share: float, seed: int) -> None:
        """Prepare the proxy; see `FaultyProxy`."""
        super().__init__(upstream, share, seed)
        self._outage: tuple[WebFault, float] | None = None
        self._is_expired = threading.Event()

    def begin_outage(self, fault: WebFault, seconds: float) -> None:
        """Answer all requests with this fault for some seconds."""
        self._outage = (fault, time.monotonic() + seconds)

    def wait_until_outage_ends(self) -> None:
        """Return when requests are answered again."""
        if self._outage is not None:
            time.sleep(max(0.0, self._outage[1] - time.monotonic()))

    def expire_credentials(self) -> None:
        """Refuse all requests until `renew_credentials` is called."""
        self._is_expired.set()

    def renew_credentials(self) -> None:
        """Accept requests again."""
        self._is_expired.clear()

    def reset(self) -> None:
        """End what earlier trials have begun."""
        self._outage = None
        self.renew_credentials()

    def draw(self, method: str, path: str) -> WebFault | None:
        fault = super().draw(method, path)
        if self._outage is not None and time.monotonic() < self._outage[1]:
            return self._outage[0]
        return fault

    def refuse(self, method: str, path: str) -> Answer | None:  # noqa: ARG002
        if self._is_expired.is_set():
            return refusal(400, "ExpiredToken", "The provided token has expired.")
        return None

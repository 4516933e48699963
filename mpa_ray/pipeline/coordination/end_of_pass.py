"""Ends a pass early: a failure that one worker finds is reported to all others immediately."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Generic, TypeVar

from mpa_ray.pipeline.coordination.turns import POLL_S

FailureT = TypeVar("FailureT")


class EndOfPass(Generic[FailureT]):
    """The first failure that ends the pass."""

    def __init__(self) -> None:
        self._failure: FailureT | None = None
        self._given_up = asyncio.Event()

    def give_up(self, failure: FailureT) -> None:
        """End the pass."""
        self._failure = self._failure or failure
        self._given_up.set()

    async def wait(self, wait_s: float = POLL_S) -> FailureT | None:
        """Wait for a failure and return it; None if there was no failure within `wait_s` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._given_up.wait()
        return self._failure

"""What one pass over a dataset has to remember between its workers: shards, bytes in flight, duplicates, deaths.

Plain objects for one event loop; `graph.py` puts them into an actor beside the driver, which outlives every worker.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from mpa_ray.config import LimitsConfig
from mpa_ray.corpus.dedup_index import DedupIndex
from mpa_ray.stages.visits import Attempt

_PATIENCE_S = 60.0
"""A shard whose predecessor has not been heard of for longer, since its node died perhaps, goes on without it."""
POLL_S = 10.0
"""How long a question to the ledger waits for its answer before it has to be asked again: a sign of life."""


class OrderedTurns:
    """Lets shards pass in the order of a list, which may grow."""

    def __init__(self, shards: Iterable[str] = (), patience_s: float = _PATIENCE_S) -> None:
        self._place: dict[str, int] = {}
        self._passed: list[bool] = []
        self._next = 0
        self._patience_s = patience_s
        self._heard_of: dict[int, float] = {}
        """When each waiting shard, or the one whose turn it is, last gave a sign of life."""
        self._changed = asyncio.Condition()
        for shard in shards:
            self.add(shard)

    def add(self, shard: str) -> None:
        """The list's next."""
        self._place[shard] = len(self._passed)
        self._passed.append(False)

    async def wait(self, shard: str, wait_s: float = POLL_S) -> bool:
        """Until all shards before this one have passed, or the next of them seems to be gone; False after `wait_s`."""
        place, now = self._place[shard], time.monotonic()
        self._heard_of[place] = now
        self._heard_of.setdefault(self._next, now)
        try:
            async with asyncio.timeout(wait_s), self._changed:
                await self._changed.wait_for(lambda: self._next >= place)
        except TimeoutError:
            silent_s = time.monotonic() - self._heard_of.get(self._next, now)
            return silent_s > self._patience_s
        return True

    async def take(self, shard: str) -> None:
        """The shard has passed; doing so again changes nothing."""
        async with self._changed:
            self._passed[self._place[shard]] = True
            while self._next < len(self._passed) and self._passed[self._next]:
                self._heard_of.pop(self._next, None)
                self._next += 1
            self._changed.notify_all()


class BytesInFlight:
    """Leases of memory by shard, given in turn; a shard that begins again holds the lease that it has."""

    def __init__(self, turns: OrderedTurns, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._leases: dict[str, int] = {}
        self._turns = turns
        self._changed = asyncio.Condition()
        self.peak = 0
        """The most bytes that were leased at a time."""

    async def acquire(self, shard: str, num_bytes: int, wait_s: float = POLL_S) -> bool:
        """Take a lease; False where there was no room within `wait_s`: ask again.

        A shard that is larger than all room goes when nothing else is in flight.
        """
        if not await self._turns.wait(shard, wait_s):
            return False
        try:
            async with asyncio.timeout(wait_s), self._changed:
                await self._changed.wait_for(lambda: self._has_room(shard, num_bytes))
                self._lease(shard, num_bytes)
        except TimeoutError:
            return False
        await self._turns.take(shard)
        return True

    async def correct(self, shard: str, num_bytes: int) -> None:
        """Put the true number in the place of the one that was known before reading."""
        async with self._changed:
            self._lease(shard, num_bytes)
            self._changed.notify_all()

    async def release(self, shard: str) -> None:
        async with self._changed:
            self._leases.pop(shard, None)
            self._changed.notify_all()

    def _has_room(self, shard: str, num_bytes: int) -> bool:
        return shard in self._leases or not self._leases or self._total() + num_bytes <= self._max_bytes

    def _lease(self, shard: str, num_bytes: int) -> None:
        self._leases[shard] = num_bytes
        self.peak = max(self.peak, self._total())

    def _total(self) -> int:
        return sum(self._leases.values())


@dataclass(frozen=True)
class Sighting:
    """An image whose bytes have been read."""

    image_id: str
    content_sha256: str


class Duplicates:
    """Finds images with the same bytes as one before them in the corpus.

    Shards claim in the corpus's order, so an image is only ever the duplicate of an earlier one, whatever was read
    first and whoever else works on the same run: the first of several can never be given up for a later one.
    """

    def __init__(self, turns: OrderedTurns) -> None:
        self._turns = turns
        self._seen = DedupIndex()

    def know(self, shard: str, sightings: Iterable[Sighting | None]) -> None:
        """Take in a shard that is already committed."""
        self._claim(shard, sightings)

    async def claim(
        self, shard: str, sightings: Sequence[Sighting | None], wait_s: float = POLL_S
    ) -> list[str | None] | None:
        """For each image of a shard the earlier image with the same bytes; None for first ones and for None.

        None altogether where the shard's turn did not come within `wait_s`: ask again.
        """
        if not await self._turns.wait(shard, wait_s):
            return None
        found = self._claim(shard, sightings)
        await self._turns.take(shard)
        return found

    def _claim(self, shard: str, sightings: Iterable[Sighting | None]) -> list[str | None]:
        numbered = list(enumerate(sightings))
        claims = [
            (bytes.fromhex(seen.content_sha256)[:16], (int(shard) << 32) + place, seen.image_id)
            for place, seen in numbered
            if seen is not None
        ]
        earlier = iter(self._seen.claim(claims))
        return [next(earlier) if seen is not None else None for _, seen in numbered]


@dataclass
class _Record:
    num_begun: int = 0
    num_deaths: int = 0
    num_unexplained: int = 0
    was_told: bool = True
    """Did whoever visited the shard last tell how that ended?"""
    alone_now: str | None = None
    suspects: set[str] = field(default_factory=set)
    killed: Counter[str] = field(default_factory=Counter)
    last_words: str = "no reason was left; see Ray's logs for the actor"


class Attempts:
    """Finds the image that kills engines, and bounds how often a shard is begun.

    An engine's death makes suspects of the images that were in it. In the next attempt these are visited alone, after
    all others; an image that has killed `max_image_deaths` engines alone is quarantined. A process that is killed
    outright (out of memory, a fault in a codec) tells nothing: where that happens twice, every image of the shard is
    visited alone.
    """

    def __init__(self, limits: LimitsConfig) -> None:
        self._limits = limits
        self._records: dict[str, _Record] = {}

    def begin(self, shard: str) -> Attempt:
        record = self._records.setdefault(shard, _Record())
        record.num_begun += 1
        if record.num_begun > 1 and record.alone_now is not None:
            record.killed[record.alone_now] += 1
            record.suspects.add(record.alone_now)
            record.num_deaths += 1
        elif record.num_begun > 1 and not record.was_told:
            record.num_unexplained += 1
            record.num_deaths += 1
        record.was_told, record.alone_now = False, None
        quarantined = {i: n for i, n in record.killed.items() if n >= self._limits.max_image_deaths}
        return Attempt(
            number=record.num_begun,
            alone=frozenset(record.suspects - quarantined.keys()),
            all_alone=record.num_unexplained > 1,
            quarantined=quarantined,
            given_up=self._given_up(shard, record),
        )

    def alone(self, shard: str, image_id: str | None) -> None:
        """An image of the shard goes into an otherwise empty engine; None once it is out again."""
        self._records[shard].alone_now = image_id

    def died(self, in_flight: Mapping[str, Sequence[str]], error: str) -> None:
        """An engine has died with these images of each shard in it."""
        for shard, images in in_flight.items():
            record = self._records[shard]
            record.was_told, record.last_words = True, error
            if images and record.alone_now is None:
                record.num_deaths += 1
                record.suspects.update(images)

    def ended(self, shard: str) -> None:
        """The shard is committed."""
        self._records.pop(shard, None)

    def _given_up(self, shard: str, record: _Record) -> str | None:
        if record.num_deaths < self._limits.max_engine_deaths:
            return None
        return f"the engine died {record.num_deaths} times on shard {shard}, the last time with: {record.last_words}"


def sha256(content: bytes) -> str:
    """The digest that sightings are compared by, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


class ShardQueue:
    """The shards that are to be done, told as they become known."""

    def __init__(self) -> None:
        self._shards: list[str] = []
        self._is_complete = False
        self._changed = asyncio.Condition()

    async def add(self, shard: str) -> None:
        async with self._changed:
            self._shards.append(shard)
            self._changed.notify_all()

    async def complete(self) -> None:
        """No more will come."""
        async with self._changed:
            self._is_complete = True
            self._changed.notify_all()

    async def behind(self, place: int, wait_s: float = POLL_S) -> list[str] | None:
        """The shards from this place on, none where none became known within `wait_s`; None at the end of all."""
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s), self._changed:
                await self._changed.wait_for(lambda: self._is_complete or len(self._shards) > place)
        found = self._shards[place:]
        return None if self._is_complete and not found else found


class PassCoordinator:
    """All of it for one pass, as the methods of one actor."""

    def __init__(self, limits: LimitsConfig, max_bytes_in_flight: int) -> None:
        self.queue = ShardQueue()
        self.attempts = Attempts(limits)
        self._turns = OrderedTurns(), OrderedTurns()
        self.bytes = BytesInFlight(self._turns[0], max_bytes_in_flight)
        self.duplicates = Duplicates(self._turns[1])

    async def add_shard(self, shard: str) -> None:
        """One more is to be done."""
        for turns in self._turns:
            turns.add(shard)
        await self.queue.add(shard)

    async def complete(self) -> None:
        await self.queue.complete()

    async def shards_from(self, place: int) -> list[str] | None:
        return await self.queue.behind(place)

    def add_known_images(self, committed: Mapping[str, Sequence[Sighting | None]]) -> None:
        for shard, sightings in committed.items():
            self.duplicates.know(shard, sightings)

    async def acquire_bytes(self, shard: str, num_bytes: int) -> bool:
        return await self.bytes.acquire(shard, num_bytes)

    async def correct_bytes(self, shard: str, num_bytes: int) -> None:
        await self.bytes.correct(shard, num_bytes)

    async def claim_images(self, shard: str, sightings: Sequence[Sighting | None]) -> list[str | None] | None:
        return await self.duplicates.claim(shard, sightings)

    async def begin(self, shard: str) -> Attempt:
        return self.attempts.begin(shard)

    async def alone(self, shard: str, image_id: str | None) -> None:
        self.attempts.alone(shard, image_id)

    async def died(self, in_flight: Mapping[str, Sequence[str]], error: str) -> None:
        self.attempts.died(in_flight, error)

    async def end(self, shard: str) -> None:
        """The shard is committed: what it held is free."""
        self.attempts.ended(shard)
        await self.bytes.release(shard)

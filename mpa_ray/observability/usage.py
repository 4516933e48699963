"""Count what a pass uses: seconds by kind of work, bytes and tokens. Each process counts its own work, and the counts
are added up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace


@dataclass
class Usage:
    """Sums over images.

    Images are processed concurrently, so the seconds may be compared with each other, but not with the wall time.
    """

    num_bytes_read: int = 0
    """Bytes of image files."""
    read_s: float = 0.0
    """Seconds to fetch shards: from the start of reading a shard's rows until its images are read and its duplicates
    are known."""
    render_s: float = 0.0
    """Seconds to decode and scale images and, in rendering processes, to run the model's processor."""
    wait_s: float = 0.0
    """Seconds that images waited, after they were read, until the engine had room for them."""
    engine_s: float = 0.0
    """Seconds that requests spent in the engine, including waits there."""
    write_s: float = 0.0
    """Seconds to write and publish rows."""
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    """The prompt tokens that were found in the engine's cache."""
    num_output_tokens: int = 0

    def __iadd__(self, other: Usage) -> Usage:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))
        return self

    def take(self) -> Usage:
        """Return the sums since the last call, and reset them to zero."""
        so_far = replace(self)
        for field in fields(self):
            setattr(self, field.name, field.default)
        return so_far


@dataclass
class Load:
    """The numbers of images and requests that a replica is working on at the moment."""

    num_waiting: int = 0
    """Images that are already read and wait until the engine has room for them."""
    num_rendering: int = 0
    """Images that are being decoded, scaled and processed, or that wait for their turn."""
    num_in_engine: int = 0
    """Requests in the engine, including those that wait there."""

    @contextmanager
    def one_more(self, name: str) -> Iterator[None]:
        """Increase the field `name` by one while the block runs."""
        setattr(self, name, getattr(self, name) + 1)
        try:
            yield
        finally:
            setattr(self, name, getattr(self, name) - 1)

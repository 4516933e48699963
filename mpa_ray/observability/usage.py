"""What a pass spends: seconds by kind of work, bytes and tokens. They are counted where the work is done, and added
up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace


@dataclass
class Usage:
    """Sums over images that are processed concurrently. Compare the seconds with each other, not with a clock."""

    num_bytes_read: int = 0
    """Bytes of image files."""
    read_s: float = 0.0
    """Seconds to read rows and image files, one shard at a time."""
    render_s: float = 0.0
    """Seconds to decode and scale images and, in rendering processes, to run the model's processor."""
    wait_s: float = 0.0
    """Seconds for which images that were already read waited for the engine to take them."""
    engine_s: float = 0.0
    """Seconds of requests in the engine, including waits there."""
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
        """Return the sums since the last call, and begin again at zero."""
        so_far = replace(self)
        for field in fields(self):
            setattr(self, field.name, field.default)
        return so_far


@dataclass
class Load:
    """How many images and requests are in each part of a replica now."""

    num_waiting: int = 0
    """Images that are already read and wait for the engine to take them."""
    num_rendering: int = 0
    """Images that are being decoded, scaled and processed, or that wait for this."""
    num_in_engine: int = 0
    """Requests in the engine, including those that wait there."""

    @contextmanager
    def one_more(self, name: str) -> Iterator[None]:
        """Count one more in the field of this name while the block runs."""
        setattr(self, name, getattr(self, name) + 1)
        try:
            yield
        finally:
            setattr(self, name, getattr(self, name) - 1)

"""What a pass spends: seconds by kind of work, and tokens. Sums that are kept where the work is done and added up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace


@dataclass
class Usage:
    """Seconds are summed over images that are worked on together, so that only their proportions mean much."""

    num_bytes_read: int = 0
    """Of image files."""
    read_s: float = 0.0
    """Reading rows and image files, for a shard at a time."""
    render_s: float = 0.0
    """Decoding and scaling, and with renderers the model's processor."""
    wait_s: float = 0.0
    """Images that were read, until the engine had room for them."""
    engine_s: float = 0.0
    """Requests in the engine, waiting there included."""
    write_s: float = 0.0
    """Writing and publishing rows."""
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    """Of the prompt tokens those that were found in the engine's cache."""
    num_output_tokens: int = 0

    def __iadd__(self, other: Usage) -> Usage:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))
        return self

    def take(self) -> Usage:
        """The sums since the last call."""
        so_far = replace(self)
        for field in fields(self):
            setattr(self, field.name, field.default)
        return so_far


@dataclass
class Load:
    """What an engine and the work before it hold at this moment."""

    num_waiting: int = 0
    """Images that were read and wait for room in the engine."""
    num_rendering: int = 0
    """Images being decoded, scaled and brought to the model's form, or waiting for that."""
    num_in_engine: int = 0
    """Requests in the engine, waiting there included."""

    @contextmanager
    def one_more(self, name: str) -> Iterator[None]:
        """While it lasts, `name` is one more."""
        setattr(self, name, getattr(self, name) + 1)
        try:
            yield
        finally:
            setattr(self, name, getattr(self, name) - 1)

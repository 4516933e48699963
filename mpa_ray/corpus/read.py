"""Read the files of a shard, several at a time; a file that cannot be read is a row with a reason."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_NUM_READERS = 8


def read_files(uris: Sequence[str]) -> list[tuple[bytes | None, str | None]]:
    """Each file's content or the error that kept it, in the order given."""
    with ThreadPoolExecutor(_NUM_READERS) as readers:
        return list(readers.map(_read, uris))


def _read(uri: str) -> tuple[bytes | None, str | None]:
    try:
        return Path(uri).read_bytes(), None
    except OSError as error:
        return None, f"{type(error).__name__}: {error.strerror}"

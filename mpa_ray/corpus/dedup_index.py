"""Which of many things with one name came first: kept in a file of its own, so that memory stays small for millions."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterable

_CACHE_KIB = 64 * 1024


class DedupIndex:
    """Claims of names by positions; the earliest position has the name, whatever the order of the claims."""

    def __init__(self) -> None:
        handle, path = tempfile.mkstemp(prefix="mpa_ray-seen-")
        os.close(handle)
        # Claims come from one thread at a time, not always the same.
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        # Gone with the process, however it ends; SQLite holds the file open.
        os.unlink(path)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self._database.execute("CREATE TABLE seen (name BLOB PRIMARY KEY, position INTEGER, label TEXT) WITHOUT ROWID")

    def claim(self, claims: Iterable[tuple[bytes, int, str]]) -> list[str | None]:
        """For each (name, position, label) the label of an earlier position with this name; None where it is first."""
        self._database.execute("BEGIN")
        earlier = [self._claim(*claim) for claim in claims]
        self._database.execute("COMMIT")
        return earlier

    def _claim(self, name: bytes, position: int, label: str) -> str | None:
        held = self._database.execute("SELECT position, label FROM seen WHERE name = ?", (name,)).fetchone()
        if held is None or held[0] > position:
            self._database.execute("INSERT OR REPLACE INTO seen VALUES (?, ?, ?)", (name, position, label))
            return None
        return None if held[0] == position else str(held[1])

"""Finds repeated names among millions of items. The names are kept in a file, so they need little memory."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterable

_CACHE_KIB = 64 * 1024


class DedupIndex:
    """Maps each name to the earliest position that claimed it. Claims may come in any order."""

    def __init__(self) -> None:
        handle, path = tempfile.mkstemp(prefix="mpa_ray-seen-")
        os.close(handle)
        # Different threads may use the database, but only one at a time.
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        # SQLite keeps the unlinked file open. The file disappears when the process ends, even if it is killed.
        os.unlink(path)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self._database.execute("CREATE TABLE seen (name BLOB PRIMARY KEY, position INTEGER, label TEXT) WITHOUT ROWID")

    def claim(self, claims: Iterable[tuple[bytes, int, str]]) -> list[str | None]:
        """For each (name, position, label), return the label of the earlier position that has claimed the name; None if
        no earlier position has."""
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

"""Listings of the objects in a bucket."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True)
class ListedObject:
    """An object as a listing shows it."""

    key: str
    num_bytes: int
    etag: str
    modified: datetime


@dataclass(frozen=True)
class ListingPage:
    """One page of a listing."""

    objects: list[ListedObject]
    prefixes: list[str]
    is_truncated: bool

    @classmethod
    def of(cls, response: Mapping[str, Any]) -> ListingPage:
        """Read the response to a request for one page."""
        return cls(
            [
                ListedObject(entry["Key"], entry["Size"], entry["ETag"].strip('"'), entry["LastModified"])
                for entry in response.get("Contents", ())
                # Consoles and file managers create empty objects to show folders.
                if not entry["Key"].endswith("/")
            ],
            [entry["Prefix"] for entry in response.get("CommonPrefixes", ())],
            response.get("IsTruncated", False),
        )

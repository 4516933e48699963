"""Rates: how they are computed, and how they are written. The definition of images/s is here."""

from __future__ import annotations


def per_second(count: float, working_s: float) -> float | None:
    """A count per second of work; None if there was no work.

    For images/s, `count` is the number of images whose shards are committed, each counted once even if several models
    of an engine answered about it. `working_s` is the time in which at least one engine of the phase had a shard: it
    leaves out the engines' start and waits for shards.
    """
    return count / working_s if working_s else None


def format_rate(rate: float) -> str:
    """A rate without an exponent, such as `14,783`, `7.4` or `0.031`."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}" if rate >= 1 else f"{rate:.2g}"

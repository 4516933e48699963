"""Compute and format rates. This module defines images/s."""

from __future__ import annotations


def per_second(count: float, working_s: float) -> float | None:
    """Return a count per second of work; None if there was no work.

    For images/s, `count` is the number of images whose shards are committed. An image counts once, even if several
    models share the engine. `working_s` is the time in which at least one engine of the phase had a shard. The time
    in which engines start or wait for shards is left out.
    """
    return count / working_s if working_s else None


def format_rate(rate: float) -> str:
    """Format a rate without an exponent, such as `14,783`, `7.4` or `0.031`."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}" if rate >= 1 else f"{rate:.2g}"

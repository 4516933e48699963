"""Counts of the files that a listing leaves out, as the corpus manifest stores them and as messages show them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

MAX_LABELS = 100
"""The largest number of distinct labels. Files with any further label are counted under `OTHER`."""
OTHER = "others"
_NUM_LABELS_SHOWN = 12


def add_left_out(counts: Counter[str], others: Mapping[str, int]) -> None:
    """Add `others` to `counts`. Both map a label, such as `.heic` or `._* (AppleDouble)`, to a number of files."""
    for label, number in others.items():
        counts[label if label in counts or len(counts) < MAX_LABELS else OTHER] += number


def left_out_in_words(counts: Mapping[str, int]) -> str:
    """Return the counts as a phrase, such as `left out 447 files: .heic 312, ._* 131 (AppleDouble), no ending 4`."""
    total = sum(counts.values())
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    parts = [_part(label, number) for label, number in ordered[:_NUM_LABELS_SHOWN]]
    if rest := ordered[_NUM_LABELS_SHOWN:]:
        parts.append(f"{sum(number for _, number in rest)} more")
    unit = "file" if total == 1 else "files"
    if any(label.startswith("rows") for label in counts):
        unit = "entries"
    return f"left out {total} {unit}: {', '.join(parts)}"


def _part(label: str, number: int) -> str:
    name, bracket, reason = label.partition(" (")
    return f"{name} {number}{bracket}{reason}"

"""Scores on benchmarks, as text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_NAME_WIDTH = 34


def render_scores(scores: dict[str, Any]) -> str:
    """Every benchmark as a table: a row for each group of questions, a column for each model, in percent."""
    return "\n".join(line for name, found in scores.items() for line in ("", *_lines(name, found)))


def _lines(benchmark: str, found: dict[str, Any]) -> Iterator[str]:
    metric, models, differences = found["metric"], found["models"], found["differences"]
    yield f"{benchmark}: {metric['name']}, % [95 % interval] ({metric['source']}; {metric['version']})"
    changes = {f"{pair['from']} -> {pair['to']}": pair["groups"] for pair in differences}
    widths = {name: max(len(name), len("-100.0 [-100.0, -100.0]")) + 1 for name in [*models, *changes]}
    yield f"  {'':<{_NAME_WIDTH}}{'n':>8}" + "".join(f"{name:>{widths[name]}}" for name in widths)
    groups = next(iter(models.values()))["groups"]
    for group, row in groups.items():
        cells = [percent(model["groups"][group]).rjust(widths[name]) for name, model in models.items()]
        cells += [percent(change[group], "+").rjust(widths[name]) for name, change in changes.items()]
        yield f"  {group:<{_NAME_WIDTH}}{row['num_questions']:>8}" + "".join(cells)
    for name, model in models.items():
        if model["num_missing"]:
            yield f"  {name}: {model['num_missing']} questions got no reply and count as wrong"
        yield from (f"  WARNING: {name}: {warning}" for warning in model["warnings"])


def percent(summary: dict[str, float], sign: str = "") -> str:
    """A mean with its interval, as in `74.1 [72.0, 76.3]`."""
    mean, low, high = (100 * summary[name] for name in ("mean", "low", "high"))
    return f"{mean:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"

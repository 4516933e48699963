"""Scores on benchmarks as text."""

from __future__ import annotations

from collections.abc import Iterator

from mpa_ray.evaluation.scores import BenchmarkScores, Scores, Summary

_NAME_WIDTH = 34
_WIDEST_CELL = "-100.0 [-100.0, -100.0]"


def render_scores(scores: Scores) -> str:
    """A table for each benchmark, with a row for each group of questions and a column for each model, in percent."""
    return "\n".join(line for name, scored in scores.items() for line in ("", *_lines(name, scored)))


def _lines(benchmark: str, scored: BenchmarkScores) -> Iterator[str]:
    metric = scored.metric
    yield f"{benchmark}: {metric.name}, % [95 % interval] ({metric.source}; {metric.version})"
    changes = {f"{pair.from_model} -> {pair.to_model}": pair.groups for pair in scored.differences}
    widths = {name: max(len(name), len(_WIDEST_CELL)) + 1 for name in [*scored.models, *changes]}
    yield f"  {'':<{_NAME_WIDTH}}{'n':>8}" + "".join(f"{name:>{width}}" for name, width in widths.items())
    first_model = next(iter(scored.models.values()))
    for group, summary in first_model.groups.items():
        cells = [percent(model.groups[group]).rjust(widths[name]) for name, model in scored.models.items()]
        cells += [percent(change[group], "+").rjust(widths[name]) for name, change in changes.items()]
        yield f"  {group:<{_NAME_WIDTH}}{summary.num_questions:>8}" + "".join(cells)
    for name, model in scored.models.items():
        if model.num_missing:
            yield f"  {name}: {model.num_missing} questions got no reply and count as wrong"
        yield from (f"  WARNING: {name}: {warning}" for warning in model.warnings)


def percent(summary: Summary, sign: str = "") -> str:
    """A mean with its interval in percent, such as `74.1 [72.0, 76.3]`."""
    mean, low, high = 100 * summary.mean, 100 * summary.low, 100 * summary.high
    return f"{mean:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"

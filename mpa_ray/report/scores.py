"""Render scores on benchmarks as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mpa_ray.config import MeasuredModel
from mpa_ray.evaluation.scores import BenchmarkScores, PairedDifference, Scores, Summary


def render_scores(scores: Scores) -> str:
    """Render a table for each benchmark, in percent: a row for each group of questions, a column for each model."""
    return "\n".join(line for name, scored in scores.items() for line in ("", *_lines(name, scored)))


def _lines(benchmark: str, scored: BenchmarkScores) -> Iterator[str]:
    metric = scored.metric
    yield f"{benchmark}: {metric.name}, % [95 % interval] ({metric.source}; {metric.version})"
    groups = next(iter(scored.models.values())).groups
    columns = {"": list(groups), "n": [str(summary.num_questions) for summary in groups.values()]}
    columns |= {name: [percent(model.groups[group]) for group in groups] for name, model in scored.models.items()}
    columns |= {
        _change_label(pair): [percent(pair.groups[group], "+") for group in groups] for pair in scored.differences
    }
    yield from _table(columns)
    for name, model in scored.models.items():
        if model.num_missing:
            yield f"  {name}: {model.num_missing} questions got no reply and count as wrong"
        yield from (f"  WARNING: {name}: {warning}" for warning in model.warnings)


def _change_label(pair: PairedDifference) -> str:
    """Return the label of a difference, such as `small: before -> after`.

    If the two models do not belong to the same student, the label has their full names.
    """
    before, after = MeasuredModel.from_name(pair.from_model), MeasuredModel.from_name(pair.to_model)
    if before is not None and after is not None and before.student == after.student:
        return f"{before.student}: {before.when} -> {after.when}"
    return f"{pair.from_model} -> {pair.to_model}"


def _table(columns: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """The lines of a table. A column is as wide as its widest cell; only the first column is aligned to the left."""
    widths = [max(len(name), *(len(cell) for cell in cells)) for name, cells in columns.items()]
    for row in [tuple(columns), *zip(*columns.values(), strict=True)]:
        first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(["", row[0].ljust(len(first)), *others])


def percent(summary: Summary, sign: str = "") -> str:
    """A mean with its interval in percent, such as `74.1 [72.0, 76.3]`."""
    mean, low, high = 100 * summary.mean, 100 * summary.low, 100 * summary.high
    return f"{mean:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"

"""The table, the ratios and the plots of what was measured."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

ROWS = {
    "ceiling": ("raw", "raw AsyncLLM, the visit's calls on requests rendered before, no Ray"),
    "a": ("padded", "transformers.generate, padded batches of 8, two passes"),
    "b": ("raw", "LLM.generate, two full passes"),
    "c": ("ray_llm", "ray.data.llm processors, two passes"),
    "d": ("ours", "mpa_ray without the shared visit"),
    "e": ("ours", "mpa_ray, the visit on raw prompts"),
    "f": ("ours", "mpa_ray as shipped: the visit, each image rendered once"),
}
"""The module that measures each row, and what it is. The student's pass comes on top where there is a student."""


def as_markdown(results: dict[str, Any]) -> str:
    parts = []
    for name, rows in results["rows"].items():
        if rows:
            parts += [_table(name, rows), _ratios(rows)]
        parts += [_sweep(name, sweep, values) for sweep, values in results["sweeps"][name].items()]
    return "\n".join(parts)


def rate(found: dict[str, Any]) -> float:
    return float(statistics.median(found["teacher_images_per_s"]))


def whole_flow(found: dict[str, Any]) -> list[float]:
    """Images per second through teacher and student, one after the other, of each repetition."""
    pairs = zip(found["teacher_images_per_s"], found["student_images_per_s"], strict=False)
    return [1 / (1 / teacher + 1 / student) for teacher, student in pairs]


def _table(name: str, rows: dict[str, Any]) -> str:
    lines = [
        f"### {name}",
        "",
        "| row | teacher, images/s | min to max | whole flow, images/s | image tokens twice | share of requests |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row, found in rows.items():
        flow, again, share = whole_flow(found), found["num_uncached_image_tokens"], found["second_pass_share"]
        rates = found["teacher_images_per_s"]
        cells = [
            f"{row}: {ROWS[row][1]}",
            f"{rate(found):.2f}",
            f"{min(rates):.2f} to {max(rates):.2f}",
            f"{statistics.median(flow):.1f}" if flow else "-",
            "-" if again is None else f"{again}",
            "-" if share is None else f"{share:.1%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    ceiling = rows.get("ceiling")
    if ceiling and ceiling["first_pass_images_per_s"]:
        first, both = statistics.median(ceiling["first_pass_images_per_s"]), rate(ceiling)
        cost = f"A second pass costs {(first / both - 1):.1%} of a first one's time: {first:.2f} images/s without it."
        lines += ["", cost]
    return "\n".join([*lines, ""])


def _ratios(rows: dict[str, Any]) -> str:
    """Row f over each other row; no table where f was not measured."""
    if "f" not in rows:
        return ""
    lines = ["| f over | teacher | whole flow |", "|---|---:|---:|"]
    flow = whole_flow(rows["f"])
    for row, found in rows.items():
        if row != "f":
            other = whole_flow(found)
            both = f"{statistics.median(flow) / statistics.median(other):.2f}" if flow and other else "-"
            lines.append(f"| {row} | {rate(rows['f']) / rate(found):.2f} | {both} |")
    return "\n".join([*lines, ""])


def _sweep(name: str, sweep: str, values: dict[str, Any]) -> str:
    lines = [
        f"### {name}, {sweep}",
        "",
        f"| {sweep} | teacher, images/s | min to max | pairs/s |",
        "|---:|---:|---:|---:|",
    ]
    for value, found in values.items():
        rates = found["teacher_images_per_s"]
        pairs = rate(found) * (found["pairs_per_image"] or 0)
        lines.append(f"| {value} | {rate(found):.2f} | {min(rates):.2f} to {max(rates):.2f} | {pairs:.1f} |")
    return "\n".join([*lines, ""])


def draw(results: dict[str, Any], path: Path) -> None:
    """A bar for each row, its spread as a line on it, and a curve for each sweep; works side by side."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "mpa_ray"
    from matplotlib import pyplot

    works = [name for name in results["rows"] if results["rows"][name] or results["sweeps"][name]]
    sweeps = sorted({sweep for name in works for sweep in results["sweeps"][name]})
    figure, axes = pyplot.subplots(
        1 + len(sweeps), len(works), figsize=(5 * len(works), 2.6 * (1 + len(sweeps))), squeeze=False
    )
    for column, name in enumerate(works):
        _bars(axes[0][column], name, results["rows"][name])
        for line, sweep in enumerate(sweeps, start=1):
            _curve(axes[line][column], sweep, results["sweeps"][name].get(sweep, {}))
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def _bars(axis: Any, name: str, rows: dict[str, Any]) -> None:
    middle = [rate(found) for found in rows.values()]
    below = [rate(f) - min(f["teacher_images_per_s"]) for f in rows.values()]
    above = [max(f["teacher_images_per_s"]) - rate(f) for f in rows.values()]
    colours = ["#bbbbbb" if row not in ("d", "e", "f") else "#4477aa" for row in rows]
    axis.bar(list(rows), middle, yerr=[below, above], color=colours)
    axis.set_title(name)
    axis.set_ylabel("teacher, images/s")


def _curve(axis: Any, sweep: str, values: dict[str, Any]) -> None:
    if not values:
        axis.set_visible(False)
        return
    axis.plot(list(values), [rate(found) for found in values.values()], marker="o", color="#4477aa")
    axis.set_ylim(bottom=0)
    axis.set_xlabel(sweep)
    axis.set_ylabel("teacher, images/s")

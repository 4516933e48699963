"""The tables and plots of the measured rates."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

ROWS = {
    "ceiling": ("raw", "raw AsyncLLM without Ray, the visit's requests rendered before the clock starts"),
    "a": ("padded", "transformers.generate, padded batches of 8, two passes"),
    "b": ("raw", "LLM.generate, two full passes"),
    "c": ("ray_llm", "ray.data.llm processors, two passes"),
    "d": ("ours", "mpa_ray without the shared visit"),
    "e": ("ours", "mpa_ray, the visit with raw prompts"),
    "f": ("ours", "mpa_ray as shipped: the visit, each image rendered once"),
}
"""The module that measures each row, and the row's title. If there is a student, its pass follows."""


def as_markdown(results: dict[str, Any]) -> str:
    """All tables."""
    parts = []
    for name, rows in results["rows"].items():
        if rows:
            parts += [_table(name, rows), _ratios(rows)]
        parts += [_sweep(name, sweep, values) for sweep, values in results["sweeps"][name].items()]
    return "\n".join(parts)


def rate(timings: dict[str, Any]) -> float:
    """The teacher's median rate, in images per second."""
    return float(statistics.median(timings["teacher_images_per_s"]))


def whole_flow(timings: dict[str, Any]) -> list[float]:
    """Images per second of each repetition, through the teacher and then the student."""
    pairs = zip(timings["teacher_images_per_s"], timings["student_images_per_s"], strict=False)
    return [1 / (1 / teacher + 1 / student) for teacher, student in pairs]


def _table(name: str, rows: dict[str, Any]) -> str:
    lines = [
        f"### {name}",
        "",
        "| row | teacher, images/s | min to max | whole flow, images/s | image tokens recomputed "
        "| second pass, share of request time |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row, timings in rows.items():
        flow, num_uncached = whole_flow(timings), timings["num_uncached_image_tokens"]
        rates, share = timings["teacher_images_per_s"], timings["second_pass_share"]
        cells = [
            f"{row}: {ROWS[row][1]}",
            f"{rate(timings):.2f}",
            f"{min(rates):.2f} to {max(rates):.2f}",
            f"{statistics.median(flow):.1f}" if flow else "-",
            "-" if num_uncached is None else f"{num_uncached}",
            "-" if share is None else f"{share:.1%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    ceiling = rows.get("ceiling")
    if ceiling and ceiling["first_pass_images_per_s"]:
        first, both = statistics.median(ceiling["first_pass_images_per_s"]), rate(ceiling)
        cost = f"The second pass adds {(first / both - 1):.1%} to the time of the first; without it, the rate is"
        lines += ["", f"{cost} {first:.2f} images/s."]
    return "\n".join([*lines, ""])


def _ratios(rows: dict[str, Any]) -> str:
    """The rate of row f over that of each other row; empty if f was not measured."""
    if "f" not in rows:
        return ""
    lines = ["| f over | teacher | whole flow |", "|---|---:|---:|"]
    flow = whole_flow(rows["f"])
    for row, timings in rows.items():
        if row != "f":
            other = whole_flow(timings)
            both = f"{statistics.median(flow) / statistics.median(other):.2f}" if flow and other else "-"
            lines.append(f"| {row} | {rate(rows['f']) / rate(timings):.2f} | {both} |")
    return "\n".join([*lines, ""])


def _sweep(name: str, sweep: str, values: dict[str, Any]) -> str:
    lines = [
        f"### {name}, {sweep}",
        "",
        f"| {sweep} | teacher, images/s | min to max | pairs/s |",
        "|---:|---:|---:|---:|",
    ]
    for value, timings in values.items():
        rates = timings["teacher_images_per_s"]
        pairs = rate(timings) * (timings["pairs_per_image"] or 0)
        lines.append(f"| {value} | {rate(timings):.2f} | {min(rates):.2f} to {max(rates):.2f} | {pairs:.1f} |")
    return "\n".join([*lines, ""])


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw a bar with its range for each row and a curve for each sweep, in a column for each work."""
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
    medians = [rate(timings) for timings in rows.values()]
    below = [rate(timings) - min(timings["teacher_images_per_s"]) for timings in rows.values()]
    above = [max(timings["teacher_images_per_s"]) - rate(timings) for timings in rows.values()]
    colours = ["#bbbbbb" if row not in ("d", "e", "f") else "#4477aa" for row in rows]
    axis.bar(list(rows), medians, yerr=[below, above], color=colours)
    axis.set_title(name)
    axis.set_ylabel("teacher, images/s")


def _curve(axis: Any, sweep: str, values: dict[str, Any]) -> None:
    if not values:
        axis.set_visible(False)
        return
    axis.plot(list(values), [rate(timings) for timings in values.values()], marker="o", color="#4477aa")
    axis.set_ylim(bottom=0)
    axis.set_xlabel(sweep)
    axis.set_ylabel("teacher, images/s")

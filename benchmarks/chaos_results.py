"""The records of chaos trials, their summary, table and plot."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any


class Fault(StrEnum):
    """What a trial kills."""

    ACTOR = "actor"
    ENGINE = "engine"
    NODE = "node"
    DRIVER = "driver"


@dataclass(frozen=True)
class Kill:
    """One kill."""

    fault: Fault
    phase: str
    num_committed: int
    """Shards of the phase that were committed before it."""
    num_actors: int
    """Model actors that it killed."""
    num_in_flight: int
    """Shards that may be redone because of it: those that the actors worked on; if the driver was killed, all that they
    had begun and that were not committed."""

    def __str__(self) -> str:
        return f"{self.fault} in {self.phase} at {self.num_committed} shards ({self.num_actors} actors)"


@dataclass(frozen=True)
class Trial:
    """One trial."""

    number: int
    faults: list[Fault]
    """The planned faults."""
    kills: list[Kill]
    """The kills that happened."""
    num_lost: int
    num_doubled: int
    num_differing: int
    """Verdicts that differ from those of the undisturbed run."""
    num_redone_shards: int
    num_redone_images: int
    """Visits to images beyond the first of each."""
    num_needless: int
    """Shards that were redone although they were not in flight, or more than once."""
    num_extra_files: int
    num_restarts: int
    errors: list[str]
    """The last words of drivers that failed without being killed."""
    problems: list[str]
    """Those that `audit` found."""
    elapsed_s: float

    @property
    def num_in_flight(self) -> int:
        return sum(kill.num_in_flight for kill in self.kills)

    @property
    def is_good(self) -> bool:
        return not (self.num_lost or self.num_doubled or self.num_needless or self.problems)

    def __str__(self) -> str:
        return (
            f"{', '.join(map(str, self.kills)) or 'nothing killed'}: {self.num_lost} lost, {self.num_doubled} doubled, "
            f"{self.num_redone_shards} of {self.num_in_flight} shards in flight redone ({self.num_redone_images} "
            f"images), {self.num_restarts} restarts, {self.elapsed_s:.0f} s"
            + "".join(f"\n    {message}" for message in [*self.errors, *self.problems])
        )


def summarise(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """A row for the trials with each fault alone, and one for all trials."""
    groups = [(str(fault), [trial for trial in trials if trial.faults == [fault]]) for fault in Fault]
    return [_summary(name, group) for name, group in [*groups, ("all", list(trials))] if group]


def _summary(name: str, trials: Sequence[Trial]) -> dict[str, Any]:
    return {
        "fault": name,
        "trials": len(trials),
        "kills": sum(len(t.kills) for t in trials),
        "actors_killed": sum(kill.num_actors for t in trials for kill in t.kills),
        "lost_images": sum(t.num_lost for t in trials),
        "doubled_images": sum(t.num_doubled for t in trials),
        "differing_verdicts": sum(t.num_differing for t in trials),
        "shards_in_flight": sum(t.num_in_flight for t in trials),
        "redone_shards": sum(t.num_redone_shards for t in trials),
        "redone_images": sum(t.num_redone_images for t in trials),
        "needless_shards": sum(t.num_needless for t in trials),
        "drivers_failed": sum(len(t.errors) for t in trials),
        "median_s": round(statistics.median(t.elapsed_s for t in trials), 1),
    }


def render_table(results: dict[str, Any]) -> str:
    """The summary of each engine's trials as a Markdown table."""
    lines = []
    for engine, result in results.items():
        columns = list(result["summary"][0])
        lines += [f"Engine: {engine}", "", "| " + " | ".join(c.replace("_", " ") for c in columns) + " |"]
        lines += ["|---" + "|---:" * (len(columns) - 1) + "|"]
        lines += ["| " + " | ".join(str(row[c]) for c in columns) + " |" for row in result["summary"]]
        lines += [""]
    return "\n".join(lines)


def render_plot(results: dict[str, Any]) -> str:
    """An SVG of the images lost, duplicated and redone per kill, by fault, with a panel for each engine."""
    width, height, bar, foot = 460, 180, 26, 60
    colours = {"lost_images": "#b3261e", "doubled_images": "#c77700", "redone_images": "#3b6ea5"}
    parts = []
    for panel, (engine, result) in enumerate(results.items()):
        rows = [row for row in result["summary"] if row["fault"] != "all"]
        top = max([row[c] / row["trials"] for row in rows for c in colours] + [1])
        left = panel * width + 20
        parts.append(f'<text x="{left}" y="16" font-weight="bold">{engine}: images per kill</text>')
        for group, row in enumerate(rows):
            x = left + group * (width - 40) / len(rows)
            parts.append(f'<text x="{x + 1.5 * bar:.0f}" y="{height + 18}" text-anchor="middle">{row["fault"]}</text>')
            for place, (column, colour) in enumerate(colours.items()):
                value = row[column] / row["trials"]
                tall, middle = value / top * (height - 50), x + place * bar + bar / 2
                parts.append(
                    f'<rect x="{x + place * bar:.0f}" y="{height - tall:.1f}" width="{bar - 4}" '
                    f'height="{max(tall, 1):.1f}" fill="{colour}"/>'
                    f'<text x="{middle - 2:.0f}" y="{height - tall - 4:.1f}" text-anchor="middle">{value:.3g}</text>'
                )
    for place, (column, colour) in enumerate(colours.items()):
        x = 20 + place * 130
        parts.append(
            f'<rect x="{x}" y="{height + 32}" width="12" height="12" fill="{colour}"/>'
            f'<text x="{x + 18}" y="{height + 42}">{column.replace("_", " ")}</text>'
        )
    size = f'width="{width * len(results)}" height="{height + foot}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">\n'
        '<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def write_results(out: Path, engine: str, result: dict[str, Any]) -> None:
    """Write one engine's result, keeping those of the others, and update the table and the plot of all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(out.read_text()) if out.exists() else {}
    results[engine] = result
    out.write_text(json.dumps(results, indent=1) + "\n")
    out.with_suffix(".md").write_text(render_table(results))
    out.with_suffix(".svg").write_text(render_plot(results))
